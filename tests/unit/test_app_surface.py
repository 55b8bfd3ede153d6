"""What surrounds the routes: errors, limits, ids, models, pool, health, metrics, settings, the page at /."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import msgspec
import pytest
from starlette.testclient import TestClient

from app.error_handlers import STATUS, facts_of, field_name, speaks_openai
from app.fleet_view import FleetView
from app.following import Beat
from app.front import get_front
from app.idempotency import idempotency_key
from app.main import create_app
from app.metrics import AnswerMeter, Metrics
from app.settings import ApiSettings
from tasks import errors
from tasks.controller.decisions import Action, Code, Decision
from tasks.errors import InvalidSetting, KeepwarmError, StoreUnavailable, UnknownModel
from tasks.fleet import ModelOffer, QueueReport, RunnerState
from tasks.jobs import Job, JobId, JobState, Priority
from tasks.settings import load_settings
from tasks.stream_events import Queued, Started
from tests.support.front_fakes import (
    COLD,
    DEMO,
    NOW_MS,
    FakeBackend,
    RawRequest,
    chat,
    demo_runner,
    demo_worker,
    front_client,
    numbered,
    succeeded,
)


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend(batches=numbered(succeeded()))


@pytest.fixture
def client(fake: FakeBackend) -> Iterator[TestClient]:
    with front_client(fake, max_body_bytes=200_000) as client:
        yield client


# ---- errors


def test_every_error_of_the_project_has_a_status():
    def all_of(kind: type[KeepwarmError]) -> list[type[KeepwarmError]]:
        return [kind] + [deeper for child in kind.__subclasses__() for deeper in all_of(child)]

    for kind in all_of(KeepwarmError):
        assert next(base for base in kind.__mro__ if base in STATUS)


def test_numbers_of_an_error_become_members_of_the_problem():
    body = facts_of(errors.PromptTooLong(prompt_tokens=300, context_length=256)).problem_body("/v1/jobs")
    assert (body["prompt_tokens"], body["context_length"], body["param"]) == (300, 256, "messages")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", True),
        ("/v1/models/demo", True),
        ("/v1/nothing", True),
        ("/v1/jobs", False),
        ("/v1/jobs/x", False),
        ("/v1/pool", False),
        ("/v1/models/demo/warm", False),
        ("/readyz", False),
        ("/", False),
    ],
)
def test_which_paths_speak_openai(path, expected):
    assert speaks_openai(path) is expected


def test_field_names():
    assert field_name(["messages", 0, "content", 1, "text"]) == "messages[0].content[1].text"
    assert field_name([]) is None


@pytest.mark.parametrize(
    ("method", "path", "status", "media_type"),
    [
        ("GET", "/nothing", 404, "application/problem+json"),
        ("GET", "/v1/nothing", 404, "application/json"),
        ("PUT", "/v1/jobs", 405, "application/problem+json"),
        ("GET", "/v1/chat/completions", 405, "application/json"),
    ],
)
def test_unrouted_requests_are_answered_in_the_right_shape(client, method, path, status, media_type):
    reply = client.request(method, path)
    assert (reply.status_code, reply.headers["content-type"]) == (status, media_type)
    assert path in reply.text
    assert "x-request-id" in reply.headers
    assert status != 405 or "POST" in reply.headers["allow"]


@pytest.mark.parametrize("content", [b"{bad", b"[]", b"", b"\xff\xfe", b"1", b'{"model": NaN}', b"[" * 100_000])
def test_body_that_is_no_json_object_is_400(client, content):
    for path in ("/v1/chat/completions", "/v1/jobs"):
        reply = client.post(path, content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 400


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/", "/v1/models"])
def test_probes_that_want_only_the_head_get_it(client, path):
    reply = client.head(path)
    assert (reply.status_code, reply.headers["content-type"]) == (200, client.get(path).headers["content-type"])
    assert client.put(path).headers["allow"] == "GET, HEAD"


def test_long_name_in_a_body_is_not_repeated_in_full(client):
    reply = client.post("/v1/chat/completions", json=chat(logit_bias={"a" * 50_000: 1}))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "logit_bias." + "a" * 80 + "…")
    assert len(reply.content) < 1000


def test_announced_oversized_body_is_413(client, fake):
    reply = client.post("/v1/chat/completions", json=chat(user="x" * 200_000))
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "body_too_large"
    assert not fake.submitted


async def test_chunked_oversized_body_is_413_before_it_ends(fake):
    request = RawRequest(create_app(ApiSettings(max_body_bytes=2048), fake.backend()), "POST", "/v1/jobs")
    for _ in range(3):
        request.send_body(b"x" * 1000, more=True)
    await request.done
    assert request.status == 413
    assert request.headers["content-type"] == "application/problem+json"


def test_unplanned_error_is_500_without_its_words(client, fake, capsys):
    fake.error = RuntimeError("secret inside")
    for path, body in [("/v1/chat/completions", chat()), ("/v1/jobs", {"model": "demo", "prompt": "private words"})]:
        reply = client.post(path, json=body)
        assert reply.status_code == 500
        assert "secret" not in reply.text
        assert reply.headers["x-request-id"].startswith("req_")
    logged = "".join(capsys.readouterr())
    assert "secret inside" in logged
    assert "private words" not in logged


def test_request_id_of_the_client_is_kept_when_it_is_harmless(client):
    assert client.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/livez", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req_")


def test_prompts_are_not_logged(client, capsys):
    client.post("/v1/chat/completions", json=chat(messages=[{"role": "user", "content": "private words"}]))
    assert "private words" not in "".join(capsys.readouterr())


# ---- models and pool


@pytest.mark.parametrize(
    ("runners", "offer", "state", "reason"),
    [
        ((demo_runner(),), DEMO, "warm", None),
        ((demo_runner(RunnerState.STARTING, progress=0.4),), DEMO, "loading", "40% loaded"),
        ((demo_runner(RunnerState.DRAINING),), DEMO, "cold", "loads on demand, in about 0.1 s"),
        ((demo_runner(model="other"),), COLD, "cold", "loads on demand, in about 1.5 s"),
    ],
)
def test_state_of_a_model(client, fake, runners, offer, state, reason):
    fake.workers = (demo_worker(*runners),)
    details = client.get(f"/v1/models/{offer.id}").json()["keepwarm"]
    assert (details["state"], details["reason"]) == (state, reason)


def test_failed_and_orphaned_models_say_why(client, fake):
    broken = ModelOffer(id="broken", context_length=1, slots=1, bytes=1, load_ms=1, failure="no such file")
    fake.workers, fake.away = (demo_worker(offers=(broken,)),), (COLD,)
    models = {model["id"]: model["keepwarm"] for model in client.get("/v1/models").json()["data"]}
    assert (models["broken"]["state"], models["broken"]["reason"]) == ("failed", "no such file")
    assert (models["cold"]["state"], models["cold"]["reason"]) == (
        "cold",
        "no live worker offers it; jobs wait for one",
    )


def test_model_id_may_hold_a_slash(client, fake):
    nested = ModelOffer(id="maker/model", context_length=1, slots=1, bytes=1, load_ms=1)
    fake.workers = (demo_worker(offers=(nested,)),)
    assert client.get("/v1/models/maker/model").json()["id"] == "maker/model"
    assert client.post("/v1/models/maker/model/evict").status_code == 202
    assert fake.asked == [("maker/model", "evict")]


def test_warm_is_asked_of_the_controller_by_id(client, fake):
    reply = client.post("/v1/models/gpt-demo/warm")
    assert (reply.status_code, reply.json()) == (202, {"model": "demo", "asked": "warm"})
    assert fake.asked == [("demo", "warm")]
    assert client.post("/v1/models/nobody/warm").headers["content-type"] == "application/problem+json"


def test_warm_of_a_model_that_can_not_be_loaded_says_why(client, fake):
    broken = ModelOffer(id="broken", context_length=0, slots=0, bytes=0, load_ms=0, failure="broken.gguf: cut off.")
    fake.workers = (demo_worker(offers=(broken,)),)
    reply = client.post("/v1/models/broken/warm").json()
    assert (reply["code"], reply["detail"]) == ("model_load_failed", "'broken' can't be loaded: broken.gguf: cut off.")
    assert client.post("/v1/models/broken/evict").status_code == 202
    assert fake.asked == [("broken", "evict")]


def test_warm_of_a_model_whose_load_may_be_tried_again_is_asked_for(client, fake):
    failed = ModelOffer(
        id="m", context_length=1, slots=1, bytes=1, load_ms=1, failure="the runner died", may_retry=True
    )
    fake.workers = (demo_worker(offers=(failed,)),)
    assert client.post("/v1/models/m/warm").status_code == 202


def test_pool_shows_workers_runners_and_queues(client, fake):
    fake.waiting = (QueueReport(model="demo", depth=3, oldest_age_ms=1500),)
    pool = client.get("/v1/pool").json()
    assert pool["queues"] == [{"model": "demo", "depth": 3, "oldest_age_s": 1.5}]
    worker = pool["workers"][0]
    assert (worker["id"], worker["budget_bytes"], worker["runners"][0]["state"]) == ("w1", 10_000_000, "ready")


def test_decisions_say_why_and_can_be_asked_for_by_alias(client, fake):
    def decision(model: str) -> Decision:
        return Decision(
            at_ms=1_700_000_000_000,
            action=Action.LOAD,
            code=Code.ROOM,
            model=model,
            worker="w1",
            text="needs 2 MiB, 8 MiB are free",
            terms={"bytes": 2_000_000},
        )

    fake.decided = [decision("demo"), decision("cold"), decision("demo")]
    assert [each["model"] for each in client.get("/v1/pool/decisions?limit=2").json()["data"]] == ["demo", "cold"]
    (first, _) = client.get("/v1/pool/decisions?model=gpt-demo").json()["data"]
    assert first == {
        "at": "2023-11-14T22:13:20Z",
        "action": "load",
        "reason": "room",
        "model": "demo",
        "worker": "w1",
        "text": "needs 2 MiB, 8 MiB are free",
        "terms": {"bytes": 2_000_000},
    }
    assert client.get("/v1/pool/decisions?model=nobody").status_code == 404


async def test_one_reading_of_the_fleet_serves_all_requests_of_a_moment(fake):
    now = 0.0
    view = FleetView(fake, fake, max_age_s=0.25, clock=lambda: now)
    first = await view.snapshot()
    now = 0.2
    assert await view.snapshot() is first
    assert await view.store_now_ms() == NOW_MS + 200
    now = 0.3
    assert await view.snapshot() is not first
    assert fake.num_fleet_reads == 2


async def test_known_model_is_resolved_at_once_and_the_catalogue_renewed_behind_it(fake):
    now = 0.0
    view = FleetView(fake, fake, max_age_s=0.25, clock=lambda: now)
    first = await view.snapshot()
    now = 1.0
    assert (await view.resolve("GPT-demo")).id == "demo"
    assert fake.num_fleet_reads == 1
    assert await view.snapshot() is not first  # waits for the renewal that is under way
    assert fake.num_fleet_reads == 2


async def test_model_is_resolved_while_the_store_is_away_for_a_moment_only(fake):
    now = 0.0
    view = FleetView(fake, fake, max_age_s=0.25, clock=lambda: now)
    await view.snapshot()
    fake.store_error = StoreUnavailable("away")
    now = 1.0
    assert (await view.resolve("demo")).id == "demo"
    now = 10.0
    with pytest.raises(StoreUnavailable):
        await view.resolve("demo")


async def test_unknown_model_is_looked_up_afresh(fake):
    view = FleetView(fake, fake, max_age_s=0.0)
    await view.snapshot()
    with pytest.raises(UnknownModel):
        await view.resolve("nobody")
    assert fake.num_fleet_reads == 2


# ---- health and metrics


def test_readiness_names_what_is_missing(client, fake):
    assert client.get("/readyz").json() == {"status": "ok", "workers": 1}
    fake.store_error = StoreUnavailable("gone")
    assert client.get("/livez").status_code == 200
    reply = client.get("/readyz")
    assert (reply.status_code, reply.json()["missing"]) == (503, "store")


def test_readiness_needs_a_worker(client, fake):
    fake.workers = ()
    reply = client.get("/readyz")
    assert (reply.status_code, reply.json()["missing"]) == (503, "worker")


def test_metrics_show_the_fleet_and_the_requests(client, fake):
    fake.workers = (demo_worker(demo_runner(in_flight=2)),)
    fake.waiting = (QueueReport(model="demo", depth=3, oldest_age_ms=1500),)
    client.post("/v1/chat/completions", json=chat())
    text = client.get("/metrics").text
    for line in (
        'keepwarm_num_requests_running{model_name="demo"} 2.0',
        'keepwarm_num_requests_waiting{model_name="demo"} 3.0',
        'keepwarm_num_requests_waiting{model_name="cold"} 0.0',
        'keepwarm_broken_attempts_total{code="runner_crashed",model_name="demo"} 2.0',
        'keepwarm_controller_decisions_total{action="load",reason="room"} 4.0',
        'keepwarm_model_loads_total{model_name="demo"} 3.0',
        'keepwarm_model_load_seconds_total{model_name="demo"} 1.5',
        'keepwarm_model_swap_seconds_total{model_name="demo"} 4.0',
        'keepwarm_cold_starts_total{model_name="demo"} 7.0',
        'keepwarm_evictions_total{reason="ttl"} 2.0',
        'keepwarm_pool_budget_bytes{worker="w1"} 1e+07',
        'keepwarm_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0',
        'keepwarm_webhook_tries_total{outcome="delivered",reason=""} 5.0',
        'keepwarm_webhook_tries_total{outcome="dead",reason="timeout"} 1.0',
        "keepwarm_webhooks_pending 2.0",
        'keepwarm_batches_open{state="in_progress"} 2.0',
        'keepwarm_batches_open{state="validating"} 0.0',
        'keepwarm_batches_ended_total{state="completed"} 5.0',
        'keepwarm_batch_lines{state="waiting"} 88.0',
        "keepwarm_batch_window_lines 256.0",
        "keepwarm_batch_oldest_seconds 61.5",
        "keepwarm_webhook_overdue_seconds 1.5",
        "keepwarm_responses_stored 3.0",
        "keepwarm_responses_bytes 4567.0",
        "keepwarm_response_evictions_total 2.0",
        "keepwarm_store_up 1.0",
    ):
        assert line in text


def test_how_long_jobs_wait_is_told_by_their_class_too():
    metrics, times = Metrics(), iter([104.0, 109.0])
    for priority in (Priority.INTERACTIVE, Priority.BATCH):
        job = Job(
            id=JobId("job_1"),
            state=JobState.QUEUED,
            model="demo",
            priority=priority,
            attempt=0,
            last_seq=0,
            created_ms=0,
        )
        meter = AnswerMeter(metrics.of_job(job), arrived=100.0, clock=lambda: next(times))
        meter.saw([(0, Started(attempt=1, worker="w1"))])
        meter.saw([(0, Started(attempt=2, worker="w2"))])  # a second attempt has waited for something else
    text = metrics.exposition(None, None).decode()
    assert 'keepwarm_priority_queue_time_seconds_sum{priority="interactive"} 4.0' in text
    assert 'keepwarm_priority_queue_time_seconds_sum{priority="batch"} 9.0' in text
    assert 'keepwarm_request_queue_time_seconds_sum{model_name="demo"} 13.0' in text


def test_how_good_an_estimate_was_and_what_was_reduced_are_shown(client, fake):
    offer = msgspec.structs.replace(DEMO, estimate_error=0.25, reduced="2 of 8 slots, to fit into 1.0 GiB")
    runner = msgspec.structs.replace(demo_runner(), reduced=offer.reduced)
    fake.workers = (demo_worker(runner, offers=(offer,)),)
    assert 'keepwarm_estimate_error_ratio{model_name="demo",worker="w1"} 0.25' in client.get("/metrics").text
    assert client.get("/v1/pool").json()["workers"][0]["runners"][0]["reduced"] == offer.reduced
    assert client.get("/v1/models/demo").json()["keepwarm"]["reduced"] == offer.reduced


def test_metrics_survive_a_store_that_is_down(client, fake):
    fake.store_error = StoreUnavailable("gone")
    reply = client.get("/metrics")
    assert reply.status_code == 200
    assert "keepwarm_store_up 0.0" in reply.text


# ---- silence


async def test_waiting_client_hears_its_place_now_and_then_and_a_keep_alive_in_between(fake):
    now = 0.0
    job = Job(
        id=JobId("job_1"),
        state=JobState.QUEUED,
        model="demo",
        priority=Priority.DEFAULT,
        attempt=0,
        last_seq=0,
        created_ms=NOW_MS,
    )
    fake.line_position = 3
    beat = Beat(fake, job, keep_alive_s=10, clock=lambda: now)
    assert await beat.place_in_line() == Queued(3)
    assert await beat.place_in_line() is None
    now = 5.0
    assert await beat.place_in_line() == Queued(3)
    beat.sent()
    beat.saw(Started(1, "w1"))
    now = 13.9
    assert await beat.place_in_line() is None
    assert not beat.is_keep_alive_due
    now = 14.0
    assert beat.is_keep_alive_due


# ---- web pages of other origins


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "box.lan:8000"])
def test_host_names_that_are_ours(fake, host):
    with front_client(fake, allowed_hosts="box.lan, other") as client:
        assert client.get("/livez", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "[fe80::1]"])
def test_host_name_that_somebody_bound_to_loopback_is_refused(client, host):
    reply = client.get("/v1/models", headers={"host": host})
    assert (reply.status_code, reply.json()["error"]["code"]) == (421, "misdirected_request")


def test_open_front_answers_to_any_name_until_it_is_told_its_own(fake):
    with front_client(fake, allow_open=True, host="0.0.0.0") as client:
        assert client.get("/livez", headers={"host": "front.example"}).status_code == 200
    with front_client(fake, allow_open=True, host="0.0.0.0", allowed_hosts="front.example") as client:
        statuses = [
            client.get("/livez", headers={"host": host}).status_code
            for host in ("front.example:80", "localhost", "evil.example")
        ]
        assert statuses == [200, 200, 421]


def test_page_of_another_origin_can_read_nothing_new_and_change_nothing(client, fake):
    cross = {"sec-fetch-site": "cross-site"}
    assert client.post("/v1/models/demo/evict", headers=cross).status_code == 403
    assert client.post("/v1/models/demo/evict", headers={"sec-fetch-site": "same-origin"}).status_code == 202
    assert len(fake.asked) == 1


# ---- settings and page


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_open_address_is_refused_unless_allowed(monkeypatch, host):
    monkeypatch.setenv("KEEPWARM_HOST", host)
    with pytest.raises(InvalidSetting, match=r"KEEPWARM_HOST.*KEEPWARM_ALLOW_OPEN=1"):
        load_settings(ApiSettings)
    monkeypatch.setenv("KEEPWARM_ALLOW_OPEN", "1")
    assert load_settings(ApiSettings).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_is_open_by_default(host):
    assert ApiSettings(host=host).host == host


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_page_loads_nothing_from_elsewhere_and_has_no_inline_script(client, page):
    reply = client.get(page)
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.search(r"<script(?! src=\"/static/)|<style|\son\w+=|style=", reply.text)
    assert "//" not in reply.text
    for path in re.findall(r"(?:src|href)=\"(/[^\"]*)\"", reply.text):
        assert client.get(path).status_code == 200


# ---- threads


@pytest.mark.parametrize("dependency", [get_front, idempotency_key])
def test_dependencies_of_every_request_cost_no_thread(dependency: object):
    assert inspect.iscoroutinefunction(dependency)


# ---- the OpenAPI document


def operations(client: TestClient) -> Iterator[tuple[str, str, dict]]:
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_operation_documents_what_it_answers_and_how_it_refuses(client):
    for method, path, operation in operations(client):
        answers = operation["responses"]
        good = [answer for status, answer in answers.items() if status.startswith("2") and status != "204"]
        assert all(media["schema"] for answer in good for media in answer["content"].values()), (method, path)
        if path not in {"/livez", "/readyz", "/metrics"}:
            media_type = "application/json" if speaks_openai(path) else "application/problem+json"
            assert {tuple(answers[status]["content"]) for status in ("4XX", "5XX")} == {(media_type,)}, (method, path)


def test_allow_header_names_all_methods_of_a_path(client):
    assert client.patch("/v1/files").headers["allow"] == "GET, POST"
    assert client.patch("/v1/jobs/job_1").headers["allow"] == "DELETE, GET"
