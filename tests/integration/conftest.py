"""Fixtures that several integration tests share. A file whose worker or client is another has its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.settings import StoreSettings
from tasks.store.admission_store import AdmissionStore
from tasks.store.connection import Client, connect
from tasks.store.job_lists import JobLists
from tasks.store.job_store import JobStore
from tests.support.scripted_worker import DEMO_OFFER, ScriptedWorker


@pytest.fixture
def worker(store_settings: StoreSettings) -> Iterator[ScriptedWorker]:
    worker = ScriptedWorker(store_settings)
    worker.report(DEMO_OFFER)
    yield worker
    worker.close()


@pytest.fixture
def client(store_settings: StoreSettings) -> Client:
    return connect(store_settings)


@pytest.fixture
def admissions(client: Client, store_settings: StoreSettings) -> AdmissionStore:
    return AdmissionStore(client, store_settings)


@pytest.fixture
def jobs(client: Client, store_settings: StoreSettings) -> JobStore:
    return JobStore(client, store_settings)


@pytest.fixture
def lists(client: Client) -> JobLists:
    return JobLists(client)
