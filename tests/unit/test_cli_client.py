"""The API client against a fake transport: resuming streams, and errors a person can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2
import pytest

from app.cli.client import ApiClient, ApiRefused, ApiUnreachable
from tasks.jobs import JobState
from tasks.stream_events import End, Queued, Reset, StreamEvent, Tokens, encode_event


def sse(event: StreamEvent, seq: int | None = None) -> bytes:
    number = f"id: {seq}\n" if seq is not None else ""
    return f"event: x\n{number}data: {encode_event(event).decode()}\n\n".encode()


def text(seq: int) -> bytes:
    return sse(Tokens(text=f"t{seq} ", ids=(seq,)), seq)


def end(seq: int) -> bytes:
    return sse(End(state=JobState.SUCCEEDED, finish_reason="stop"), seq)


class Chunks(httpx2.SyncByteStream):
    """A body that may break after its last chunk."""

    def __init__(self, *chunks: bytes, breaks: bool = False) -> None:
        self._chunks = chunks
        self._breaks = breaks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        if self._breaks:
            raise httpx2.ReadError("connection reset")


def stream(*chunks: bytes, breaks: bool = False) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks(*chunks, breaks=breaks))


class FakeApi:
    """Answers each request with the next reply; a reply may be an error to raise."""

    def __init__(self, *replies: httpx2.Response | Exception) -> None:
        self.replies = list(replies)
        self.requests: list[httpx2.Request] = []
        self.now_s = 0.0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def client(self) -> ApiClient:
        return ApiClient(
            "http://keepwarm.test",
            transport=httpx2.MockTransport(self),
            clock=lambda: self.now_s,
            sleep=self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds

    @property
    def resume_points(self) -> list[str | None]:
        return [request.headers.get("last-event-id") for request in self.requests]


def texts(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Tokens))


def test_a_stream_is_read_to_its_end():
    api = FakeApi(stream(sse(Queued(position=2)), b": keep-alive\n\n", text(1), text(2), end(3)))
    events = list(api.client().events("job_1"))
    assert events[0] == Queued(position=2)
    assert texts(events) == "t1 t2 "
    assert isinstance(events[-1], End)
    assert api.resume_points == [None]


def test_a_broken_stream_goes_on_after_the_last_seen_number():
    api = FakeApi(
        stream(text(1), text(2), breaks=True),
        httpx2.ConnectError("Connection refused"),
        stream(text(2), text(3)),  # repeats one, and ends without an end
        stream(end(4)),
    )
    events = list(api.client().events("job_1"))
    assert texts(events) == "t1 t2 t3 "
    assert api.resume_points == [None, "2", "2", "3"]


def test_an_event_cut_in_the_middle_is_asked_for_again():
    whole = text(2)
    api = FakeApi(stream(text(1), whole[: len(whole) // 2], breaks=True), stream(whole, end(3)))
    assert texts(list(api.client().events("job_1"))) == "t1 t2 "


def test_a_reset_is_passed_on_once():
    reset = sse(Reset(attempt=2, reason="the engine can't continue"), 2)
    api = FakeApi(stream(text(1), reset, breaks=True), stream(reset, text(3), end(4)))
    events = list(api.client().events("job_1"))
    assert sum(isinstance(event, Reset) for event in events) == 1


def test_a_stream_that_stays_away_is_given_up_after_a_bounded_time():
    api = FakeApi(stream(text(1), breaks=True), httpx2.ConnectError("Connection refused"))
    with pytest.raises(ApiUnreachable, match="connection refused"):
        list(api.client().events("job_1"))
    assert 60 <= api.now_s < 70


def test_a_restarting_api_is_waited_for():
    api = FakeApi(httpx2.Response(503, json={"title": "store unavailable"}), stream(text(1), end(2)))
    assert texts(list(api.client().events("job_1"))) == "t1 "


def test_a_job_that_does_not_exist_is_not_asked_for_again():
    api = FakeApi(httpx2.Response(404, json={"detail": "There is no job 'job_1'."}))
    with pytest.raises(ApiRefused, match="There is no job"):
        list(api.client().events("job_1"))
    assert len(api.requests) == 1


def test_nobody_at_the_url_is_said_with_the_way_out():
    api = FakeApi(httpx2.ConnectError("Connection refused"))
    with pytest.raises(ApiUnreachable, match="keepwarm up") as caught:
        api.client().pool()
    assert "http://keepwarm.test" in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx2.Response(429, json={"title": "Full", "detail": "9 jobs already wait."}), "9 jobs already wait."),
        (httpx2.Response(404, json={"error": {"message": "No such model."}}), "No such model."),
        (httpx2.Response(500, json={"title": "Internal error"}), "Internal error"),
        (httpx2.Response(502, text="<html>"), "The API answered 502."),
        (httpx2.Response(400, json=["odd"]), "The API answered 400."),
    ],
)
def test_a_refusal_keeps_the_words_of_the_api(reply: httpx2.Response, message: str):
    with pytest.raises(ApiRefused) as caught:
        FakeApi(reply).client().pool()
    assert str(caught.value) == message
    assert caught.value.status == reply.status_code


def test_another_kind_of_server_is_not_taken_for_keepwarm():
    with pytest.raises(ApiUnreachable, match="not Keepwarm's"):
        FakeApi(httpx2.Response(200, text="hello")).client().pool()


@pytest.mark.parametrize("url", ["http://[::", "http://host:port"])
def test_a_malformed_url_is_named(url: str):
    with pytest.raises(ApiUnreachable, match="no URL"):
        ApiClient(url)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda client: client.model("a/b c"), "GET /v1/models/a%2Fb%20c"),
        (lambda client: client.warm("m"), "POST /v1/models/m/warm"),
        (lambda client: client.evict("m"), "POST /v1/models/m/evict"),
        (lambda client: client.cancel("job_1"), "DELETE /v1/jobs/job_1"),
        (lambda client: client.job("job_1"), "GET /v1/jobs/job_1"),
    ],
)
def test_routes(call: Callable[[ApiClient], object], line: str):
    api = FakeApi(httpx2.Response(200, json={}))
    call(api.client())
    request = api.requests[0]
    assert f"{request.method} {request.url.raw_path.decode()}" == line


def test_each_submission_has_an_idempotency_key_of_its_own():
    api = FakeApi(httpx2.Response(202, json={"id": "job_1"}))
    client = api.client()
    client.submit({})
    client.submit({})
    assert len({request.headers["idempotency-key"] for request in api.requests}) == 2


def test_a_list_of_jobs_is_read_on_over_short_pages_until_it_is_long_enough():
    api = FakeApi(
        httpx2.Response(200, json={"data": [{"id": "job_1"}], "next_after": "job_5"}),
        httpx2.Response(200, json={"data": [], "next_after": "job_9"}),
        httpx2.Response(200, json={"data": [{"id": "job_10"}, {"id": "job_11"}], "next_after": "job_11"}),
    )
    found = api.client().jobs(state="failed", limit=3)
    assert [job["id"] for job in found] == ["job_1", "job_10", "job_11"]
    assert [str(request.url.query, "ascii") for request in api.requests] == [
        "state=failed&limit=3",
        "state=failed&after=job_5&limit=2",
        "state=failed&after=job_9&limit=2",
    ]
