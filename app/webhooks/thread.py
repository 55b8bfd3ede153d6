"""The deliverer of a process: a thread with an event loop of its own, beside whatever else the process does."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from app.settings import ApiSettings
from app.webhooks.deliverer import AT_ONCE, Deliverer, Outbox
from app.webhooks.sending import Sender
from tasks.settings import StoreSettings
from tasks.store.connection import connect
from tasks.store.outbox_store import OutboxStore

STOP_LIMIT_S = 2.0


class DelivererThread:
    def __init__(self, api: ApiSettings, store: StoreSettings, outbox: Outbox | None = None) -> None:
        self._settings = api
        self._outbox = outbox or OutboxStore(connect(store), store)
        self._loop = asyncio.new_event_loop()
        # Names are looked up there. By default it has a handful of threads, which a few slow names would occupy.
        self._loop.set_default_executor(ThreadPoolExecutor(AT_ONCE, thread_name_prefix="look-up"))
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new, and return soon."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_LIMIT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._deliver())

    async def _deliver(self) -> None:
        settings = self._settings
        async with Sender(settings.webhook_reach, timeout_s=settings.webhook_timeout_s) as sender:
            await Deliverer(
                outbox=self._outbox,
                sender=sender,
                signing_keys=settings.webhook_keys,
                timeout_s=settings.webhook_timeout_s,
            ).run(self._stop)
