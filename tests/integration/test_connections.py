"""Clients that hold connections, send slowly or too much, or stop reading, on real sockets: each is told why or cut
off, others are served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from app.connection_watch import RESERVE
from app.main import create_app
from app.settings import ApiSettings
from tasks.jobs import Job, JobId, JobState, Priority
from tasks.stream_events import Tokens
from tests.support.front_fakes import NOW_MS, FakeBackend, chat, numbered, succeeded
from tests.support.front_server import FrontServer
from tests.support.stack import wait_until

pytestmark = pytest.mark.integration

MAX_CONNECTIONS, GRACE_S, HEAD_BYTES, BODY_BYTES, STALL_S = 8, 0.5, 4096, 100_000, 1.0
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def server() -> Iterator[FrontServer]:
    settings = ApiSettings(
        max_connections=MAX_CONNECTIONS, request_grace_s=GRACE_S, max_head_bytes=HEAD_BYTES, max_body_bytes=BODY_BYTES
    )
    backend = FakeBackend(batches=numbered(succeeded())).backend()
    with FrontServer(create_app(settings, backend)) as server:
        yield server


def connect(server: FrontServer) -> socket.socket:
    return socket.create_connection(server.address, timeout=10)


def all_of(client: socket.socket) -> bytes:
    """What is sent until the server hangs up."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def refusal(reply: bytes) -> tuple[int, str]:
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split(b" ")[1]), json.loads(body)["error"]["code"]


def refused_so_far(server: FrontServer, code: str) -> float:
    scrape = httpx2.get(f"{server.url}/metrics").text
    found = [line for line in scrape.splitlines() if line.startswith("keepwarm_connections_refused_total{")]
    return sum(float(line.split(" ")[1]) for line in found if f'code="{code}"' in line)


@pytest.mark.parametrize(
    "sent",
    [POST, POST[:20], POST + b"Content-Length: 50\r\n\r\n{", POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"],
)
def test_request_that_stops_on_its_way_is_408(server: FrontServer, sent: bytes):
    with connect(server) as client:
        client.sendall(sent)
        assert refusal(all_of(client)) == (408, "request_too_slow")
    assert refused_so_far(server, "request_too_slow") == 1


def test_connection_that_asks_for_nothing_is_closed(server: FrontServer):
    with connect(server) as client:
        assert all_of(client) == b""


def test_head_that_drips_in_is_408_however_busy_it_looks(server: FrontServer):
    with connect(server) as client:
        client.settimeout(0.1)
        reply = b""
        for byte in POST + b"x-a: " + b"b" * 500:
            client.send(bytes([byte]))
            try:
                reply = client.recv(65536)
                break
            except TimeoutError:
                pass
        assert refusal(reply) == (408, "request_too_slow")


@pytest.mark.parametrize(
    "sent",
    [
        POST + b"x-a: b\r\n" * 1000 + b"\r\n",
        POST + b"x-a: " + b"b" * 100_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"x-a: b\r\n" * 1000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"e" * 1_000_000,
    ],
    ids=["many", "long", "path", "trailers", "chunk extension"],
)
def test_endless_headers_are_431(server: FrontServer, sent: bytes):
    with connect(server) as client:
        client.sendall(sent)
        assert refusal(all_of(client)) == (431, "headers_too_large")


def test_what_is_no_http_is_400(server: FrontServer):
    with connect(server) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20)
        assert refusal(all_of(client)) == (400, "invalid_http")


def test_client_that_still_sends_reads_why_its_body_was_refused(server: FrontServer):
    announced = 50_000_000
    with connect(server) as client:
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % announced)
        client.sendall(b"x" * 5_000_000)  # more than any buffer on the way holds
        assert refusal(all_of(client)) == (413, "body_too_large")


def test_connections_beyond_the_limit_are_refused_and_health_checks_are_not(server: FrontServer):
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(MAX_CONNECTIONS)]
        for client in held:
            client.sendall(POST)
        assert httpx2.get(f"{server.url}/livez").status_code == 200
        refused = httpx2.post(f"{server.url}/v1/chat/completions", json=chat())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "too_many_connections"
    wait_until(lambda: is_served(server), "there is room again", 10)


def test_silent_connections_make_room_for_a_health_check(server: FrontServer):
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(MAX_CONNECTIONS + RESERVE + 5)]
        assert httpx2.get(f"{server.url}/livez").status_code == 200
        assert refusal(all_of(clients[MAX_CONNECTIONS])) == (503, "too_many_connections")


def test_slow_body_goes_on_as_long_as_it_is_fast_enough(server: FrontServer):
    body = json.dumps(chat(user="x" * 5000)).encode()
    with connect(server) as client:
        client.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        client.settimeout(0.4)
        for start in range(0, len(body), 1000):  # longer than the grace in all
            client.sendall(body[start : start + 1000])
            with pytest.raises(TimeoutError):
                client.recv(1)
            if start + 2000 >= len(body):
                break
        client.settimeout(10)
        client.sendall(body[start + 1000 :])
        assert all_of(client).startswith(b"HTTP/1.1 200")


MANY = 48  # tokens of 256 KiB each: more than the buffers on the way hold


@pytest.fixture
def long_job() -> FakeBackend:
    """Its events are all there; the stream of `job_1` has them."""
    fake = FakeBackend(batches=numbered(*(Tokens("x" * 2**18, (1,)) for _ in range(MANY)), succeeded()))
    fake.jobs[JobId("job_1")] = Job(
        id=JobId("job_1"),
        state=JobState.SUCCEEDED,
        model="demo",
        priority=Priority.DEFAULT,
        attempt=1,
        last_seq=MANY + 1,
        created_ms=NOW_MS,
    )
    return fake


def slow_client(server: FrontServer) -> socket.socket:
    """Its kernel takes few bytes from us; it has asked for the events."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(server.address)
    client.sendall(b"GET /v1/jobs/job_1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client


def open_streams(server: FrontServer) -> float:
    scrape = httpx2.get(f"{server.url}/metrics").text
    return float(scrape.partition("\nkeepwarm_open_streams ")[2].partition("\n")[0])


def test_client_that_stops_reading_is_cut_off_and_can_resume(long_job: FakeBackend, capsys):
    with FrontServer(create_app(ApiSettings(client_stall_s=STALL_S), long_job.backend())) as server:
        whole = httpx2.get(f"{server.url}/v1/jobs/job_1/events").text
        with slow_client(server) as client:
            assert client.recv(16).startswith(b"HTTP/1.1 200")
            wait_until(lambda: refused_so_far(server, "client_stalled") == 1, "the client is cut off", 10)
            wait_until(lambda: not open_streams(server), "the stream has let go", 10)
            received = all_of(client).decode()  # what had left us is its own
            assert len(received) < len(whole)
        assert not long_job.cancelled
        seen = int(received[: received.rindex("\nid: ")].rpartition("\nid: ")[2].split("\n")[0])  # the last whole one
        events = whole.split("\n\n")
        again = httpx2.get(f"{server.url}/v1/jobs/job_1/events", headers={"Last-Event-ID": str(seen)}).text
        assert again == "\n\n".join(events[seen:])
    line = next(line for line in capsys.readouterr().out.splitlines() if "client_stalled" in line)
    for part in ("route=/v1/jobs/{job_id}/events", "stalled_s=1.0", "taken_bytes=", "waiting_bytes="):
        assert part in line


def test_client_that_reads_slowly_is_served_on(long_job: FakeBackend):
    """Much less in the time that it may take nothing than what the kernel has buffered for it."""
    app = create_app(ApiSettings(client_stall_s=STALL_S), long_job.backend())
    with FrontServer(app) as server, slow_client(server) as client:
        until = time.monotonic() + 3 * STALL_S
        while time.monotonic() < until:
            assert client.recv(4096)
            time.sleep(0.05)  # that is how slowly it reads
        assert refused_so_far(server, "client_stalled") == 0


def is_served(server: FrontServer) -> bool:
    return httpx2.post(f"{server.url}/v1/chat/completions", json=chat()).status_code == 200
