"""Replay and live events together show every number once, whatever happens to pub/sub."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
import redis

from tasks.errors import JobNotFound, StoreUnavailable
from tasks.generation import GenerationRequest
from tasks.jobs import JobId, JobResult, JobState, Priority, WorkerId, new_job_id
from tasks.settings import StoreSettings
from tasks.store.admission_store import AdmissionStore
from tasks.store.connection import Client, connect
from tasks.store.hot_script import ThreadConnections
from tasks.store.job_store import JobStore
from tasks.store.lease_store import LeaseStore
from tasks.store.token_reader import LEAVE_DELAY_S, Follower, TokenReader
from tasks.store.token_writer import Chunk, TokenWriter
from tasks.stream_events import End, Started, Tokens


class Publisher:
    """A scripted attempt."""

    def __init__(self, client: Client, settings: StoreSettings, job_id: JobId | None = None) -> None:
        self.settings = settings
        self.jobs = JobStore(client, settings)
        self.leases = LeaseStore(client, settings)
        self.writer = TokenWriter(client)
        request = GenerationRequest(model="m", prompt="x")
        self.admission = AdmissionStore(client, settings).admit(
            job_id or new_job_id(), request, priority=Priority.DEFAULT, deadline_ms=None, idempotency_key=None
        )
        self.job_id = self.admission.job_id
        self.leases.claim(self.job_id, "m", WorkerId("w"))
        self.seq = 0

    def publish(self, count: int) -> None:
        for _ in range(count):
            self.seq += 1
            self.writer.append([Chunk(self.job_id, 1, self.seq, Tokens(text=f"t{self.seq} ", ids=(self.seq,)))])

    def finish(self) -> None:
        result = JobResult(text="", finish_reason="stop", usage=None)
        assert self.leases.finish(self.job_id, 1, JobState.SUCCEEDED, result=result)


@pytest.fixture
def publisher(store_settings: StoreSettings) -> Publisher:
    return Publisher(connect(store_settings), store_settings)


@pytest.fixture
async def reader(store_settings: StoreSettings) -> AsyncIterator[TokenReader]:
    async with running_reader(store_settings) as reader:
        yield reader


@asynccontextmanager
async def running_reader(settings: StoreSettings) -> AsyncIterator[TokenReader]:
    reader = TokenReader(settings)
    await reader.start()
    try:
        yield reader
    finally:
        await reader.close()


async def subscriber(settings: StoreSettings) -> dict[str, str]:
    """The server's record of the one connection that subscribes; empty while there is none."""
    clients = await asyncio.to_thread(connect(settings).client_list, "pubsub")
    return clients[0] if clients else {}


async def collect(reader: TokenReader, job_id: JobId, after_seq: int = 0) -> list[int]:
    return [seq async for seq, _ in reader.follow(job_id, after_seq) if seq is not None]


async def test_finished_stream_is_replayed_whole(reader: TokenReader, publisher: Publisher) -> None:
    publisher.publish(5)
    publisher.finish()
    events = [item async for item in reader.follow(publisher.job_id)]
    assert [seq for seq, _ in events] == [1, 2, 3, 4, 5, 6]
    assert isinstance(events[-1][1], End)
    assert await collect(reader, publisher.job_id, after_seq=4) == [5, 6]
    assert await collect(reader, publisher.job_id, after_seq=6) == []


async def test_unknown_job_is_not_found(reader: TokenReader) -> None:
    with pytest.raises(JobNotFound):
        await collect(reader, JobId("job_none"))


async def test_live_events_follow_the_replay(reader: TokenReader, publisher: Publisher) -> None:
    publisher.publish(3)
    stream = reader.follow(publisher.job_id)
    assert [(await anext(stream))[0] for _ in range(3)] == [1, 2, 3]
    await asyncio.to_thread(publisher.publish, 2)
    assert [(await anext(stream))[0] for _ in range(2)] == [4, 5]
    await asyncio.to_thread(publisher.writer.notify, [publisher.job_id], Started(attempt=1, worker="w"))
    assert await anext(stream) == (None, Started(attempt=1, worker="w"))
    await asyncio.to_thread(publisher.finish)
    assert [seq async for seq, _ in stream] == [6]


async def test_start_of_an_attempt_is_announced(reader: TokenReader, publisher: Publisher) -> None:
    released = publisher.leases.release(publisher.job_id, 1, failure=None)
    assert released is not None
    stream = reader.follow_batches(publisher.job_id)
    assert await anext(stream) == []
    await asyncio.to_thread(publisher.leases.claim, publisher.job_id, "m", WorkerId("w2"))
    assert await anext(stream) == [(None, Started(attempt=2, worker="w2"))]
    await stream.aclose()


async def test_many_readers_of_a_busy_stream_see_each_number_once(reader: TokenReader, publisher: Publisher) -> None:
    readers = [asyncio.create_task(collect(reader, publisher.job_id)) for _ in range(8)]
    await asyncio.to_thread(publisher.publish, 400)
    late = asyncio.create_task(collect(reader, publisher.job_id, after_seq=200))
    await asyncio.to_thread(publisher.finish)
    for seqs in await asyncio.gather(*readers):
        assert seqs == list(range(1, 402))
    assert await late == list(range(201, 402))


async def test_killed_subscription_costs_no_event(
    reader: TokenReader, publisher: Publisher, store_settings: StoreSettings
) -> None:
    admin = connect(store_settings)
    readers = [asyncio.create_task(collect(reader, publisher.job_id)) for _ in range(3)]
    for _ in range(5):
        await asyncio.to_thread(publisher.publish, 40)
        await asyncio.to_thread(admin.execute_command, "CLIENT", "KILL", "TYPE", "PUBSUB")
    await asyncio.to_thread(publisher.finish)
    for seqs in await asyncio.gather(*readers):
        assert seqs == list(range(1, 202))


async def replays_of_a_silent_stream(publisher: Publisher, settings: StoreSettings, beats: int) -> int:
    """How often it was read while nothing happened for so many beats; the first reading was before them."""
    client = connect(settings)
    async with running_reader(settings) as reader:
        stream = reader.follow_batches(publisher.job_id)
        await anext(stream)
        await asyncio.to_thread(client.config_resetstat)
        for _ in range(beats):
            assert await anext(stream) == []
        stats: dict[str, dict[str, int]] = await asyncio.to_thread(client.info, "commandstats")
        await stream.aclose()
    return stats.get("cmdstat_xrange", {"calls": 0})["calls"]


async def test_silent_stream_is_read_less_and_less_often(
    publisher: Publisher, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.token_reader.SILENCE_S", 0.01)
    monkeypatch.setattr("tasks.store.token_reader.MAX_SILENCE_S", 0.08)
    assert await replays_of_a_silent_stream(publisher, store_settings, 15) == 4  # behind beats 1, 3, 7 and 15
    assert await replays_of_a_silent_stream(publisher, store_settings, 39) == 7  # and 23, 31 and 39


async def test_lost_connection_is_made_up_for_without_waiting_for_silence(
    publisher: Publisher, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.token_reader.SILENCE_S", 60.0)
    async with running_reader(store_settings) as reader:
        stream = reader.follow_batches(publisher.job_id)
        await anext(stream)
        await asyncio.to_thread(connect(store_settings).execute_command, "CLIENT", "KILL", "TYPE", "PUBSUB")
        await asyncio.to_thread(publisher.publish, 3)
        async with asyncio.timeout(20):
            assert [seq for seq, _ in await anext(stream)] == [1, 2, 3]
        await stream.aclose()


async def test_subscription_outlives_silence(
    publisher: Publisher, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.token_reader.IDLE_PING_S", 0.02)
    monkeypatch.setattr("tasks.store.token_reader.SILENCE_S", 60.0)
    async with running_reader(store_settings) as reader:
        stream = reader.follow_batches(publisher.job_id)
        await anext(stream)
        first = await subscriber(store_settings)
        while int((await subscriber(store_settings))["tot-cmds"]) < int(first["tot-cmds"]) + 3:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(publisher.publish, 1)
        async with asyncio.timeout(5):
            assert [seq for seq, _ in await anext(stream)] == [1]
        assert (await subscriber(store_settings))["id"] == first["id"]
        await stream.aclose()


async def test_connection_without_an_answer_is_replaced(
    publisher: Publisher, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.token_reader.IDLE_PING_S", 0.02)
    async with running_reader(store_settings) as reader:
        following = asyncio.create_task(collect(reader, publisher.job_id))
        while not (first := await subscriber(store_settings)):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(connect(store_settings).execute_command, "CLIENT", "PAUSE", "200", "ALL")
        while (await subscriber(store_settings) or first)["id"] == first["id"]:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(publisher.publish, 3)
        await asyncio.to_thread(publisher.finish)
        assert await following == [1, 2, 3, 4]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All waits of a reader whose store is away."""
    for name in ("SILENCE_S", "READING_BEAT_S", "RETRY_PAUSE_S"):
        monkeypatch.setattr(f"tasks.store.token_reader.{name}", 0.01)


def take_away(reader: TokenReader, monkeypatch: pytest.MonkeyPatch, *, hangs: bool = False) -> asyncio.Event:
    """The store takes no readings, by refusing or by keeping silent, until the event is set."""
    is_back, xrange = asyncio.Event(), reader._client.xrange

    async def read(*args: object, **options: object) -> object:
        if hangs:
            await is_back.wait()
        if not is_back.is_set():
            raise redis.exceptions.ConnectionError("refused")
        return await xrange(*args, **options)

    monkeypatch.setattr(reader._client, "xrange", read)
    return is_back


@pytest.mark.parametrize("hangs", [False, True])
async def test_store_that_is_away_is_waited_for_beat_by_beat(
    reader: TokenReader, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, quick: None, hangs: bool
) -> None:
    publisher.publish(3)
    stream = reader.follow_batches(publisher.job_id)
    while not (first := await anext(stream)):  # a reading may take longer than a beat here
        pass
    assert [seq for seq, _ in first] == [1, 2, 3]
    is_back = take_away(reader, monkeypatch, hangs=hangs)
    await asyncio.to_thread(connect(publisher.settings).execute_command, "CLIENT", "KILL", "TYPE", "PUBSUB")
    await asyncio.to_thread(publisher.publish, 2)  # nobody hears these
    for _ in range(10):
        assert await anext(stream) == []
    is_back.set()
    await asyncio.to_thread(publisher.finish)
    assert [seq async for batch in stream for seq, _ in batch] == [4, 5, 6]


@pytest.mark.parametrize("hangs", [False, True])
async def test_store_that_stays_away_ends_the_reading_in_words(
    reader: TokenReader, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, quick: None, hangs: bool
) -> None:
    monkeypatch.setattr("tasks.store.token_reader.STREAM_PATIENCE_S", 0.1)
    take_away(reader, monkeypatch, hangs=hangs)
    with pytest.raises(StoreUnavailable, match="not answered for 0 s"):
        await collect(reader, publisher.job_id)


async def test_reader_of_a_store_that_is_away_can_leave(
    reader: TokenReader, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    take_away(reader, monkeypatch, hangs=True)
    stream = reader.follow_batches(publisher.job_id)
    assert await anext(stream) == []
    async with asyncio.timeout(5):
        await stream.aclose()
        while any(task.get_name() == "token-reader-replay" for task in asyncio.all_tasks()):
            await asyncio.sleep(0)


async def test_slow_reader_is_served_from_the_stream(
    reader: TokenReader, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.token_reader.MAX_BUFFERED_EVENTS", 10)
    stream = reader.follow_batches(publisher.job_id)
    await anext(stream)
    await asyncio.to_thread(publisher.publish, 50)
    await asyncio.to_thread(publisher.finish)
    seqs = [seq async for batch in stream for seq, _ in batch]
    assert seqs == list(range(1, 52))


async def test_channel_is_left_when_the_last_reader_goes(
    reader: TokenReader, publisher: Publisher, store_settings: StoreSettings
) -> None:
    publisher.publish(1)
    publisher.finish()
    await collect(reader, publisher.job_id)
    admin = connect(store_settings)
    async with asyncio.timeout(5):
        while await asyncio.to_thread(admin.pubsub_channels, "kw:live:*"):
            await asyncio.sleep(0.01)


async def listen_and_admit(reader: TokenReader, settings: StoreSettings) -> tuple[Follower, Publisher]:
    """Listening begins before the job exists."""
    client, job_id = connect(settings), new_job_id()
    follower = await reader.listen(job_id)
    async with asyncio.timeout(5):
        while not await asyncio.to_thread(client.pubsub_channels, "kw:live:*"):
            await asyncio.sleep(0.01)
    return follower, await asyncio.to_thread(Publisher, client, settings, job_id)


async def test_reader_that_heard_the_admission_reads_no_stream(
    reader: TokenReader, store_settings: StoreSettings
) -> None:
    follower, publisher = await listen_and_admit(reader, store_settings)
    assert publisher.admission.is_heard
    await asyncio.to_thread(publisher.publish, 3)
    await asyncio.to_thread(publisher.finish)
    await asyncio.to_thread(connect(store_settings).config_resetstat)
    batches = reader.follow_batches(publisher.job_id, follower=follower)
    assert [seq async for batch in batches for seq, _ in batch] == [None, 1, 2, 3, 4]
    assert "cmdstat_xrange" not in await asyncio.to_thread(connect(store_settings).info, "commandstats")


async def test_reader_that_heard_the_admission_and_lost_its_connection_replays(
    reader: TokenReader, store_settings: StoreSettings
) -> None:
    follower, publisher = await listen_and_admit(reader, store_settings)
    batches = reader.follow_batches(publisher.job_id, follower=follower)
    await asyncio.to_thread(connect(store_settings).execute_command, "CLIENT", "KILL", "TYPE", "PUBSUB")
    await asyncio.to_thread(publisher.publish, 3)
    await asyncio.to_thread(publisher.finish)
    assert [seq async for batch in batches for seq, _ in batch if seq is not None] == [1, 2, 3, 4]


def test_admission_of_a_job_that_nobody_listens_to_is_not_heard(publisher: Publisher) -> None:
    assert not publisher.admission.is_heard


async def test_ignored_listener_leaves_its_channel(reader: TokenReader, store_settings: StoreSettings) -> None:
    follower, _ = await listen_and_admit(reader, store_settings)
    await reader.ignore(follower)
    async with asyncio.timeout(5):
        while await asyncio.to_thread(connect(store_settings).pubsub_channels, "kw:live:*"):
            await asyncio.sleep(0.01)


async def test_reading_that_is_given_up_at_once_leaves_its_channel(
    reader: TokenReader, publisher: Publisher, store_settings: StoreSettings
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):  # as `?wait=` of a microsecond does
            await collect(reader, publisher.job_id)
    other, _ = await listen_and_admit(reader, store_settings)  # by then the server was asked for both
    await reader.ignore(other)
    async with asyncio.timeout(5):
        while await asyncio.to_thread(connect(store_settings).pubsub_channels, "kw:live:*"):
            await asyncio.sleep(0.01)


async def test_channel_that_is_left_after_the_end_opens_no_connection(store_settings: StoreSettings) -> None:
    async with running_reader(store_settings) as reader:
        follower = await reader.listen(new_job_id())
        async with asyncio.timeout(5):
            while not await subscriber(store_settings):
                await asyncio.sleep(0.01)
    admin = connect(store_settings)
    known = {each["id"] for each in admin.client_list()}
    await reader.ignore(follower)
    await asyncio.sleep(2 * LEAVE_DELAY_S)
    assert {each["id"] for each in admin.client_list()} <= known


def test_many_threads_one_after_the_other_write_over_one_connection(
    publisher: Publisher, store_settings: StoreSettings
) -> None:
    """A worker has a writing thread per runner, and hundreds of runners in its life."""
    admin = connect(store_settings)
    publisher.publish(1)  # the script is loaded
    before = admin.info("stats")["total_connections_received"]
    for _ in range(150):
        thread = threading.Thread(target=publisher.publish, args=(1,))
        thread.start()
        thread.join()
    last = publisher.jobs.get(publisher.job_id)
    assert last.last_seq == 151
    # All 150 write over one; the server counts those of everybody else who uses it, too.
    assert admin.info("stats")["total_connections_received"] < before + 15


def test_threads_that_live_at_once_have_a_connection_each(store_settings: StoreSettings) -> None:
    connections = ThreadConnections(connect(store_settings))
    at_once = threading.Barrier(4)

    def get(_: int) -> object:
        connection = connections.get()
        at_once.wait(10)
        return connection

    used: list[set[object]] = []
    for _ in range(2):  # the second time what the threads before have left
        with ThreadPoolExecutor(4) as threads:
            used.append(set(threads.map(get, range(4))))
    assert len(used[0]) == 4
    assert used[1] == used[0]


async def test_more_readers_than_connections_replay_at_once(publisher: Publisher, reader: TokenReader) -> None:
    """As when a thousand streams of one front fall silent in the same second."""
    publisher.publish(3)
    publisher.finish()

    async def read() -> list[int | None]:
        return [seq async for seq, _ in reader.follow(publisher.job_id)]

    assert await asyncio.gather(*(read() for _ in range(300))) == [[1, 2, 3, 4]] * 300
