"""Fixtures that several integration tests share. A file whose worker is another one has a fixture of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.settings import StoreSettings
from tests.support.scripted_worker import DEMO_OFFER, ScriptedWorker


@pytest.fixture
def worker(store_settings: StoreSettings) -> Iterator[ScriptedWorker]:
    worker = ScriptedWorker(store_settings)
    worker.report(DEMO_OFFER)
    yield worker
    worker.close()
