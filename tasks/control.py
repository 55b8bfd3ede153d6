"""The controller's Celery task: a door to `Controller.tick`, ticked by beat and nudged by the front."""

from __future__ import annotations

from functools import cache

import structlog
from celery import shared_task

from tasks.celery_app import PLAN
from tasks.celery_app import app as celery_app
from tasks.controller.rescue import Rescue
from tasks.controller.tick import Controller
from tasks.errors import StoreUnavailable
from tasks.settings import StoreSettings, load_settings
from tasks.store.backlog_store import BacklogStore
from tasks.store.batch_store import BatchStore
from tasks.store.connection import connect
from tasks.store.fleet_store import FleetStore
from tasks.store.job_store import JobStore
from tasks.store.lease_store import LeaseStore
from tasks.store.policy_store import PolicyStore
from tasks.store.quarantine_store import QuarantineStore
from tasks.wakeups import Wakeups

_log = structlog.get_logger(__name__)


@shared_task(name=PLAN, send_events=False)  # type: ignore[untyped-decorator]
def plan_placement() -> None:
    try:
        _controller().tick()
    except StoreUnavailable as error:
        _log.warning("tick_skipped", error=str(error))


@cache
def _controller() -> Controller:
    settings = load_settings(StoreSettings)
    client = connect(settings)
    fleet = FleetStore(client)
    rescue = Rescue(
        jobs=JobStore(client, settings),
        leases=LeaseStore(client, settings),
        fleet=fleet,
        backlog_store=BacklogStore(client),
        quarantine=QuarantineStore(client, settings),
        batches=BatchStore(client, settings),
        wakeups=Wakeups(celery_app),
        settings=settings,
    )
    return Controller(fleet=fleet, policy=PolicyStore(client), rescue=rescue)
