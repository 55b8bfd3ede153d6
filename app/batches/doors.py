"""The Celery tasks of batchers: feed a batch, delete expired files. Doors only."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import time
from functools import cache

import structlog
from celery import shared_task

from app.backend import connect_backend
from app.batches.feeder import Feeder, describe
from app.batches.line_call import line_caller
from app.batches.surroundings import Surroundings, connect_surroundings
from app.batches.sweep import sweep_expired
from app.settings import ApiSettings
from tasks.celery_app import BATCH, SWEEP_FILES
from tasks.errors import StoreUnavailable
from tasks.settings import StoreSettings, load_settings

is_stopping = threading.Event()  # set when the process is told to end; feeders hand their batches back
_log = structlog.get_logger(__name__)


@shared_task(name=BATCH)  # type: ignore[untyped-decorator]
def feed_batch(batch_id: str) -> None:
    """Feed until the batch ends; a second message finds it taken. Whatever breaks: the controller sends another one,
    until so many broke that the batch has failed."""
    around, epoch = surroundings(), None
    try:
        feeder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        if not is_stopping.is_set():
            epoch = around.batches.claim(batch_id, feeder)
        if epoch is not None:
            _log.info("feeder_started", batch_id=batch_id, epoch=epoch)
            asyncio.run(_feed(batch_id, epoch, around))
    except StoreUnavailable as error:
        _log.warning("feeder_gave_up", batch_id=batch_id, error=str(error))
    except Exception as error:
        if epoch is None:
            raise
        _note_break(batch_id, epoch, error, around)


def _note_break(batch_id: str, epoch: int, error: Exception, around: Surroundings) -> None:
    reason = describe(error)
    try:
        breaks = around.batches.note_break(batch_id, epoch, reason)
    except StoreUnavailable:
        breaks = 0
    _log.error("feeder_broke", batch_id=batch_id, epoch=epoch, breaks=breaks, exc_info=error)


@shared_task(name=SWEEP_FILES)  # type: ignore[untyped-decorator]
def sweep_files() -> None:
    try:
        sweep_expired(surroundings(), now_s=time.time())
    except StoreUnavailable as error:
        _log.warning("sweep_skipped", error=str(error))


async def _feed(batch_id: str, epoch: int, around: Surroundings) -> None:
    batch = around.batches.get(batch_id)
    backend = connect_backend(load_settings(StoreSettings))
    async with line_caller(load_settings(ApiSettings), backend, batch_id) as caller:
        await Feeder(
            batch=batch,
            epoch=epoch,
            around=around,
            caller=caller,
            is_stopping=is_stopping.is_set,
            expires_in_s=(batch.expires_ms - around.files.now_ms()) / 1000,
        ).run()


@cache
def surroundings() -> Surroundings:
    return connect_surroundings(load_settings(ApiSettings), load_settings(StoreSettings))
