"""Hold the simulator against a real run of `benchmarks swap`: the same schedule, with what that run took. Pure.

Load times are the measured means, model by model. A decode step is a + b: a seconds per byte of weights of all models
that are at work, b for each of their sequences; both by least squares from how fast the answers came, from who else
answered meanwhile, and from what was loaded beside (`simulation/shared_cores.py`). What a prompt token costs in steps
comes from the quickest first tokens, which waited for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np

from benchmarks.simulation.baselines import Clairvoyant
from benchmarks.simulation.cluster import Policy
from benchmarks.simulation.keepwarm_policy import KeepwarmPolicy
from benchmarks.simulation.parameters import Hardware, Model, Setting
from benchmarks.simulation.shared_cores import SharedCores, slowdown
from benchmarks.simulation.workload import INTERACTIVE, Request
from benchmarks.spread import percentile
from benchmarks.swapping.open_loop import Answer
from benchmarks.swapping.report import Loads, Run
from benchmarks.swapping.schedule import Ask
from benchmarks.swapping.worker_log import LoadSpan

GOAL = 0.15  # simulated / measured - 1
FEWEST_TOKENS = 4  # of an answer whose pace counts
QUICKEST_SHARE = 0.1  # of the first tokens: these waited for nothing
MIN_STEP_S = 1e-5


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What computing takes on the machine that was measured."""

    byte_s: float  # of weights, in each step
    sequence_s: float  # in each step
    prompt_tokens_per_step: float


class Cores(msgspec.Struct, frozen=True, kw_only=True):
    """Of the machine that was measured."""

    cores: int
    threads: int  # of a step

    def slowdown(self, num_loads: int) -> float:
        return slowdown(num_loads, cores=self.cores, threads=self.threads)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to the first token."""

    rooms: int
    seed: int
    measured_p50_s: float
    simulated_p50_s: float
    measured_p95_s: float
    simulated_p95_s: float
    measured_loads: int
    simulated_loads: int
    clairvoyant_p95_s: float  # simulated: eviction that knows all arrivals, with the same loads and pace

    @property
    def errors(self) -> tuple[float, float]:
        """Of P50 and P95; positive: the simulator is slower."""
        return (self.simulated_p50_s / self.measured_p50_s - 1, self.simulated_p95_s / self.measured_p95_s - 1)


class _Answered(msgspec.Struct, frozen=True):
    """A request from its first token to its end, in seconds of the run."""

    begin_s: float
    end_s: float
    first_token_s: float  # since it was due
    ask: Ask
    prompt_tokens: int
    file_bytes: int
    slowdown: float  # of its steps, by loads


def fit_pace(runs: Sequence[Run], cores: Cores) -> Pace:
    """Raises ValueError when no answer is long enough to tell a pace."""
    terms, paces, all_answered = [], [], []
    for run in runs:
        answered = _answered(run, cores)
        all_answered += answered
        for each in answered:
            if each.ask.num_tokens >= FEWEST_TOKENS and each.end_s > each.begin_s:
                terms.append([each.slowdown * term for term in _company(each, answered)])
                paces.append((each.end_s - each.begin_s) / (each.ask.num_tokens - 1))
    if not paces:
        raise ValueError("no answer is long enough to tell how fast tokens come")
    byte_s, sequence_s = _nonnegative(np.array(terms), np.array(paces))
    tokens_per_step = [
        each.prompt_tokens * (byte_s * each.file_bytes + sequence_s) / max(each.first_token_s, MIN_STEP_S)
        for each in all_answered
    ]
    return Pace(
        byte_s=byte_s,
        sequence_s=sequence_s,
        prompt_tokens_per_step=max(1.0, percentile(tokens_per_step, 100 * (1 - QUICKEST_SHARE))),
    )


def _answered(run: Run, cores: Cores) -> list[_Answered]:
    return [
        _Answered(
            ask.at_s + answer.first_token_s,
            ask.at_s + answer.total_s,
            answer.first_token_s,
            ask,
            _prompt_tokens(ask, answer),
            run.loads[ask.model].file_bytes,
            _mean_slowdown(run.load_spans, ask.at_s + answer.first_token_s, ask.at_s + answer.total_s, cores),
        )
        for ask, answer in zip(run.asks, run.answers, strict=True)
        if answer.first_token_s is not None
    ]


def _prompt_tokens(ask: Ask, answer: Answer) -> int:
    """As the server counted them; runs from before that was kept have the schedule's words instead."""
    return ask.prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens


def _mean_slowdown(spans: Sequence[LoadSpan], begin_s: float, end_s: float, cores: Cores) -> float:
    """Of the work done meanwhile: the harmonic mean over the time."""
    marks = {begin_s, end_s, *(at_s for span in spans for at_s in (span.begin_s, span.end_s) if begin_s < at_s < end_s)}
    work = 0.0
    for left_s, right_s in pairwise(sorted(marks)):
        num_loads = sum(span.begin_s <= left_s and span.end_s >= right_s for span in spans)
        work += (right_s - left_s) / cores.slowdown(num_loads)
    return (end_s - begin_s) / work if work else 1.0


def _company(own: _Answered, answered: Sequence[_Answered]) -> tuple[float, float]:
    """Bytes of the models, and sequences, that were at work while the tokens of `own` came, on average."""
    shares = {own.ask.model: (1.0, own.file_bytes)}
    sequences = 1.0
    for each in answered:
        overlap_s = min(own.end_s, each.end_s) - max(own.begin_s, each.begin_s)
        if each is own or overlap_s <= 0:
            continue
        share = overlap_s / (own.end_s - own.begin_s)
        known, _ = shares.get(each.ask.model, (0.0, 0))
        shares[each.ask.model] = (min(1.0, known + share), each.file_bytes)
        sequences += share
    return sum(share * size for share, size in shares.values()), sequences


def _nonnegative(terms: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Least squares of relative errors in two unknowns, none below 0."""
    scaled = terms / values[:, None]
    ones = np.ones(len(values))
    both = np.linalg.lstsq(scaled, ones, rcond=None)[0]
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    single = [float(scaled[:, index] @ ones / (scaled[:, index] @ scaled[:, index])) for index in range(2)]
    losses = [float(((scaled[:, index] * single[index] - 1) ** 2).sum()) for index in range(2)]
    return (single[0], 0.0) if losses[0] <= losses[1] else (0.0, single[1])


def setting_of(run: Run, pace: Pace, slots: int) -> Setting:
    """One worker with the budget of the run."""
    assert run.budget_bytes is not None, "only runs of Keepwarm have a budget"
    return Setting(
        models=tuple(_model(name, loads, pace, slots) for name, loads in sorted(run.loads.items())),
        num_workers=1,
        hardware=Hardware(
            budget_bytes=run.budget_bytes,
            sequence_ms=pace.sequence_s * 1000,
            prefill_tokens_per_step=pace.prompt_tokens_per_step,
            init_ms=0.0,  # it is part of the measured loads
        ),
    )


def _model(name: str, loads: Loads, pace: Pace, slots: int) -> Model:
    return Model(
        id=name,
        bytes=loads.bytes,
        slots=slots,
        load_ms=loads.load_s / loads.count * 1000,
        step_ms=max(MIN_STEP_S, pace.byte_s * loads.file_bytes) * 1000,
    )


def compare(run: Run, pace: Pace, slots: int, cores: Cores) -> Comparison:
    """Replay the run's schedule. Requests that failed are left out on both sides."""
    served = [
        (ask, _prompt_tokens(ask, answer), answer.first_token_s)
        for ask, answer in zip(run.asks, run.answers, strict=True)
        if answer.first_token_s is not None
    ]
    requests = [
        Request(
            arrival_ms=ask.at_s * 1000,
            model=ask.model,
            priority=INTERACTIVE,
            context=prompt_tokens,
            tokens=ask.num_tokens,
        )
        for ask, prompt_tokens, _ in served
    ]
    setting = setting_of(run, pace, slots)
    simulated, num_loads = _replay(setting, requests, KeepwarmPolicy(max_replicas=1), cores)
    clairvoyant, _ = _replay(setting, requests, Clairvoyant(), cores)
    measured = [first_s for _, _, first_s in served]
    return Comparison(
        rooms=run.rooms,
        seed=run.seed,
        measured_p50_s=percentile(measured, 50),
        simulated_p50_s=percentile(simulated, 50),
        measured_p95_s=percentile(measured, 95),
        simulated_p95_s=percentile(simulated, 95),
        measured_loads=sum(loads.count for loads in run.loads.values()),
        simulated_loads=num_loads,
        clairvoyant_p95_s=percentile(clairvoyant, 95),
    )


def _replay(setting: Setting, requests: Sequence[Request], policy: Policy, cores: Cores) -> tuple[list[float], int]:
    """Seconds to the first tokens, and loads."""
    cluster = SharedCores(setting, list(requests), policy, cores=cores.cores, threads=cores.threads)
    cluster.run(requests[-1].arrival_ms + 3_600_000)
    waits = [
        ((cluster.now_ms if job.first_token_ms is None else job.first_token_ms) - job.request.arrival_ms) / 1000
        for job in cluster.jobs
    ]
    return waits, cluster.loads
