"""Read side of the token streams: replay from the Redis Stream, then follow live, without gap or repeat.

Pub/sub gives latency, the stream gives truth. A follower subscribes first, then replays, then passes on live events;
it drops numbers that it has seen, and reads the stream again on a gap, on overflow, after a reconnect, and on silence
(a lost *last* message has no successor that would show the gap): after one second, then after two more, four, eight.
A store that is away is waited for: the follower goes on at its next event once the store is back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import structlog

from tasks.errors import JobNotFound, StoreUnavailable
from tasks.jobs import JobId, JobState
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import STREAM_PATIENCE_S, connect_async, store_errors
from tasks.stream_events import End, StreamEvent, decode_event, decode_numbered

SILENCE_S = 1.0  # after this long without a live event the stream is read, and somebody may want to know
MAX_SILENCE_S = 8.0  # between two readings of a stream that stays silent: hundreds of jobs may wait in a line
READING_BEAT_S = 1.0  # while a stream is being read, or a store waited for: somebody may want to know
RETRY_PAUSE_S = 0.5  # between two tries to read a stream while the store is away
MAX_BUFFERED_EVENTS = 1024  # per follower; a slower client is served from the stream instead
RECONNECT_PAUSE_S = 0.2
MAX_REPLAYS = 32  # at a time: a thousand streams fall silent together, and the client has a hundred connections at most
LEAVE_DELAY_S = 0.2  # a channel that nobody follows any more is left with the next one that is joined, or after this
IDLE_PING_S = 10.0  # a connection that stays silent for longer than this after a PING is replaced

SeqEvent = tuple[int | None, StreamEvent]
_log = structlog.get_logger(__name__)


class TokenReader:
    """One pub/sub connection for all followers of this process."""

    def __init__(self, settings: StoreSettings) -> None:
        self._client = connect_async(settings)
        self._listener = connect_async(settings, reply_timeout_s=None)
        self._subscriptions = _Subscriptions(self._listener.connection_pool.make_connection())
        self._replaying = asyncio.Semaphore(MAX_REPLAYS)

    async def start(self) -> None:
        """Begin to listen; a store that is down is waited for in the background."""
        self._subscriptions.start()

    async def close(self) -> None:
        await self._subscriptions.close()
        await self._client.aclose()
        await self._listener.aclose()

    async def listen(self, job_id: JobId) -> Follower:
        """Ask for everything that is published about a job from now on, also one that is yet to be admitted.

        The server is being asked when this returns. What it returns goes to `follow_batches` or to `ignore`."""
        follower = Follower(keys.live(job_id).encode())
        self._subscriptions.add(follower)
        try:
            await asyncio.sleep(0)  # the turn in which the server is asked
        except BaseException:  # its task is cancelled: nobody else knows of it
            self._subscriptions.discard(follower)
            raise
        return follower

    async def ignore(self, follower: Follower) -> None:
        self._subscriptions.discard(follower)

    async def follow_batches(
        self, job_id: JobId, after_seq: int = 0, *, follower: Follower | None = None
    ) -> AsyncGenerator[list[SeqEvent], None]:
        """Yield lists of (seq, event) as they become available; seq is None for notices. Ends after `End`.

        An empty list is yielded about every second of silence, also while the store is away. `follower`: one that
        listened when the job was admitted; then nothing is replayed before there is a reason. Raises JobNotFound, and
        StoreUnavailable after STREAM_PATIENCE_S."""
        seen = after_seq
        is_replay_due = follower is None
        if follower is None:
            follower = await self.listen(job_id)
        silence = _Silence()
        try:
            if is_replay_due:
                await self._subscriptions.confirmed(follower)
            while True:
                live = follower.take()
                batch: list[SeqEvent] = []
                if is_replay_due or follower.has_missed or _has_gap(live, seen):
                    follower.has_missed = False
                    is_replay_due = False
                    reading = asyncio.create_task(self._read(job_id, seen), name="token-reader-replay")
                    try:
                        while not (await asyncio.wait({reading}, timeout=READING_BEAT_S))[0]:
                            yield []
                    finally:
                        reading.cancel()
                    batch, is_over = reading.result()
                    if is_over:
                        return
                    seen += len(batch)
                for seq, payload in live:
                    if seq == seen + 1:
                        seen = seq
                        batch.append((seq, decode_event(payload)))
                    elif seq == 0 and not _is_over(batch):
                        batch.append((None, decode_event(payload)))
                    elif seq > seen:
                        is_replay_due = True  # the stream was read before this one was written
                        break
                yield batch
                if _is_over(batch):
                    return
                if batch:
                    silence = _Silence()
                if not is_replay_due:
                    is_replay_due = not await follower.wait(SILENCE_S) and silence.calls_for_replay()
        finally:
            self._subscriptions.discard(follower)

    async def follow(self, job_id: JobId, after_seq: int = 0) -> AsyncGenerator[SeqEvent, None]:
        """`follow_batches`, one event at a time and without the empty beats."""
        async with contextlib.aclosing(self.follow_batches(job_id, after_seq)) as batches:
            async for batch in batches:
                for item in batch:
                    yield item

    async def _read(self, job_id: JobId, after_seq: int) -> tuple[list[SeqEvent], bool]:
        """`_replay`, as soon as there is a store to do it."""
        reason: StoreUnavailable | None = None
        try:
            async with asyncio.timeout(STREAM_PATIENCE_S):
                while True:
                    try:
                        with store_errors():
                            async with self._replaying:
                                return await self._replay(job_id, after_seq)
                    except StoreUnavailable as error:
                        reason = error
                    await asyncio.sleep(RETRY_PAUSE_S)
        except TimeoutError:
            raise StoreUnavailable(
                f"The store has not answered for {STREAM_PATIENCE_S:.0f} s. Ask again when it is back: what has an "
                "Idempotency-Key, was posted to /v1/jobs or runs in the background goes on meanwhile; any other job is "
                "cancelled."
            ) from reason

    async def _replay(self, job_id: JobId, after_seq: int) -> tuple[list[SeqEvent], bool]:
        """Stored events after `after_seq`, and whether nothing will ever follow them."""
        entries = await self._client.xrange(keys.stream(job_id), min=f"(0-{after_seq}")
        if entries:
            return [(int(entry_id[2:]), decode_numbered(fields[b"e"])) for entry_id, fields in entries], False
        state, last_seq = await self._client.hmget(keys.job(job_id), "state", "seq")
        if state is None:
            raise JobNotFound(job_id)
        return [], JobState(state.decode()).is_terminal and int(last_seq) <= after_seq


class _Silence:
    """When a stream that is silent is to be read next, in beats of SILENCE_S."""

    def __init__(self) -> None:
        self._interval = 1
        self._beats_left = 1

    def calls_for_replay(self) -> bool:
        """Count one more beat."""
        self._beats_left -= 1
        if self._beats_left > 0:
            return False
        self._interval = self._beats_left = min(2 * self._interval, int(MAX_SILENCE_S / SILENCE_S))
        return True


class Follower:
    """Live messages of one reader, bounded."""

    def __init__(self, channel: bytes) -> None:
        self.channel = channel
        self._messages: list[tuple[int, bytes]] = []
        self._waiter: asyncio.Future[None] | None = None
        self.has_missed = False  # something that was published: the stream is to be read

    def put(self, seq: int, payload: bytes) -> None:
        if len(self._messages) >= MAX_BUFFERED_EVENTS:
            self._messages.clear()
            self.has_missed = True
        self._messages.append((seq, payload))
        self._wake()

    def miss(self) -> None:
        """Nothing was heard for a while."""
        self.has_missed = True
        self._wake()

    def take(self) -> list[tuple[int, bytes]]:
        messages, self._messages = self._messages, []
        return messages

    async def wait(self, timeout_s: float) -> bool:
        """True when something arrived or was missed, False after the timeout."""
        if not self._messages and not self.has_missed:
            # Once per token: a bare timer costs a fraction of asyncio.timeout.
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return bool(self._messages) or self.has_missed

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Subscriptions:
    """The connection behind all followers: SUBSCRIBE by reference count, dispatch, reconnect.

    To send a command costs far more than to word it, so all that is asked for in one turn of the loop goes out at once,
    and with it what is no longer wanted."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._followers: dict[bytes, set[Follower]] = {}
        self._confirmed: dict[bytes, asyncio.Event] = {}
        self._changes: dict[bytes, bool] = {}  # channels to join (True) or to leave, not told to the server yet
        self._is_telling_due = False
        self._telling: asyncio.Task[None] | None = None  # the newest one
        self._leaving: asyncio.TimerHandle | None = None
        self._pump: asyncio.Task[None] | None = None
        self._has_heard = False  # anything, since the watch looked last
        self._is_ready = False  # the handshake is over: only then may others write, and only the pump ever reads

    def start(self) -> None:
        self._pump = asyncio.create_task(self._listen_forever(), name="token-reader")

    async def close(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        self._is_ready = False  # who leaves a channel later must not connect again
        if self._pump is not None:
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump
        await self._connection.disconnect()

    def add(self, follower: Follower) -> None:
        """Asks the server in the next turn of the loop."""
        channel = follower.channel
        self._followers.setdefault(channel, set()).add(follower)
        if channel not in self._confirmed:
            self._confirmed[channel] = asyncio.Event()
            self._changes[channel] = True
            self._tell_soon()

    async def confirmed(self, follower: Follower) -> None:
        """Returns once the server has confirmed, so that nothing published later is missed."""
        try:
            async with asyncio.timeout(SILENCE_S):
                await self._confirmed[follower.channel].wait()
        except TimeoutError:
            # The connection is being replaced: until it is back, silence makes the follower read the stream.
            _log.warning("live_channel_unconfirmed")

    def discard(self, follower: Follower) -> None:
        channel = follower.channel
        followers = self._followers.get(channel, set())
        followers.discard(follower)
        if followers:
            return
        self._followers.pop(channel, None)
        if self._confirmed.pop(channel, None) is not None:
            self._changes[channel] = False
            if self._leaving is None:
                self._leaving = asyncio.get_running_loop().call_later(LEAVE_DELAY_S, self._tell_soon)

    def _tell_soon(self) -> None:
        if not self._is_telling_due:
            self._is_telling_due = True
            self._telling = asyncio.create_task(self._tell_changes(), name="token-reader-changes")

    async def _tell_changes(self) -> None:
        changes, self._changes = self._changes, {}
        self._is_telling_due = False
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        joined = tuple(channel for channel, is_wanted in changes.items() if is_wanted)
        left = tuple(channel for channel, is_wanted in changes.items() if not is_wanted)
        commands: list[tuple[str | bytes, ...]] = [("SUBSCRIBE", *joined)] if joined else []
        if left:
            commands.append(("UNSUBSCRIBE", *left))
        await self._send(*commands)

    async def _send(self, *commands: tuple[str | bytes, ...]) -> None:
        """Does nothing while the connection is being replaced: the pump subscribes to everything afterwards."""
        if self._is_ready and commands:
            packed = self._connection.pack_commands(commands)
            with contextlib.suppress(StoreUnavailable), store_errors():
                await self._connection.send_packed_command(b"".join(packed), check_health=False)

    async def _listen_forever(self) -> None:
        while True:
            try:
                with store_errors():
                    await self._connection.connect()
                    self._is_ready = True
                    if self._followers:
                        await self._send(("SUBSCRIBE", *self._followers))
                    await self._listen()
            except StoreUnavailable as error:
                self._is_ready = False
                _log.warning("live_connection_lost", error=str(error))
                await self._connection.disconnect()
                await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _listen(self) -> None:
        watch = asyncio.create_task(self._watch(), name="token-reader-watch")
        try:
            while True:
                # Without a timeout: silence is normal here, and redis-py closes a connection whose read is cancelled.
                self._take(await self._connection.read_response(disable_decoding=True))
                self._has_heard = True
        finally:
            watch.cancel()

    def _take(self, reply: list[Any]) -> None:
        if reply[0] == b"message":
            seq, _, payload = reply[2].partition(b" ")
            for follower in self._followers.get(reply[1], ()):
                follower.put(int(seq), payload)
        elif reply[0] == b"subscribe" and (confirmed := self._confirmed.get(reply[1])):
            if confirmed.is_set():  # a new connection took the place of another
                for follower in self._followers.get(reply[1], ()):
                    follower.miss()
            confirmed.set()

    async def _watch(self) -> None:
        """PING a connection that is silent, and close one that stays so: then its read fails."""
        has_pinged = False
        while True:
            self._has_heard = False
            await asyncio.sleep(IDLE_PING_S)
            if self._has_heard:
                has_pinged = False
            elif has_pinged:
                await self._connection.disconnect(nowait=True)
                return
            else:
                has_pinged = True
                await self._send(("PING",))


def _is_over(batch: list[SeqEvent]) -> bool:
    return bool(batch) and isinstance(batch[-1][1], End)


def _has_gap(live: list[tuple[int, bytes]], seen: int) -> bool:
    for seq, _ in live:
        if seq > seen + 1:
            return True
        seen = max(seen, seq)
    return False
