"""Webhooks without a network: signatures, retries, wording, and a deliverer on fakes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from app.settings import ApiSettings
from app.webhooks import deliverer as deliverer_module
from app.webhooks.deliverer import AT_ONCE_PER_ORIGIN, MAX_PUT_BACK_S, Deliverer
from app.webhooks.sending import outcome_of
from app.webhooks.signing import parse_secret, signed_headers
from app.webhooks.thread import DelivererThread
from tasks.attachments import Webhook
from tasks.batches import BatchCounts
from tasks.errors import InvalidSetting, StoreUnavailable
from tasks.jobs import Usage
from tasks.settings import StoreSettings, load_settings
from tasks.webhooks import RETRY_DELAYS_S, Delivered, Message, NotDelivered, Outcome, next_try_s, wording

KEY = bytes(range(32))
PATIENCE_S = 10.0
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OTHER = "whsec_" + base64.b64encode(KEY[::-1]).decode()
BODY = b'{"type":"job.succeeded"}'
MESSAGE = Message(
    id="job_1",
    number=1,
    webhook=Webhook(url="https://hooks.example/in?token=x"),
    state="succeeded",
    created_ms=1_700_000_000_123,
    ended_ms=1_700_000_060_456,
    metadata={"ticket": "7"},
    model="demo",
    usage=Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3),
)


# ---- signatures


def test_signature_is_that_of_the_specification():
    headers = signed_headers("msg_1", 1674087231, BODY, [KEY])
    expected = hmac.new(KEY, b"msg_1.1674087231." + BODY, hashlib.sha256).digest()
    assert headers == {
        "webhook-id": "msg_1",
        "webhook-timestamp": "1674087231",
        "webhook-signature": "v1," + base64.b64encode(expected).decode(),
    }


def test_published_example_of_another_implementation_comes_out_the_same():
    key = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [key])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def verified_by(secret: str, headers: Mapping[str, str], body: bytes = BODY) -> bool:
    try:
        OpenAI(api_key="none").webhooks.verify_signature(body.decode(), dict(headers), secret=secret)
    except InvalidWebhookSignatureError:
        return False
    return True


def test_official_sdk_verifies_either_of_two_secrets_and_no_other_body():
    headers = signed_headers("msg_1", int(time.time()), BODY, [KEY, KEY[::-1]])
    assert verified_by(SECRET, headers) and verified_by(OTHER, headers)
    assert not verified_by(SECRET, headers, BODY + b" ")
    assert not verified_by(SECRET, headers | {"webhook-id": "msg_2"})
    assert not verified_by("whsec_" + base64.b64encode(bytes(32)).decode(), headers)


@pytest.mark.parametrize(
    "text", [SECRET.removeprefix("whsec_"), "whsec_", "whsec_c2hvcnQ=", "whsec_" + "?" * 44, "whsec_" + "A" * 200]
)
def test_secret_of_another_form_is_refused_and_not_repeated(text: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="24 to 64 random bytes") as refused:
        parse_secret(text)
    assert len(text) < 10 or text not in str(refused.value)
    monkeypatch.setenv("KEEPWARM_WEBHOOK_SECRET", text)
    with pytest.raises(InvalidSetting, match="KEEPWARM_WEBHOOK_SECRET: must be whsec_") as stopped:
        load_settings(ApiSettings)
    assert len(text) < 10 or text not in str(stopped.value)


def test_settings_hold_several_secrets_and_show_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEEPWARM_WEBHOOK_SECRET", f"{SECRET}, {OTHER}")
    monkeypatch.setenv("KEEPWARM_WEBHOOK_ALLOW", "127.0.0.0/8, hooks.internal")
    settings = load_settings(ApiSettings)
    assert settings.webhook_keys == (KEY, KEY[::-1])
    assert settings.webhook_reach.names_host("hooks.internal")
    assert "whsec_" not in repr(settings)


# ---- when to try again


def test_tries_follow_the_schedule_of_the_specification_and_end():
    failed = NotDelivered("status_5xx")
    waits = [next_try_s(failed, tries, 0.0, RETRY_DELAYS_S) for tries in range(1, 11)]
    assert waits == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400, None]
    assert sum(RETRY_DELAYS_S) == 75 * 3600 + 35 * 60 + 5


def test_jitter_adds_up_to_a_fifth():
    failed = NotDelivered("timeout")
    assert next_try_s(failed, 2, 0.5, RETRY_DELAYS_S) == pytest.approx(330)
    assert next_try_s(failed, 2, 1.0, RETRY_DELAYS_S) == pytest.approx(360)


def test_receiver_may_ask_for_more_time_within_bounds():
    assert next_try_s(NotDelivered("status_4xx", retry_after_s=60), 1, 0.0, RETRY_DELAYS_S) == 60
    assert next_try_s(NotDelivered("status_4xx", retry_after_s=1), 1, 0.0, RETRY_DELAYS_S) == 5
    assert next_try_s(NotDelivered("status_4xx", retry_after_s=1e8), 1, 0.0, RETRY_DELAYS_S) == 24 * 3600


@pytest.mark.parametrize(
    ("status", "retry_after", "outcome"),
    [
        (200, "", Delivered()),
        (204, "", Delivered()),
        (301, "", NotDelivered("redirect")),
        (404, "", NotDelivered("status_4xx")),
        (410, "", NotDelivered("gone", is_final=True)),
        (429, "120", NotDelivered("status_4xx", retry_after_s=120)),
        (503, "Wed, 21 Oct 2026 07:28:00 GMT", NotDelivered("status_5xx")),
        (503, "9" * 30, NotDelivered("status_5xx")),
    ],
)
def test_what_a_status_means(status: int, retry_after: str, outcome: Outcome):
    assert outcome_of(status, retry_after) == outcome


def test_final_outcome_is_not_tried_again():
    assert next_try_s(NotDelivered("gone", is_final=True), 1, 0.0, RETRY_DELAYS_S) is None


# ---- what is said


def test_body_of_a_job_says_ids_state_and_usage():
    body = json.loads(wording(MESSAGE, "2023-11-14T22:14:20.456000+00:00"))
    assert body == {
        "id": "msg_job_1",
        "object": "event",
        "type": "job.succeeded",
        "created_at": 1_700_000_060,
        "timestamp": "2023-11-14T22:14:20.456000+00:00",
        "data": {
            "id": "job_1",
            "object": "job",
            "state": "succeeded",
            "model": "demo",
            "error": None,
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "cached_tokens": 3},
            "created_at": 1_700_000_000,
            "metadata": {"ticket": "7"},
        },
    }


def test_body_of_a_batch_says_counts_and_files_in_the_form_of_openais_sdk():
    counts = BatchCounts(total=3, completed=2, failed=1, input_tokens=30, cached_tokens=10, output_tokens=4)
    message = replace(MESSAGE, id="batch_1", state="completed", usage=None, counts=counts, output_file_id="file-1")
    body = wording(message, "2023-11-14T22:14:20Z")
    data = json.loads(body)["data"]
    assert data["status"] == "completed" and data["output_file_id"] == "file-1" and data["error_file_id"] is None
    assert data["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert data["usage"] == {"input_tokens": 30, "output_tokens": 4, "total_tokens": 34, "cached_tokens": 10}
    headers = signed_headers(message.event_id, int(time.time()), body, [KEY])
    event = OpenAI(api_key="none").webhooks.unwrap(body.decode(), headers, secret=SECRET)
    assert event.type == "batch.completed" and event.data.id == "batch_1"


# ---- the deliverer


@dataclass
class FakeOutbox:
    due: list[Message] = field(default_factory=list)
    said: list[tuple[str, ...]] = field(default_factory=list)
    error: Exception | None = None

    def claim(self, count: int, lease_s: float) -> list[Message]:
        if self.error:
            raise self.error
        taken, self.due = self.due[:count], self.due[count:]
        return taken

    def delivered(self, message: Message) -> bool:
        self.said.append(("delivered", message.id))
        return True

    def failed(self, message: Message, reason: str, next_try_s: float) -> bool:
        self.said.append(("failed", message.id, reason, str(next_try_s)))
        return True

    def given_up(self, message: Message, reason: str) -> bool:
        self.said.append(("given_up", message.id, reason))
        return True

    def put_back(self, message: Message, for_s: float) -> bool:
        self.said.append(("put_back", message.id, str(for_s)))
        return True


@dataclass
class FakePoster:
    outcome: Outcome = field(default_factory=Delivered)
    posted: list[tuple[str, bytes, Mapping[str, str]]] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def post(self, target: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        self.posted.append((target, body, headers))
        if self.gate is not None:
            await self.gate.wait()
        return self.outcome


def deliverer(outbox: FakeOutbox, poster: FakePoster, signing_keys: tuple[bytes, ...] = (KEY,)) -> Deliverer:
    return Deliverer(
        outbox=outbox,
        sender=poster,
        signing_keys=signing_keys,
        timeout_s=1.0,
        jitter=lambda: 0.0,
        clock=lambda: 1_700_000_100.9,
    )


async def settled(
    outbox: FakeOutbox, poster: FakePoster, signing_keys: tuple[bytes, ...] = (KEY,)
) -> list[tuple[str, ...]]:
    each = deliverer(outbox, poster, signing_keys)
    await each.turn()
    await each.idle()
    return outbox.said


async def test_message_is_posted_signed_by_the_secret_of_the_installation(caplog: pytest.LogCaptureFixture):
    poster = FakePoster()
    assert await settled(FakeOutbox([MESSAGE]), poster) == [("delivered", "job_1")]
    ((target, body, headers),) = poster.posted
    assert target == MESSAGE.webhook.url
    assert headers == signed_headers("msg_job_1", 1_700_000_100, body, [KEY])
    assert "token" not in caplog.text


async def test_secret_of_the_request_goes_first():
    poster = FakePoster()
    own = replace(MESSAGE, webhook=Webhook(url="https://hooks.example/", secret=OTHER))
    await settled(FakeOutbox([own]), poster)
    ((_, body, headers),) = poster.posted
    assert headers == signed_headers("msg_job_1", 1_700_000_100, body, [KEY[::-1]])


async def test_failure_is_tried_again_later_and_the_last_one_is_the_end(capsys: pytest.CaptureFixture[str]):
    poster = FakePoster(NotDelivered("status_5xx"))
    assert await settled(FakeOutbox([MESSAGE]), poster) == [("failed", "job_1", "status_5xx", "5.0")]
    last = replace(MESSAGE, number=len(RETRY_DELAYS_S) + 1)
    assert await settled(FakeOutbox([last]), poster) == [("given_up", "job_1", "status_5xx")]
    assert "token" not in capsys.readouterr().out


async def test_message_with_which_deliverers_died_again_and_again_is_given_up_unsent():
    poster = FakePoster()
    often = replace(MESSAGE, number=len(RETRY_DELAYS_S) + 2)
    assert await settled(FakeOutbox([often]), poster) == [("given_up", "job_1", "abandoned")]
    assert poster.posted == []


async def test_without_a_secret_nothing_is_sent_unsigned():
    poster = FakePoster()
    assert await settled(FakeOutbox([MESSAGE]), poster, signing_keys=()) == [("failed", "job_1", "no_secret", "5.0")]
    assert poster.posted == []


async def test_receiver_that_hangs_leaves_room_for_others():
    poster = FakePoster(gate=asyncio.Event())
    slow = [replace(MESSAGE, id=f"job_{n}") for n in range(AT_ONCE_PER_ORIGIN + 3)]
    other = replace(MESSAGE, id="job_other", webhook=Webhook(url="https://elsewhere.example/"))
    outbox = FakeOutbox([*slow, other])
    each = deliverer(outbox, poster)
    await each.turn()
    while len(outbox.said) < 3 or len(poster.posted) < AT_ONCE_PER_ORIGIN + 1:
        await asyncio.sleep(0)
    assert sorted(said[0] for said in outbox.said) == ["put_back"] * 3
    assert poster.posted[-1][0] == "https://elsewhere.example/"
    assert poster.gate is not None
    poster.gate.set()
    await each.idle()
    assert sum(said[0] == "delivered" for said in outbox.said) == AT_ONCE_PER_ORIGIN + 1


async def test_messages_of_a_receiver_that_hangs_are_looked_at_less_often_the_more_they_are():
    poster = FakePoster(gate=asyncio.Event())
    outbox = FakeOutbox([replace(MESSAGE, id=f"job_{n}") for n in range(AT_ONCE_PER_ORIGIN + 500)])
    each = deliverer(outbox, poster)

    async def waits() -> list[float]:
        outbox.said.clear()
        num_sent, num_taken = len(poster.posted), 0
        while outbox.due or len(outbox.said) + len(poster.posted) - num_sent < num_taken:
            num_taken += await each.turn()
            await asyncio.sleep(0)
        return sorted(float(said[2]) for said in outbox.said)

    first = await waits()
    assert first[0] < 3 < MAX_PUT_BACK_S == first[-1]
    assert poster.gate is not None
    poster.gate.set()
    await each.idle()
    poster.gate.clear()  # it has answered, and hangs again
    outbox.due = [replace(MESSAGE, id=f"again_{n}") for n in range(AT_ONCE_PER_ORIGIN + 1)]
    assert await waits() == first[:1]
    poster.gate.set()
    await each.idle()


def test_names_that_are_looked_up_for_long_hold_up_no_other_receiver(monkeypatch: pytest.MonkeyPatch):
    is_over, told = threading.Event(), threading.Event()
    look_up = socket.getaddrinfo

    def slow(host: str, *args: Any, **options: Any) -> Any:
        if host.endswith(".example"):
            is_over.wait(PATIENCE_S)
        return look_up("127.0.0.1", *args, **options)

    class Told(FakeOutbox):
        def failed(self, message: Message, reason: str, next_try_s: float) -> bool:
            if message.id == "job_other":
                told.set()
            return super().failed(message, reason, next_try_s)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    hanging = [replace(MESSAGE, id=f"job_{n}", webhook=Webhook(url=f"http://h{n}.example/")) for n in range(31)]
    closed = replace(MESSAGE, id="job_other", webhook=Webhook(url="http://127.0.0.1:1/"))
    settings = ApiSettings(webhook_secret=SECRET, webhook_allow=("127.0.0.0/8",), webhook_timeout_s=PATIENCE_S)
    thread = DelivererThread(settings, StoreSettings(), outbox=Told([*hanging, closed]))
    thread.start()
    try:
        assert told.wait(PATIENCE_S / 2), "its look-up stands behind those of the others"
    finally:
        is_over.set()
        thread.stop()


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("a mistake of ours")])
async def test_deliverer_outlives_what_breaks(monkeypatch: pytest.MonkeyPatch, error: Exception):
    outbox, stop, pauses = FakeOutbox(error=error), asyncio.Event(), []

    async def pause(event: asyncio.Event, limit_s: float) -> None:
        pauses.append(limit_s)
        outbox.error = None
        if len(pauses) > 1:
            event.set()

    monkeypatch.setattr(deliverer_module, "_wait", pause)
    outbox.due.append(MESSAGE)
    await deliverer(outbox, FakePoster()).run(stop)
    assert pauses[0] == deliverer_module.STORE_AWAY_S
    assert outbox.due == []
