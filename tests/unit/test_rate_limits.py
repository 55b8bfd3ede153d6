"""Headers about limits say what admission knows, and nothing else."""

from __future__ import annotations

import pytest

from app.error_handlers import error_response, facts_of
from app.rate_limits import duration, rate_limit_headers, retry_headers
from tasks.admission_control import AdmissionControl
from tasks.errors import BatchNotCancellable, ModelQuarantined, QueueFull, StoreUnavailable, TooManyBatches
from tasks.fleet import Fleet
from tasks.forecast import QueueRoom, ServiceTime
from tasks.settings import StoreSettings
from tasks.stream_events import Tokens
from tests.support.front_fakes import (
    DEMO,
    NOW_MS,
    FakeBackend,
    chat,
    demo_runner,
    demo_worker,
    front_client,
    numbered,
    succeeded,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.02, "20ms"),
        (0.9994, "999ms"),
        (0.9996, "1s"),
        (1.5, "1.5s"),
        (30, "30s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3630.25, "1h0m30.25s"),
        (90_000, "25h0m0s"),
    ],
)
def test_durations_are_worded_as_openai_words_them(seconds: float, text: str):
    assert duration(seconds) == text


def test_room_in_the_line_is_told_and_the_reset_only_when_it_was_measured():
    assert rate_limit_headers(None) == {}
    assert rate_limit_headers(QueueRoom(limit=100, remaining=98)) == {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "98",
    }
    room = QueueRoom(limit=100, remaining=98, empty_in_s=2.5)
    assert rate_limit_headers(room)["x-ratelimit-reset-requests"] == "2.5s"


class Gauges:
    """What was measured."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def store_fill(self) -> float:
        return 0.0

    def service_times(self) -> dict[str, ServiceTime]:
        return {"demo": ServiceTime(mean_ms=2000, samples=self.samples, measured_ms=0)}


def room(*, depth: int, total: int, samples: int = 9, in_flight: int = 4) -> QueueRoom:
    settings = StoreSettings(max_queue_per_model=10, max_queue_total=20)
    fleet = Fleet(now_ms=NOW_MS, workers=(demo_worker(demo_runner(in_flight=in_flight)),))
    control = AdmissionControl(Gauges(samples), settings)  # type: ignore[arg-type]
    return control.room(DEMO, fleet, depth=depth, total=total)


def test_room_is_that_under_the_nearer_bound():
    assert room(depth=3, total=3) == QueueRoom(limit=10, remaining=7, empty_in_s=2.0)  # four ends at 4 slots per 2 s
    assert room(depth=1, total=18) == QueueRoom(limit=20, remaining=2)
    assert room(depth=3, total=3, samples=1).empty_in_s is None
    assert room(depth=1, total=1, in_flight=0).empty_in_s == 0.0
    assert room(depth=12, total=12).remaining == 0  # the bound was lowered meanwhile


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat()),
        ("/v1/chat/completions", chat(stream=True)),
        ("/v1/chat/completions", chat(n=2)),
        ("/v1/completions", chat(prompt="x")),
        ("/v1/jobs", {"model": "demo", "prompt": "x"}),
    ],
)
def test_every_route_that_admits_a_job_tells_the_room_that_is_left(path: str, body: dict):
    answer = numbered(Tokens("a", (1,)), succeeded())
    fake = FakeBackend(batches=answer, room=QueueRoom(limit=10, remaining=4, empty_in_s=0.25))
    with front_client(fake) as client:
        headers = client.post(path, json=body).headers
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-requests"] == "4"
    assert headers["x-ratelimit-reset-requests"] == "250ms"
    assert "x-ratelimit-limit-tokens" not in headers


def headers_of(error: Exception, **state: str) -> dict[str, str]:
    return dict(error_response(facts_of(error), {"path": "/v1/chat/completions", "state": state}).headers)


def test_full_line_leaves_no_room_and_says_when_to_come_back():
    headers = headers_of(QueueFull(scope="'demo'", depth=5, limit=5, retry_after_s=7, model="demo"))
    assert headers["x-ratelimit-limit-requests"] == "5"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == ("7", "7000", "true")


@pytest.mark.parametrize(
    ("error", "should_retry"),
    [
        (StoreUnavailable("gone"), "true"),
        (TooManyBatches(open_batches=5, limit=5), "true"),
        (ModelQuarantined("bad", quarantine="model:x", until="2030", retry_after_s=3000), "false"),
        (BatchNotCancellable("batch_1", "completed"), "false"),
    ],
)
def test_clients_are_told_whether_another_try_can_help(error: Exception, should_retry: str):
    headers = headers_of(error)
    assert headers["x-should-retry"] == should_retry
    assert "x-ratelimit-limit-requests" not in headers


def test_after_admission_no_client_is_to_try_again():
    headers = headers_of(StoreUnavailable("gone"), job_id="job_1")
    assert (headers["x-should-retry"], headers["retry-after-ms"]) == ("false", "1000")


def test_refusal_for_ever_has_no_word_on_tries():
    assert retry_headers(400, None) == {}
