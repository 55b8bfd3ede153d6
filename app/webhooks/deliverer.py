"""Deliver what is in the outbox. Any number of deliverers may run: a message is leased to one of them.

A deliverer that dies after the receiver has the message and before the outbox knows leaves it to the end of the lease;
then it is sent again, with the same `webhook-id`. So delivery is at least once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

import structlog
from anyio import to_thread

from app.webhooks.signing import parse_secret, signed_headers
from tasks.errors import StoreUnavailable
from tasks.failpoints import failpoint
from tasks.webhooks import RETRY_DELAYS_S, Delivered, Message, NotDelivered, Outcome, next_try_s, wording

AT_ONCE = 32
AT_ONCE_PER_ORIGIN = 8  # a receiver that hangs must not hold up the others
LOOK_S = 0.5  # how often the outbox is looked at
PUT_BACK_S = 2.0  # a message of a receiver that is busy with others; longer the more of them there are
MAX_PUT_BACK_S = 60.0
STORE_AWAY_S = 2.0
LEASE_SLACK_S = 15.0  # beyond the longest try: to write down what became of it

_log = structlog.get_logger(__name__)


class Outbox(Protocol):
    """Blocking. Every method may raise StoreUnavailable."""

    def claim(self, count: int, lease_s: float) -> list[Message]: ...

    def delivered(self, message: Message) -> bool: ...

    def failed(self, message: Message, reason: str, next_try_s: float) -> bool: ...

    def given_up(self, message: Message, reason: str) -> bool: ...

    def put_back(self, message: Message, for_s: float) -> bool: ...


class Poster(Protocol):
    async def post(self, target: str, body: bytes, headers: Mapping[str, str]) -> Outcome: ...


@dataclass(slots=True, kw_only=True)
class Deliverer:
    outbox: Outbox
    sender: Poster
    signing_keys: Sequence[bytes]  # of messages that bring no secret of their own
    timeout_s: float  # of one try
    delays_s: tuple[float, ...] = RETRY_DELAYS_S
    jitter: Callable[[], float] = random.random
    clock: Callable[[], float] = time.time  # receivers compare it with theirs
    _in_flight: set[asyncio.Task[None]] = field(default_factory=set)
    _per_origin: Counter[str] = field(default_factory=Counter)
    _num_put_back: Counter[str] = field(default_factory=Counter)  # of each since it was last done with one

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop; what is under way then is left to its lease."""
        try:
            while not stop.is_set():
                try:
                    num_taken = await self.turn()
                    pause_s = 0.0 if num_taken and len(self._in_flight) < AT_ONCE else LOOK_S
                except StoreUnavailable as error:
                    _log.warning("outbox_not_read", error=str(error))
                    pause_s = STORE_AWAY_S
                except Exception:  # nobody would notice that this loop has ended
                    _log.exception("deliverer_broke")
                    pause_s = STORE_AWAY_S
                if pause_s:
                    await _wait(stop, pause_s)
        finally:
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)

    async def turn(self) -> int:
        """Take what is due, as far as there is room, and begin to send it; how many."""
        room = AT_ONCE - len(self._in_flight)
        if not room:
            return 0
        messages = await to_thread.run_sync(self.outbox.claim, room, self.timeout_s + LEASE_SLACK_S)
        for message in messages:
            task = asyncio.create_task(self._deliver(message))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
        return len(messages)

    async def idle(self) -> None:
        """Until nothing is under way."""
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    async def _deliver(self, message: Message) -> None:
        where = message.webhook.origin
        log = _log.bind(event_id=message.event_id, origin=where, number=message.number)
        try:
            if self._per_origin[where] >= AT_ONCE_PER_ORIGIN:
                self._num_put_back[where] += 1
                wait_s = PUT_BACK_S * (1 + self._num_put_back[where] / AT_ONCE_PER_ORIGIN)
                await to_thread.run_sync(self.outbox.put_back, message, min(wait_s, MAX_PUT_BACK_S))
                return
            self._per_origin[where] += 1
            try:
                outcome = await self._send(message)
            finally:
                self._per_origin[where] -= 1
                self._num_put_back.pop(where, None)
                if not self._per_origin[where]:
                    del self._per_origin[where]
            failpoint("webhook_posted")
            await self._settle(message, outcome, log)
        except StoreUnavailable as error:
            log.warning("webhook_not_settled", error=str(error))  # sent again when its lease is over
        except Exception:
            log.exception("webhook_broke")  # idem; its tries are counted

    async def _send(self, message: Message) -> Outcome:
        if message.number > len(self.delays_s) + 1:  # deliverers died with it, one after the other
            return NotDelivered("abandoned", is_final=True)
        own = message.webhook.secret
        body = wording(message, datetime.fromtimestamp(message.ended_ms / 1000, UTC).isoformat())
        signing_keys = self.signing_keys if own is None else (parse_secret(own),)
        if not signing_keys:  # the setting was taken away meanwhile
            return NotDelivered("no_secret")
        headers = signed_headers(message.event_id, int(self.clock()), body, signing_keys)
        return await self.sender.post(message.webhook.url, body, headers)

    async def _settle(self, message: Message, outcome: Outcome, log: structlog.stdlib.BoundLogger) -> None:
        if isinstance(outcome, Delivered):
            if await to_thread.run_sync(self.outbox.delivered, message):
                log.info("webhook_delivered")
            return
        wait_s = next_try_s(outcome, message.number, self.jitter(), self.delays_s)
        if wait_s is None:
            if await to_thread.run_sync(self.outbox.given_up, message, outcome.reason):
                log.error("webhook_dead", reason=outcome.reason)
        elif await to_thread.run_sync(partial(self.outbox.failed, message, outcome.reason, wait_s)):
            log.warning("webhook_failed", reason=outcome.reason, next_try_s=round(wait_s, 1))


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return
