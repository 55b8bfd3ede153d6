"""Telling the store that nobody waits for a job any more, at once or when a store that is away is back.

Otherwise a job would be computed for nobody whose client left, or was told to, while the store was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import structlog
from anyio import to_thread

from tasks.errors import NotFound, StoreUnavailable
from tasks.jobs import JobId

RETRY_S = 1.0
PATIENCE_S = 600.0  # a job that is still not given up then is left to its deadline, or to its end

Tell = Callable[[], object]  # blocks; may be called again when a reply got lost
_log = structlog.get_logger(__name__)


class Departures:
    """Of one front and its event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owed: deque[tuple[Tell, JobId, float]] = deque()  # with the time at which it is too late
        self._paying: asyncio.Task[None] | None = None

    async def tell(self, tell: Tell, job_id: JobId) -> None:
        """Raises nothing for a job that is gone, or for a store that is away: that is told in the background."""
        try:
            await to_thread.run_sync(tell)
        except NotFound:
            return
        except StoreUnavailable as error:
            _log.warning("departure_not_told_yet", job_id=job_id, error=str(error))
            self._owed.append((tell, job_id, self._clock() + PATIENCE_S))
            if self._paying is None or self._paying.done():
                self._paying = asyncio.create_task(self._pay(), name="departures")

    async def close(self) -> None:
        """What the store has not been told by now, it will not be."""
        if self._paying is not None:
            self._paying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._paying
        if self._owed:
            _log.warning("departures_untold", job_ids=[job_id for _, job_id, _ in self._owed])

    async def _pay(self) -> None:
        """One after the other, oldest first: a store that can't take the one can't take the next."""
        await asyncio.sleep(RETRY_S)
        while self._owed:
            tell, job_id, too_late_at = self._owed[0]
            try:
                await to_thread.run_sync(tell, abandon_on_cancel=True)
            except StoreUnavailable:
                if self._clock() < too_late_at:
                    await asyncio.sleep(RETRY_S)
                    continue
                _log.warning("departure_untold", job_id=job_id)
            except NotFound:
                pass
            except Exception as error:  # it keeps none of the others from being told
                _log.warning("departure_untold", job_id=job_id, error=repr(error))
            self._owed.popleft()
