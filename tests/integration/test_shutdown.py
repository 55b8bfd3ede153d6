"""What clients of a front hear when it is told to stop in the middle of their answers: real servers and connections."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import msgspec
import openai
import pytest
from openai import OpenAI

from app.main import create_app
from app.settings import ApiSettings
from tasks.jobs import Job, JobId, JobState, Priority
from tasks.stream_events import Tokens
from tests.support.front_fakes import NOW_MS, FakeBackend, chat, numbered, sse_data
from tests.support.front_server import FrontServer
from tests.support.stack import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def fake() -> FakeBackend:
    """Every answer begins, and never ends."""
    fake = FakeBackend(batches=numbered(Tokens("Hel", (1,)), Tokens("lo", (2,))), stays_open=True)
    fake.jobs[JobId("job_1")] = Job(
        id=JobId("job_1"),
        state=JobState.RUNNING,
        model="demo",
        priority=Priority.DEFAULT,
        attempt=1,
        last_seq=2,
        created_ms=NOW_MS,
    )
    return fake


@pytest.fixture
def server(fake: FakeBackend) -> Iterator[FrontServer]:
    with FrontServer(create_app(ApiSettings(), fake.backend())) as server:
        yield server


def cut_short(server: FrontServer, method: str, path: str, **request) -> str:
    """All that comes; the server is stopped once the answer has begun. Raises when the connection breaks off."""
    with httpx2.stream(method, server.url + path, timeout=10, **request) as reply:
        assert reply.status_code == 200
        parts = []
        for part in reply.iter_text():
            parts.append(part)
            if "lo" in part:
                server.begin_to_stop()
        return "".join(parts)


def test_stream_of_a_job_ends_in_order_behind_a_whole_event(fake: FakeBackend, server: FrontServer):
    text = cut_short(server, "GET", "/v1/jobs/job_1/events")
    *events, notice, nothing = text.split("\n\n")
    assert [event.splitlines()[1] for event in events if not event.startswith(":")] == ["id: 1", "id: 2"]
    assert notice.startswith(": this server is shutting down")
    assert nothing == ""
    assert not fake.cancelled


@pytest.mark.parametrize("n", [1, 2])
def test_chat_stream_ends_with_an_error_and_its_job_is_cancelled(fake: FakeBackend, server: FrontServer, n: int):
    *_, last = sse_data(cut_short(server, "POST", "/v1/chat/completions", json=chat(stream=True, n=n)))
    assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "server_shutting_down")
    assert len(fake.cancelled) == n


@pytest.mark.parametrize("n", [1, 2])
def test_chat_with_an_idempotency_key_goes_on_without_its_client(fake: FakeBackend, server: FrontServer, n: int):
    key = {"Idempotency-Key": "one"}
    *_, last = sse_data(cut_short(server, "POST", "/v1/chat/completions", json=chat(stream=True, n=n), headers=key))
    assert last["error"]["code"] == "server_shutting_down"
    assert not fake.cancelled


def test_openai_sdk_raises_what_the_stream_says(server: FrontServer):
    sdk = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    stream = sdk.chat.completions.create(**chat(stream=True))
    next(stream)
    server.begin_to_stop()
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)


@pytest.mark.parametrize("n", [1, 2])
def test_waiting_request_is_told_to_try_again(fake: FakeBackend, server: FrontServer, n: int):
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(httpx2.post, f"{server.url}/v1/chat/completions", json=chat(n=n), timeout=10)
        wait_until(lambda: fake.num_followers == n, "the answer is waited for", 10)
        server.begin_to_stop()
        reply = waiting.result()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_shutting_down")
    assert reply.headers["retry-after"] == "1"
    assert reply.headers.get("x-should-retry") != "false"  # official SDKs try again
    assert len(fake.cancelled) == n


def test_wait_for_a_job_answers_with_what_is_known(fake: FakeBackend, server: FrontServer):
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(httpx2.get, f"{server.url}/v1/jobs/job_1?wait=30", timeout=10)
        wait_until(lambda: fake.num_followers == 1, "the job is waited for", 10)
        server.begin_to_stop()
        assert (waiting.result().status_code, waiting.result().json()["state"]) == (200, "running")


def test_job_of_a_client_that_neither_reads_nor_leaves_is_cancelled():
    """More than the buffers on the way to it hold has been sent, so its stream hears nothing else."""
    much = [Tokens("x" * 2**18, (1,)) for _ in range(48)]
    fake = FakeBackend(batches=numbered(*much), stays_open=True)
    body = msgspec.json.encode(chat(stream=True))
    with FrontServer(create_app(ApiSettings(), fake.backend())) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.connect(server.address)
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert client.recv(16).startswith(b"HTTP/1.1 200")
        server.begin_to_stop()
        wait_until(lambda: len(fake.cancelled) == 1, "the job is cancelled", 5)
