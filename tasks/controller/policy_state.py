"""What the policy remembers between two ticks. Stored under the leader's epoch, so that a new leader goes on. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from tasks.controller.demand import Demand
from tasks.controller.rules import Rules
from tasks.fleet import RunnerReport
from tasks.jobs import Priority

FORGET_BELOW_PER_S = 1e-6  # a rate that faded to this says as much as none
PRUNE_EVERY_MS = 60_000


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """Moving average of a model's arrivals, per second, as of `at_ms`; batch jobs, which nobody waits for, apart."""

    per_s: float
    batch_per_s: float
    at_ms: int


class Bucket(msgspec.Struct, frozen=True, array_like=True):
    """Load time that a worker may still spend on displacing busy models, as of `at_ms`; a large load leaves a debt."""

    tokens_ms: int
    at_ms: int


class LoadFailures(msgspec.Struct, frozen=True, array_like=True):
    """Failed loads of a model in a row, on whatever workers; no new try before `until_ms`."""

    count: int
    until_ms: int
    reason: str
    workers: tuple[str, ...]


class PolicyState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Models and workers that are not mentioned have no rate, a full bucket, no failure."""

    rates: dict[str, Rate] = {}
    buckets: dict[str, Bucket] = {}
    failures: dict[str, LoadFailures] = {}
    displaced_ms: dict[str, int] = {}  # model → when it had to leave: its turn counts from there
    asked_ms: dict[
        str, int
    ] = {}  # model → when jobs of it were seen last; a heartbeat shows a little later who runs them
    pruned_ms: int = 0
    prefetch_ms: int = 0  # when the hints last changed

    def rate_per_s(self, model: str, now_ms: int, rules: Rules) -> float:
        """Arrivals per second, batch jobs with their lesser weight."""
        rate = self.rates.get(model)
        if rate is None:
            return 0.0
        return (rate.per_s + rules.batch_weight * rate.batch_per_s) * _fading(rate, now_ms, rules)

    def is_expected(self, runner: RunnerReport, now_ms: int, rules: Rules) -> bool:
        """Whether a runner that reports no work has some: its job waits no more, but the runner's last heartbeat was
        before it came, or at least the runner has not become idle since then."""
        asked_ms = self.asked_ms.get(runner.model)
        if asked_ms is None or now_ms - asked_ms >= rules.report_ms:
            return False
        idle_ms = runner.idle_since_ms
        has_worked = idle_ms is not None and idle_ms > runner.since_ms
        return not has_worked or (idle_ms or 0) < asked_ms

    def bucket_ms(self, worker: str, now_ms: int, rules: Rules) -> int:
        bucket = self.buckets.get(worker)
        if bucket is None:
            return rules.bucket_cap_ms
        refilled = bucket.tokens_ms + math.floor(max(0, now_ms - bucket.at_ms) * rules.load_share)
        return min(refilled, rules.bucket_cap_ms)


def with_asked(state: PolicyState, demand: Demand, now_ms: int, rules: Rules) -> PolicyState:
    """The state after a look at whom jobs wait for, and for whom some came since the last look."""
    if not demand.queues and not demand.arrivals and not state.asked_ms:
        return state
    known = {model: at_ms for model, at_ms in state.asked_ms.items() if now_ms - at_ms < rules.report_ms}
    looked_ms = demand.looked_ms if demand.looked_ms is not None else now_ms - rules.tick_ms
    for model, _ in demand.arrivals:
        known[model] = max(known.get(model, 0), looked_ms)
    known |= {queue.model: now_ms for queue in demand.queues}
    return msgspec.structs.replace(state, asked_ms=known)


def with_arrivals(
    state: PolicyState, arrivals: Mapping[tuple[str, int], int], now_ms: int, rules: Rules
) -> PolicyState:
    """The state after so many new jobs since the last time, by model and priority."""
    is_due = now_ms - state.pruned_ms >= PRUNE_EVERY_MS
    if not arrivals and not is_due:
        return state
    rates = dict(state.rates)
    for (model, priority), count in arrivals.items():
        rate = rates.get(model, Rate(0.0, 0.0, now_ms))
        fading, added = _fading(rate, now_ms, rules), count * 1000 / rules.rate_window_ms
        is_batch = priority >= Priority.BATCH
        rates[model] = Rate(
            rate.per_s * fading + (0.0 if is_batch else added),
            rate.batch_per_s * fading + (added if is_batch else 0.0),
            now_ms,
        )
    if not is_due:
        return msgspec.structs.replace(state, rates=rates)
    old_ms = now_ms - 10 * rules.batch_target_ms
    return msgspec.structs.replace(
        state,
        rates={
            m: r
            for m, r in rates.items()
            if (r.per_s + r.batch_per_s) * _fading(r, now_ms, rules) >= FORGET_BELOW_PER_S
        },
        displaced_ms={model: at_ms for model, at_ms in state.displaced_ms.items() if at_ms > old_ms},
        buckets={w: bucket for w, bucket in state.buckets.items() if bucket.at_ms > old_ms},
        failures={m: known for m, known in state.failures.items() if known.until_ms > old_ms},
        pruned_ms=now_ms,
    )


def _fading(rate: Rate, now_ms: int, rules: Rules) -> float:
    return math.exp(-max(0, now_ms - rate.at_ms) / rules.rate_window_ms)
