"""What a feeder works with: stores, file content, limits, and two questions about models. Blocking."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from app.batches.contents import Contents
from app.settings import ApiSettings
from tasks.catalog import Catalog
from tasks.errors import JobNotFound, UnknownModel
from tasks.jobs import JobId
from tasks.settings import StoreSettings
from tasks.store.admission_store import AdmissionStore
from tasks.store.batch_store import BatchStore
from tasks.store.connection import Client, connect
from tasks.store.file_store import FileStore
from tasks.store.fleet_store import FleetStore
from tasks.store.job_store import JobStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    batches: BatchStore
    files: FileStore
    contents: Contents
    jobs: JobStore
    admissions: AdmissionStore
    fleet: FleetStore
    window: int  # requests of one batch that wait or run at once
    max_line_bytes: int
    file_retention_ms: int
    lease_s: float

    def cancel_job(self, job_id: JobId) -> None:
        """A job that is gone needs no cancelling."""
        with contextlib.suppress(JobNotFound):
            self.jobs.cancel(job_id)

    def unknown_models(self, names: Sequence[str]) -> dict[str, UnknownModel]:
        """Those of the names that no worker offers."""
        catalog = self._catalog()
        unknown = {}
        for name in names:
            try:
                catalog.resolve(name)
            except UnknownModel as error:
                unknown[name] = error
        return unknown

    def warm_models(self, names: Sequence[str]) -> set[str]:
        """Those of the names whose model is ready somewhere."""
        catalog, fleet = self._catalog(), self.fleet.fleet()
        warm = set()
        for name in names:
            try:
                if fleet.has_ready_runner(catalog.resolve(name).id):
                    warm.add(name)
            except UnknownModel:
                warm.add(name)  # refused at once, nothing is loaded for it
        return warm

    def _catalog(self) -> Catalog:
        offers = {offer.id: offer for offer in self.fleet.known_offers()} | self.fleet.fleet().offers()
        return Catalog(offers.values())


def connect_surroundings(api: ApiSettings, store: StoreSettings) -> Surroundings:
    """Raises InvalidSetting when there is no place for files."""
    client: Client = connect(store)
    return Surroundings(
        batches=BatchStore(client, store),
        files=FileStore(client),
        contents=Contents(store.files_url, store.home),
        jobs=JobStore(client, store),
        admissions=AdmissionStore(client, store),
        fleet=FleetStore(client),
        window=api.batch_window,
        max_line_bytes=api.max_body_bytes,
        file_retention_ms=store.file_retention_s * 1000,
        lease_s=store.lease_s,
    )
