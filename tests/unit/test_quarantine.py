"""When a model is blamed for the workers that it cost, and what makes two prompts the same."""

from __future__ import annotations

import pytest

from tasks.fleet import Fleet, WorkerReport
from tasks.generation import GenerationRequest, SamplingParams
from tasks.jobs import JobError, WorkerId
from tasks.quarantine import (
    LOSS_WINDOW_MS,
    SAME_LOSS_MS,
    Quarantine,
    Suspect,
    WorkerLoss,
    model_suspect,
    request_digest,
    speaks_against_prompt,
    suspicious_models,
)

NOW_MS = 1_000_000_000


def loss(worker: str, *, ago_s: float = 60, model: str = "m") -> WorkerLoss:
    lost_ms = NOW_MS - int(ago_s * 1000)
    return WorkerLoss(model=model, worker=worker, busy_since_ms=lost_ms - 30_000, lost_ms=lost_ms)


def fleet(*alive: str, started_s_ago: float = 3600) -> Fleet:
    workers = tuple(
        WorkerReport(
            id=WorkerId(name),
            pid=1,
            host="h",
            device="cpu",
            budget_bytes=1,
            used_bytes=0,
            started_ms=NOW_MS - int(started_s_ago * 1000),
        )
        for name in alive
    )
    return Fleet(now_ms=NOW_MS, workers=workers)


def blamed(*losses: WorkerLoss, alive: Fleet | None = None, succeeded_s_ago: float | None = None) -> list[str]:
    succeeded = {} if succeeded_s_ago is None else {"m": NOW_MS - int(succeeded_s_ago * 1000)}
    return list(suspicious_models(losses, alive or fleet("x"), succeeded))


def test_model_that_cost_three_workers_is_blamed() -> None:
    losses = (loss("w1", ago_s=300), loss("w2", ago_s=200), loss("w3", ago_s=100))
    assert suspicious_models(losses, fleet(), {}) == {"m": ("w1", "w2", "w3")}
    assert blamed(*losses[:2]) == []


def test_jobs_that_went_down_with_one_worker_are_one_loss() -> None:
    assert blamed(*(loss("w1", ago_s=60 + number / 10) for number in range(8))) == []


def test_same_name_counts_again_after_a_restart() -> None:
    restarts = [loss("w1", ago_s=60 + number * 2 * SAME_LOSS_MS / 1000) for number in range(3)]
    assert blamed(*restarts) == ["m"]


def test_worker_that_lives_was_not_lost() -> None:
    losses = [loss(worker) for worker in ("w1", "w2", "w3")]
    assert blamed(*losses, alive=fleet("w3")) == []
    assert blamed(*losses, alive=fleet("w3", started_s_ago=1)) == ["m"]  # only its name lives on


def test_losses_of_another_model_or_long_ago_do_not_count() -> None:
    old = loss("w3", ago_s=LOSS_WINDOW_MS / 1000)
    assert blamed(loss("w1"), loss("w2"), old) == []
    assert blamed(loss("w1"), loss("w2"), loss("w3", model="other")) == []


def test_success_clears_a_model() -> None:
    losses = (loss("w1", ago_s=300), loss("w2", ago_s=200), loss("w3", ago_s=100))
    assert blamed(*losses, succeeded_s_ago=250) == []
    assert blamed(*losses, succeeded_s_ago=400) == ["m"]


def test_digest_is_of_everything_but_the_seed() -> None:
    def digest(prompt: str = "p", **sampling: float) -> str:
        return request_digest(GenerationRequest(model="m", prompt=prompt, sampling=SamplingParams(**sampling)))  # type: ignore[arg-type]

    assert digest(seed=1) == digest(seed=2)
    assert len({digest(), digest("q"), digest(temperature=0)}) == 3
    assert "p" * 8 not in digest("p" * 8)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("runner_crashed", True),
        ("runner_stalled", True),
        ("runner_out_of_memory", True),
        ("worker_lost", False),
        ("store_unavailable", False),
    ],
)
def test_only_a_lost_runner_speaks_against_a_prompt(code: str, expected: bool) -> None:
    assert speaks_against_prompt(JobError(code=code, message="")) is expected
    assert not speaks_against_prompt(None)


def test_explanation_says_why_until_when_and_how_to_lift() -> None:
    cause = JobError(code="runner_crashed", message="The runner died.")
    suspect = Suspect(kind="prompt", model="m", digest="ab12", cause=cause)
    entry = Quarantine(suspect=suspect, since_ms=0, until_ms=3_600_000)
    assert entry.explanation == (
        "This request is quarantined: it cost 'm' 2 runners at the same place. The last one: The runner died. "
        "Until 1970-01-01T01:00:00Z; lift it earlier with `keepwarm quarantine lift prompt:ab12` "
        "or DELETE /v1/quarantine/prompt:ab12."
    )
    model = Quarantine(suspect=model_suspect("m", ("w1", "w2", "w3")), since_ms=0, until_ms=1)
    assert model.id == "model:m"
    assert "3 workers were lost within 10 minutes" in model.explanation
