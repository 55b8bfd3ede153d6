"""Lines on their way through the window, with a scripted front and file content in memory."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.batches.contents import Contents
from app.batches.input_file import index_lines
from app.batches.line_call import LineAnswer
from app.batches.lines import MAX_ENTERING, Lines
from app.batches.results import Results
from tasks.batches import Batch, BatchState, line_key
from tasks.errors import FileMissing, InvalidSetting
from tasks.jobs import JobId

CHAT = "/v1/chat/completions"
BATCH = Batch(
    id="batch_1", state=BatchState.IN_PROGRESS, endpoint=CHAT, input_file_id="file-1", created_ms=0, expires_ms=1
)
OK = b'{"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}'


@pytest.fixture
def contents(request: pytest.FixtureRequest) -> Contents:
    return Contents(f"memory://{request.node.name}", Path("/nowhere"))


@dataclass
class Admissions:
    """Jobs by the keys of their lines."""

    by_key: dict[str, JobId] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)

    def of_keys(self, idempotency_keys: list[str]) -> list[JobId | None]:
        self.looked_up += idempotency_keys
        return [self.by_key.get(key) for key in idempotency_keys]

    def forget(self, ended: dict[str, JobId]) -> None:
        self.forgotten += ended


@dataclass
class Stage:
    """The surroundings of some lines, and a front that answers when told to."""

    contents: Contents
    window: int = 4
    warm: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    open: dict[str, asyncio.Future[LineAnswer]] = field(default_factory=dict)
    most_at_once: int = 0
    is_ending: bool = False
    admissions: Admissions = field(default_factory=Admissions)
    cancelled: list[JobId] = field(default_factory=list)
    holds_door: bool = False  # requests come in only when they are let in
    at_door: dict[str, Callable[[], None]] = field(default_factory=dict)

    def lines(self, *models: str, epoch: int = 1) -> Lines:
        """One request per model name."""
        requests = [
            {"custom_id": f"r{number}", "url": CHAT, "body": {"model": model, "number": number}}
            for number, model in enumerate(models, start=1)
        ]
        source = io.BytesIO(b"".join(json.dumps(request).encode() + b"\n" for request in requests))
        results = Results(self.contents, BATCH.id, epoch)
        results.load()
        around: Any = self
        return Lines(
            batch=BATCH,
            index=index_lines(source, CHAT, max_line_bytes=1000),
            source=source,
            results=results,
            caller=self,
            around=around,
            must_end=lambda: self.is_ending,
        )

    async def call(
        self, endpoint: str, body: dict, idempotency_key: str, on_admitted: Callable[[], None]
    ) -> LineAnswer:
        self.asked.append(f"{body['model']}{body['number']}")
        if self.holds_door:
            self.at_door[idempotency_key] = on_admitted
        else:
            on_admitted()
        self.admissions.by_key[idempotency_key] = JobId(f"job of {idempotency_key}")
        future = self.open[idempotency_key] = asyncio.get_running_loop().create_future()
        self.most_at_once = max(self.most_at_once, len(self.open))
        try:
            return await future
        finally:
            del self.open[idempotency_key]

    def warm_models(self, names: tuple[str, ...]) -> set[str]:
        return self.warm & set(names)

    def cancel_job(self, job_id: JobId) -> None:
        self.cancelled.append(job_id)
        for key, future in list(self.open.items()):
            if self.admissions.by_key[key] == job_id:
                future.get_loop().call_soon_threadsafe(future.set_result, answer(409, key, "job_cancelled"))

    def answer_all(self) -> None:
        for key, future in list(self.open.items()):
            if not future.done():
                future.set_result(answer(200, key))


def answer(status: int, key: str, code: str | None = None, *, retry_after_s: float | None = None) -> LineAnswer:
    return LineAnswer(
        status=status,
        request_id="req_1",
        body=OK if status == 200 else b'{"error":{}}',
        job_ids=(JobId(f"job of {key}"),),
        error_code=code,
        retry_after_s=retry_after_s,
    )


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def saved(contents: Contents, results: Results, *, is_ok: bool) -> dict[str, Any]:
    """The output or error file, by custom_id; each must come once."""
    results.write_file("file-out", is_ok=is_ok)
    try:
        entries = [msgspec.json.decode(line) for line in b"".join(contents.blocks("files/file-out")).splitlines()]
    except FileMissing:
        return {}
    by_id = {entry["custom_id"]: entry for entry in entries}
    assert len(by_id) == len(entries)
    return by_id


async def test_no_more_lines_than_the_window_are_under_way(contents: Contents):
    stage = Stage(contents, window=3)
    lines = stage.lines(*["m"] * 10)
    feeding = asyncio.create_task(lines.feed())
    while not feeding.done():
        await until(lambda: feeding.done() or len(stage.open) == 3 or (len(stage.asked) == 10 and stage.open))
        stage.answer_all()
        await asyncio.sleep(0)
    assert stage.most_at_once == 3
    await lines.flush()
    assert lines.is_complete()
    assert len(saved(contents, lines.results, is_ok=True)) == 10
    counts = lines.results.counts(10)
    assert (counts.completed, counts.input_tokens, counts.cached_tokens, counts.output_tokens) == (10, 30, 10, 20)
    assert sorted(stage.admissions.forgotten) == sorted(line_key(BATCH.id, number) for number in range(1, 11))


async def test_long_requests_are_bounded_by_their_bytes_too(contents: Contents, monkeypatch: pytest.MonkeyPatch):
    stage = Stage(contents, window=100)
    lines = stage.lines(*["m"] * 6)
    monkeypatch.setattr("app.batches.lines.MAX_WINDOW_BYTES", lines.index.sizes[0] * 2)
    feeding = asyncio.create_task(lines.feed())
    while not feeding.done():
        await until(lambda: feeding.done() or len(stage.open) == 2)
        stage.answer_all()
        await asyncio.sleep(0)
    assert stage.most_at_once == 2


async def test_models_are_asked_one_after_the_other(contents: Contents):
    stage = Stage(contents, window=10)
    feeding = asyncio.create_task(stage.lines("a", "b", "a", "b").feed())
    await until(lambda: len(stage.open) == 2)
    assert sorted(stage.asked) == ["a1", "a3"]
    stage.answer_all()
    await until(lambda: len(stage.asked) == 4)
    stage.answer_all()
    await feeding


async def test_warm_models_are_asked_first_and_together(contents: Contents):
    stage = Stage(contents, window=10, warm={"b", "c"})
    feeding = asyncio.create_task(stage.lines("a", "b", "c").feed())
    await until(lambda: len(stage.open) == 2)
    assert sorted(stage.asked) == ["b2", "c3"]
    stage.answer_all()
    await until(lambda: "a1" in stage.asked)
    stage.answer_all()
    await feeding


async def test_refusal_for_the_moment_is_asked_again_and_never_written_down(contents: Contents):
    stage = Stage(contents)
    lines = stage.lines("m")
    feeding = asyncio.create_task(lines.feed())
    await until(lambda: len(stage.open) == 1)
    (key,) = stage.open
    stage.open[key].set_result(answer(429, key, "queue_full", retry_after_s=0))
    await until(lambda: len(stage.asked) == 2)
    stage.answer_all()
    await feeding
    await lines.flush()
    assert saved(contents, lines.results, is_ok=False) == {}
    assert set(saved(contents, lines.results, is_ok=True)) == {"r1"}


async def test_wind_down_cancels_what_runs_and_names_every_other_line(contents: Contents):
    stage = Stage(contents, window=2)
    lines = stage.lines(*["m"] * 5)
    feeding = asyncio.create_task(lines.feed())
    await until(lambda: len(stage.open) == 2)
    first = line_key(BATCH.id, 1)
    stage.open[first].set_result(answer(200, first))
    await until(lambda: first not in stage.open and len(stage.open) == 2)
    stage.is_ending = True
    stage.admissions.looked_up.clear()
    stage.open[line_key(BATCH.id, 2)].set_result(answer(400, line_key(BATCH.id, 2), "invalid_request"))
    await feeding
    await lines.wind_down(BatchState.CANCELLED)
    await lines.flush()
    assert lines.is_complete()
    assert stage.cancelled == [JobId(f"job of {line_key(BATCH.id, 3)}")]
    assert set(saved(contents, lines.results, is_ok=True)) == {"r1"}
    errors = saved(contents, lines.results, is_ok=False)
    assert errors["r2"]["response"]["status_code"] == 400
    assert {errors[name]["error"]["code"] for name in ("r3", "r4", "r5")} == {"batch_cancelled"}
    assert len(stage.asked) == 3
    # All that is open once, and then only what was under way: the rest can't have got a job.
    own = line_key(BATCH.id, 3)
    assert stage.admissions.looked_up[:3] == [own, line_key(BATCH.id, 4), line_key(BATCH.id, 5)]
    assert set(stage.admissions.looked_up[3:]) <= {own}


async def test_input_is_never_read_in_the_event_loop(contents: Contents):
    stage = Stage(contents)
    lines = stage.lines("m", "m", "m")
    readers: set[int] = set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            readers.add(threading.get_ident())
            return super().read(size)

    lines.source.seek(0)
    lines.source = Watched(lines.source.read())
    feeding = asyncio.create_task(lines.feed())
    await until(lambda: len(stage.open) == 3)
    stage.is_ending = True
    stage.open[line_key(BATCH.id, 1)].set_result(answer(200, line_key(BATCH.id, 1)))
    await feeding
    await lines.wind_down(BatchState.CANCELLED)
    assert lines.is_complete()
    assert readers
    assert threading.get_ident() not in readers


async def test_wind_down_after_a_crash_asks_for_the_answers_of_jobs_that_were_under_way(contents: Contents):
    stage = Stage(contents)
    key = line_key(BATCH.id, 2)
    stage.admissions.by_key[key] = JobId(f"job of {key}")  # of a feeder that died
    stage.is_ending = True
    lines = stage.lines("m", "m", "m")
    winding_down = asyncio.create_task(lines.wind_down(BatchState.EXPIRED))
    await until(lambda: len(stage.open) == 1)
    stage.answer_all()
    await winding_down
    await lines.flush()
    assert stage.asked == ["m2"]
    assert set(saved(contents, lines.results, is_ok=True)) == {"r2"}
    errors = saved(contents, lines.results, is_ok=False)
    assert {entry["error"]["code"] for entry in errors.values()} == {"batch_expired"}


async def test_next_feeder_asks_only_for_what_was_not_written_down(contents: Contents):
    stage = Stage(contents, window=2)
    lines = stage.lines("m", "m", "m")
    feeding = asyncio.create_task(lines.feed())
    await until(lambda: len(stage.open) == 2)
    stage.answer_all()
    await until(lambda: len(stage.asked) == 3)
    await lines.flush()
    feeding.cancel()
    await lines.abandon()
    stage.asked.clear()
    heir = stage.lines("m", "m", "m", epoch=2)
    feeding = asyncio.create_task(heir.feed())
    await until(lambda: len(stage.open) == 1)
    stage.answer_all()
    await feeding
    await heir.flush()
    assert stage.asked == ["m3"]
    assert set(saved(contents, heir.results, is_ok=True)) == {"r1", "r2", "r3"}


async def test_failed_write_keeps_the_results_for_the_next_one(contents: Contents, monkeypatch: pytest.MonkeyPatch):
    stage = Stage(contents)
    lines = stage.lines("m")
    feeding = asyncio.create_task(lines.feed())
    await until(lambda: len(stage.open) == 1)
    stage.answer_all()
    await feeding
    with monkeypatch.context() as patch:
        patch.setattr(contents, "writing", lambda path: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            await lines.flush()
    await lines.flush()
    assert set(saved(contents, lines.results, is_ok=True)) == {"r1"}


def test_content_appears_whole_or_not_at_all(contents: Contents):
    with contextlib.suppress(RuntimeError), contents.writing("files/x") as sink:
        sink.write(b"half")
        raise RuntimeError
    with pytest.raises(FileMissing):
        list(contents.blocks("files/x"))
    assert contents.names("uploads") == []
    with contents.writing("files/x") as sink:
        sink.write(b"whole")
    assert list(contents.blocks("files/x")) == [b"whole"]


def test_unusable_place_for_files_is_a_wrong_setting():
    with pytest.raises(InvalidSetting, match="KEEPWARM_FILES_URL"):
        Contents("nosuch://place", Path("/nowhere"))


# ---- the way into the queue


async def test_few_lines_are_on_their_way_in_at_once_and_the_next_follow_as_they_are_admitted(contents: Contents):
    stage = Stage(contents, window=20, holds_door=True)
    lines = stage.lines(*["m"] * 20)
    feeding = asyncio.create_task(lines.feed())
    await until(lambda: lines.num_in_flight == 20 and len(stage.asked) == MAX_ENTERING)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(stage.asked) == MAX_ENTERING
    first, second, *_ = stage.at_door
    stage.at_door[first]()
    stage.at_door[first]()  # said twice, it gives back one place
    await until(lambda: len(stage.asked) == MAX_ENTERING + 1)
    stage.open[second].set_result(answer(200, second))  # refused or answered: never admitted, and no longer at the door
    await until(lambda: len(stage.asked) == MAX_ENTERING + 2)
    stage.holds_door = False
    while not feeding.done():
        stage.answer_all()
        await asyncio.sleep(0)
    assert lines.is_complete()


async def test_line_that_had_not_come_in_when_its_batch_ends_is_not_asked_any_more(contents: Contents):
    stage = Stage(contents, window=20, holds_door=True)
    lines = stage.lines(*["m"] * 20)
    feeding = asyncio.create_task(lines.feed())
    await until(lambda: lines.num_in_flight == 20 and len(stage.asked) == MAX_ENTERING)
    stage.is_ending = True
    ending = asyncio.create_task(lines.wind_down(BatchState.CANCELLED))
    async with asyncio.timeout(5):
        await asyncio.gather(ending, feeding)
    assert len(stage.asked) == MAX_ENTERING
    assert lines.is_complete()
