"""Files and batches on a real store: the official SDK under strict validation, uploads, fences, sweeps."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from openai import OpenAI

from app.backend import connect_backend
from app.batches import doors
from app.batches.contents import Contents
from app.batches.feeder import Feeder
from app.batches.line_call import LineAnswer
from app.batches.surroundings import Surroundings, connect_surroundings
from app.batches.sweep import sweep_expired
from app.main import create_app
from app.settings import ApiSettings
from tasks.batches import MAX_BREAKS, BatchCounts, BatchState
from tasks.errors import FilesFull
from tasks.files import StoredFile
from tasks.routing import BATCH_QUEUE
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.batch_store import BREAK_PAUSE_MS, BatchStore
from tasks.store.connection import Client, connect, now_ms
from tasks.store.file_store import FileStore
from tests.support.front_server import FrontServer
from tests.support.scripted_worker import ScriptedWorker
from tests.support.stack import wait_until

pytestmark = pytest.mark.integration

CHAT: Any = "/v1/chat/completions"
LIMIT = 4096  # bytes of a file
OK = b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}'


@pytest.fixture
def server(store_settings: StoreSettings, worker: ScriptedWorker) -> Iterator[FrontServer]:
    with FrontServer(create_app(ApiSettings(max_file_bytes=LIMIT), connect_backend(store_settings))) as server:
        yield server


@pytest.fixture
def sdk(server: FrontServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True) as sdk:
        yield sdk


@pytest.fixture
def around(store_settings: StoreSettings, worker: ScriptedWorker) -> Surroundings:
    return connect_surroundings(ApiSettings(), store_settings)


def requests(*models: str) -> bytes:
    return b"\n".join(
        json.dumps({"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": {"model": model}}).encode()
        for n, model in enumerate(models, start=1)
    )


def upload(sdk: OpenAI, content: bytes = b"{}\n", name: str = "in.jsonl") -> Any:
    return sdk.files.create(file=(name, content), purpose="batch")


def left_on_disk(settings: StoreSettings) -> list[str]:
    return [path.name for path in (settings.home / "files").rglob("*") if path.is_file()]


# ---- files


def test_a_file_is_kept_listed_read_and_deleted(sdk: OpenAI, store_settings: StoreSettings):
    content = bytes(range(256)) * (LIMIT // 256)
    first = upload(sdk, content, name='we"ird\nname.jsonl')
    assert (first.bytes, first.purpose, first.status, first.object) == (LIMIT, "batch", "processed", "file")
    assert first.expires_at == first.created_at + 30 * 24 * 3600
    assert sdk.files.retrieve(first.id) == first
    assert sdk.files.content(first.id).read() == content
    others = [upload(sdk).id for _ in range(4)]
    assert [file.id for file in sdk.files.list(limit=2)] == [*reversed(others), first.id]  # page by page
    assert [file.id for file in sdk.files.list(order="asc", limit=3)] == [first.id, *others]
    assert list(sdk.files.list(purpose="batch_output")) == []
    assert sdk.files.delete(first.id).deleted
    for gone in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            gone(first.id)
    assert sorted(left_on_disk(store_settings)) == sorted(others)


def test_a_file_may_expire_earlier(sdk: OpenAI):
    file = sdk.files.create(file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="3600 to 2592000"):
        sdk.files.create(file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 10})


def test_one_byte_too_much_is_refused_and_leaves_nothing(sdk: OpenAI, store_settings: StoreSettings):
    with pytest.raises(openai.APIStatusError, match=f"more than {LIMIT} bytes") as refused:
        upload(sdk, b"x" * (LIMIT + 1))
    assert refused.value.status_code == 413
    assert left_on_disk(store_settings) == []
    assert list(sdk.files.list()) == []


def test_files_have_a_bound_together_which_refuses_uploads_and_no_results(store_settings: StoreSettings):
    settings = ApiSettings(max_file_bytes=LIMIT, max_files_bytes=2 * LIMIT)
    app = create_app(settings, connect_backend(store_settings))
    with FrontServer(app) as server, OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as sdk:
        first = upload(sdk, b"x" * LIMIT)
        upload(sdk, b"x" * (LIMIT - 2))
        said = f"{2 * LIMIT - 2} bytes together, and with this one they would have more than {2 * LIMIT}"
        with pytest.raises(openai.APIStatusError, match=said) as refused:
            upload(sdk, b"{}\n")
        assert (refused.value.status_code, refused.value.code) == (413, "files_full")
        assert len(left_on_disk(store_settings)) == 2
        sdk.files.delete(first.id)
        upload(sdk, b"{}\n")


def test_bytes_of_files_are_counted_once_each(store_settings: StoreSettings):
    client = connect(store_settings)
    files = FileStore(client)
    file = StoredFile(id="file-1", filename="a", purpose="batch", bytes=10, created_ms=1, expires_ms=2)
    for _ in range(2):
        files.add(file)
    assert files.total_bytes() == 10
    files.add(msgspec.structs.replace(file, bytes=7))
    client.delete(keys.FILE_BYTES)  # as before they were counted
    assert files.total_bytes() == 7
    with pytest.raises(FilesFull, match="have 7 bytes"):  # of two uploads that saw the same room
        files.add(msgspec.structs.replace(file, id="file-2", bytes=4), max_total_bytes=10)
    for _ in range(2):
        files.remove("file-1")
    assert files.total_bytes() == 0


def test_open_batches_have_a_bound(worker: ScriptedWorker, store_settings: StoreSettings):
    narrow = store_settings.model_copy(update={"max_open_batches": 1})
    app = create_app(ApiSettings(), connect_backend(narrow))
    with FrontServer(app) as server, OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as sdk:
        new_batch(sdk, requests("demo"))
        with pytest.raises(openai.RateLimitError, match=r"1 batches are open \(limit 1") as refused:
            new_batch(sdk, requests("demo"))
        assert refused.value.response.headers["retry-after"] == "60"
        assert len(sdk.batches.list().data) == 1


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"files": {"file": b"x"}, "data": {"purpose": "fine-tune"}}, "'fine-tune' is used by nothing here"),
        ({"files": {"file": b"x"}}, "purpose: must be 'batch'; it is missing"),
        ({"files": {"other": b"x"}, "data": {"purpose": "batch"}}, "file: required"),
        ({"files": {"file": b""}, "data": {"purpose": "batch"}}, "file: it is empty"),
        ({"files": [("file", b"x"), ("file", b"y")], "data": {"purpose": "batch"}}, "more than one file"),
        ({"json": {"purpose": "batch"}}, "Send a multipart/form-data body"),
        ({"content": b"--b\r\n\r\nx", "headers": {"content-type": "multipart/form-data; boundary=b"}}, "ends early"),
        ({"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=b"}}, "is broken"),
    ],
)
def test_wrong_form_is_refused_in_words(server: FrontServer, store_settings: StoreSettings, form: Any, message: str):
    response = httpx2.post(server.url + "/v1/files", **form)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]
    assert response.headers["x-request-id"]
    assert left_on_disk(store_settings) == []


def test_upload_that_is_cut_leaves_nothing(server: FrontServer, store_settings: StoreSettings, sdk: OpenAI):
    host, port = server.url.removeprefix("http://").split(":")
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nhalf of it'
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + head
        )
        wait_until(lambda: len(left_on_disk(store_settings)) == 1, "the upload has begun", 10)
    wait_until(lambda: left_on_disk(store_settings) == [], "what was uploaded is gone", 10)
    assert list(sdk.files.list()) == []


def test_expired_files_are_swept_but_for_those_that_a_batch_reads(sdk: OpenAI, around: Surroundings):
    files = [upload(sdk, requests("demo")) for _ in range(3)]
    stray, record_of = "file-" + "0" * 30, around.files.get
    with around.contents.writing(f"files/{stray}") as sink:
        sink.write(b"its front died before it was recorded")
    for file in files[1:]:
        old = record_of(file.id)
        around.files.add(StoredFile(**{name: getattr(old, name) for name in old.__struct_fields__} | {"expires_ms": 1}))
    sdk.batches.create(input_file_id=files[2].id, endpoint=CHAT, completion_window="24h")
    sweep_expired(around, now_s=0)
    assert {file.id for file in sdk.files.list()} == {files[0].id, files[2].id}
    assert set(around.contents.names("files")) == {files[0].id, files[2].id, stray}
    sweep_expired(around, now_s=1e12)
    assert stray not in around.contents.names("files")


# ---- batches


def test_a_batch_is_created_read_listed_and_cancelled(sdk: OpenAI, around: Surroundings):
    file = upload(sdk)
    batches = [
        sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"n": str(n)})
        for n in range(5)
    ]
    assert all((batch.status, batch.object) == ("validating", "batch") for batch in batches)
    assert sdk.batches.retrieve(batches[0].id) == batches[0]
    assert batches[0].expires_at == batches[0].created_at + 24 * 3600
    assert [batch.id for batch in sdk.batches.list(limit=2)] == [batch.id for batch in reversed(batches)]
    with pytest.raises(openai.ConflictError, match=f"input of the open batch '{batches[0].id}'|open batch"):
        sdk.files.delete(file.id)
    assert sdk.batches.cancel(batches[0].id).status == "cancelling"
    assert sdk.batches.cancel(batches[0].id).cancelling_at is not None  # once more is no error
    with pytest.raises(openai.NotFoundError, match="No such Batch object"):
        sdk.batches.retrieve("batch_nothing")
    for listed in (sdk.batches, sdk.files):
        with pytest.raises(openai.BadRequestError, match="'nothing' is not on this list") as refused:
            listed.list(after="nothing")
        assert (refused.value.code, refused.value.param) == ("unknown_place", "after")


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input_file_id": "file-nothing"}, 404, None),
        ({"endpoint": "/v1/responses"}, 400, "endpoint"),
        ({"completion_window": "7d"}, 400, "completion_window"),
        ({"metadata": {"x" * 65: "y"}}, 400, f"metadata.{'x' * 65}"),
        ({"metadata": {str(n): "y" for n in range(17)}}, 400, "metadata"),
    ],
)
def test_wrong_batch_is_refused(sdk: OpenAI, fields: dict, status: int, param: str | None):
    body = {"input_file_id": upload(sdk).id, "endpoint": CHAT, "completion_window": "24h"} | fields
    with pytest.raises(openai.APIStatusError) as refused:
        sdk.batches.create(**body)
    assert (refused.value.status_code, refused.value.param) == (status, param)


def test_lost_wake_up_of_a_batch_is_sent_again_once(sdk: OpenAI, around: Surroundings, store_settings: StoreSettings):
    client = connect(store_settings)
    batch = sdk.batches.create(input_file_id=upload(sdk).id, endpoint=CHAT, completion_window="24h")
    assert client.llen(BATCH_QUEUE) == 1
    assert around.batches.lost() == []
    client.zadd(keys.OPEN_BATCHES, {batch.id: 1})
    assert around.batches.lost() == []  # it waits in the queue
    client.delete(BATCH_QUEUE)
    assert around.batches.lost() == [batch.id]
    assert around.batches.lost() == []


# ---- feeders


class Answering:
    """A front that answers everything at once, or when `gate` opens."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def call(
        self, endpoint: str, body: dict, idempotency_key: str, on_admitted: Callable[[], None]
    ) -> LineAnswer:
        on_admitted()
        self.asked.append(idempotency_key.rpartition("/")[2])
        await self.gate.wait()
        return LineAnswer(status=200, request_id="req_1", body=OK)


Feed = Callable[..., Any]


@pytest.fixture
def feed(around: Surroundings) -> Feed:
    async def feed_batch(batch_id: str, front: Answering, *, feeder: str = "one", **options: Any) -> int:
        epoch = around.batches.claim(batch_id, feeder)
        assert epoch is not None
        given: dict[str, Any] = {"is_stopping": lambda: False, "expires_in_s": 60.0} | options
        batch = around.batches.get(batch_id)
        await Feeder(batch=batch, epoch=epoch, around=around, caller=front, **given).run()
        return epoch

    return feed_batch


def new_batch(sdk: OpenAI, content: bytes) -> str:
    return sdk.batches.create(input_file_id=upload(sdk, content).id, endpoint=CHAT, completion_window="24h").id


async def test_all_lines_are_answered_and_nothing_is_left_behind(sdk, around, feed, store_settings):
    batch_id = new_batch(sdk, requests("demo", "demo", "gpt-demo"))
    await feed(batch_id, Answering())
    batch = sdk.batches.retrieve(batch_id)
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.usage.total_tokens, batch.error_file_id) == (3, 15, None)
    assert batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    entries = [json.loads(line) for line in sdk.files.content(batch.output_file_id).text.splitlines()]
    assert [entry["custom_id"] for entry in entries] == ["r1", "r2", "r3"]
    assert around.contents.names("batches") == []
    assert connect(store_settings).zcard(keys.OPEN_BATCHES) == 0
    assert around.batches.claim(batch_id, "another") is None
    with pytest.raises(openai.ConflictError, match="it is completed"):
        sdk.batches.cancel(batch_id)


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"{}\nx", "missing_required_parameter", 1),
        (b" \n\n", "empty_file", None),
        (requests("nobody", "nobody", "none"), "model_not_found", 1),
    ],
)
async def test_unusable_input_fails_the_batch_with_its_line(sdk, feed, content: bytes, code: str, line: int | None):
    batch_id = new_batch(sdk, content)
    front = Answering()
    await feed(batch_id, front)
    batch = sdk.batches.retrieve(batch_id)
    assert (batch.status, batch.failed_at is not None, front.asked) == ("failed", True, [])
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, line)


async def test_input_that_vanishes_fails_the_batch(sdk, around, feed):
    batch_id = new_batch(sdk, requests("demo"))
    around.contents.delete(f"files/{sdk.batches.retrieve(batch_id).input_file_id}")
    await feed(batch_id, Answering())
    batch = sdk.batches.retrieve(batch_id)
    assert (batch.status, batch.errors.data[0].code) == ("failed", "input_file_missing")


def wake_until_it_ends(batch_id: str, around: Surroundings, client: Client) -> int:
    """Feed as messages do, pauses between them left out; how often."""
    for times in range(1, 10):
        doors.feed_batch(batch_id)
        if not around.batches.is_open(batch_id):
            return times
        client.hset(keys.batch(batch_id), "lease", 0)
    raise AssertionError("the batch is fed for ever")


@pytest.fixture
def batcher(around: Surroundings, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    """Surroundings of the Celery tasks, on the store of this test."""
    monkeypatch.setattr(doors, "surroundings", lambda: around)
    monkeypatch.setenv("KEEPWARM_REDIS_URL", store_settings.store_url)
    return around


def test_batch_whose_input_nobody_may_read_fails_after_five_attempts(sdk, batcher, store_settings, monkeypatch):
    batch_id = new_batch(sdk, requests("demo"))

    def refuse(self: Contents, path: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "/secret/place")

    monkeypatch.setattr(Contents, "reading", refuse)
    client = connect(store_settings)
    doors.feed_batch(batch_id)
    pause_ms = int(client.hget(keys.batch(batch_id), "lease")) - now_ms(client)
    assert BREAK_PAUSE_MS - 10_000 < pause_ms <= BREAK_PAUSE_MS
    assert batcher.batches.claim(batch_id, "too early") is None
    client.hset(keys.batch(batch_id), "lease", 0)
    assert wake_until_it_ends(batch_id, batcher, client) == MAX_BREAKS
    batch = sdk.batches.retrieve(batch_id)
    assert (batch.status, batch.errors.data[0].code) == ("failed", "batch_broken")
    assert "5 attempts" in batch.errors.data[0].message
    assert "PermissionError (Permission denied)" in batch.errors.data[0].message
    assert "secret" not in batch.errors.data[0].message


def test_batch_with_a_damaged_segment_fails_without_files(sdk, batcher, store_settings):
    batch_id = new_batch(sdk, requests("demo"))
    with batcher.contents.writing(f"batches/{batch_id}/00000001-00000000.jsonl") as sink:
        sink.write(b"half of a li")
    client = connect(store_settings)
    client.hset(keys.batch(batch_id), mapping={"state": "in_progress"})
    assert wake_until_it_ends(batch_id, batcher, client) == MAX_BREAKS + 1
    batch = sdk.batches.retrieve(batch_id)
    assert (batch.status, batch.errors.data[0].code, batch.output_file_id) == ("failed", "batch_broken", None)


def test_breaks_are_counted_anew_after_progress(sdk, around):
    batch_id = new_batch(sdk, requests("demo", "demo"))
    epoch = around.batches.claim(batch_id, "one")
    assert [around.batches.note_break(batch_id, epoch, "x") for _ in range(2)] == [1, 2]
    around.batches.write(batch_id, epoch, counts=BatchCounts(total=2, completed=1))
    assert [around.batches.note_break(batch_id, epoch, "x") for _ in range(2)] == [1, 2]
    assert around.batches.note_break(batch_id, epoch - 1, "late") == 0


async def test_finalizing_batch_that_lost_its_results_expires(sdk, feed, store_settings):
    batch_id = new_batch(sdk, requests("demo"))
    connect(store_settings).hset(keys.batch(batch_id), "state", "finalizing")
    await feed(batch_id, Answering())
    assert sdk.batches.retrieve(batch_id).status == "expired"


async def test_batch_past_its_window_expires_with_a_reason_for_every_line(sdk, feed):
    batch_id = new_batch(sdk, requests("demo", "demo"))
    await feed(batch_id, Answering(), expires_in_s=-1.0)
    batch = sdk.batches.retrieve(batch_id)
    assert (batch.status, batch.output_file_id, batch.request_counts.failed) == ("expired", None, 2)
    entries = [json.loads(line) for line in sdk.files.content(batch.error_file_id).text.splitlines()]
    assert {(entry["response"], entry["error"]["code"]) for entry in entries} == {(None, "batch_expired")}


async def test_only_one_feeder_has_a_batch_and_a_late_one_writes_nothing(sdk, around, feed, store_settings):
    batch_id = new_batch(sdk, requests("demo"))
    late = around.batches.claim(batch_id, "late")
    assert around.batches.claim(batch_id, "late") == late  # its reply got lost
    assert around.batches.claim(batch_id, "other") is None
    connect(store_settings).hset(keys.batch(batch_id), "lease", 1)  # it fell silent
    epoch = await feed(batch_id, Answering(), feeder="heir")
    assert epoch == late + 1
    assert around.batches.write(batch_id, late, to=BatchState.FAILED) is None
    assert sdk.batches.retrieve(batch_id).status == "completed"


async def test_feeder_that_is_told_to_stop_hands_its_batch_back_at_once(sdk, around, feed, store_settings):
    quick = Surroundings(**{name: getattr(around, name) for name in around.__slots__} | {"lease_s": 0.1})
    batch_id = new_batch(sdk, requests("demo"))
    epoch = around.batches.claim(batch_id, "leaving")
    front = Answering()
    front.gate.clear()
    batch = around.batches.get(batch_id)
    leaving = Feeder(batch=batch, epoch=epoch, around=quick, caller=front, is_stopping=lambda: True, expires_in_s=60.0)
    await leaving.run()
    connect(store_settings).delete(BATCH_QUEUE)
    assert around.batches.lost() == [batch_id]
    await feed(batch_id, Answering(), feeder="next")
    assert sdk.batches.retrieve(batch_id).status == "completed"


async def test_cancelled_before_anybody_fed_it(sdk, feed):
    batch_id = new_batch(sdk, requests("demo", "demo"))
    sdk.batches.cancel(batch_id)
    front = Answering()
    await feed(batch_id, front)
    batch = sdk.batches.retrieve(batch_id)
    assert (batch.status, batch.request_counts.failed, front.asked) == ("cancelled", 2, [])


def test_folder_of_files_is_for_its_owner_only(sdk: OpenAI, store_settings: StoreSettings):
    upload(sdk)
    assert Path(store_settings.home / "files").stat().st_mode & 0o077 == 0


# ---- figures


def test_figures_add_up_over_open_batches_and_count_ends(store_settings: StoreSettings):
    batches = BatchStore(connect(store_settings), store_settings)
    assert batches.figures().oldest_age_s == 0
    first, second, third = (batches.create(endpoint=CHAT, input_file_id="file-1") for _ in range(3))
    for batch, counts, in_flight in (
        (first, BatchCounts(total=100, completed=10, failed=2), (60, 128)),
        (second, BatchCounts(total=5, completed=4), (1, 128)),
    ):
        epoch = batches.claim(batch.id, "feeder") or 0
        batches.write(batch.id, epoch, to=BatchState.IN_PROGRESS, counts=counts, in_flight=in_flight)
    for _ in range(2):  # a repeated call counts once
        batches.write(second.id, epoch, to=BatchState.EXPIRED)
    figures = batches.figures()
    assert figures.open == {"in_progress": 1, "validating": 1}
    assert figures.ended == {"expired": 1}
    assert figures.lines == {"completed": 10, "failed": 2, "in_flight": 60, "waiting": 28}
    assert (figures.window, third.state) == (128, BatchState.VALIDATING)
    assert 0 <= figures.oldest_age_s < 60
