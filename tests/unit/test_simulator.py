"""The simulator: times that can be worked out by hand, budgets, replay, and what it is calibrated with."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from benchmarks.simulation.baselines import OnDemand, line_up
from benchmarks.simulation.calibration import Cores, Pace, compare, fit_pace, setting_of
from benchmarks.simulation.cluster import Cluster, Policy
from benchmarks.simulation.goals import CLAIRVOYANT, OURS, PEER, lines, verdicts
from benchmarks.simulation.keepwarm_policy import KeepwarmPolicy
from benchmarks.simulation.parameters import GB, Hardware, Model, Setting, zoo
from benchmarks.simulation.shared_cores import SharedCores, slowdown
from benchmarks.simulation.trial import Figures, run
from benchmarks.simulation.waiting_bound import WaitingBound
from benchmarks.simulation.workload import BATCH, INTERACTIVE, Request, synthetic
from benchmarks.swapping.open_loop import Answer
from benchmarks.swapping.report import Loads, Report, Run, Terms, ratios, read_report, write_report
from benchmarks.swapping.schedule import Ask, Scale
from benchmarks.swapping.sides import Setting as Mix
from benchmarks.swapping.worker_log import load_spans, untouched_ranges
from tasks.controller.plan import RULES

POLICIES = ("keepwarm", *line_up({}))
PLAIN = Hardware(  # a step takes 100 ms, a load 1.5 s from the disk and 0.6 s from the page cache
    budget_bytes=GB,
    decode_bytes_per_s=10 * GB,
    sequence_ms=0.0,
    prefill_tokens_per_step=100,
    disk_bytes_per_s=GB,
    cache_bytes_per_s=10 * GB,
    init_ms=500,
    stop_ms=100,
)


def request(at_ms: float, model: str, *, context: int = 100, tokens: int = 1, priority: int = INTERACTIVE) -> Request:
    return Request(arrival_ms=at_ms, model=model, priority=priority, context=context, tokens=tokens)


def first_tokens(hardware: Hardware, requests: list[Request], policy: Policy, *, slots: int = 1) -> list[float | None]:
    models = tuple(Model(id=name, bytes=GB, slots=slots) for name in sorted({each.model for each in requests}))
    cluster = Cluster(Setting(models=models, num_workers=1, hardware=hardware), requests, policy)
    cluster.run(3_600_000)
    return [job.first_token_ms for job in cluster.jobs]


def named(policy: str) -> Policy:
    return KeepwarmPolicy() if policy == "keepwarm" else line_up({f"m{n:04d}": 1 / 8 for n in range(8)})[policy]()


def test_three_jobs_of_two_models_in_one_place_take_what_a_hand_works_out():
    """a loads until 1500, a prompt of one step, two more tokens until 1800; it stops until 1900; b loads until 3400,
    one step until 3500, and stops until 3600; a comes from the page cache until 4200, and a prompt of two steps."""
    requests = [request(0, "a", tokens=3), request(1000, "b"), request(2000, "a", context=200)]
    assert first_tokens(PLAIN, requests, OnDemand()) == pytest.approx([1600, 3500, 4400])


def test_sequences_of_a_model_share_its_steps_and_pay_for_themselves():
    """Loaded at 1500. Both begin then, a step takes 100 + 2 · 10 ms."""
    hardware = replace(PLAIN, sequence_ms=10.0)
    requests = [request(0, "a"), request(100, "a")]
    assert first_tokens(hardware, requests, OnDemand(), slots=2) == pytest.approx([1620, 1620])


def test_urgent_jobs_overtake_batch_jobs_that_came_before():
    requests = [request(0, "a", tokens=5), request(10, "a", priority=BATCH), request(20, "a")]
    first, batch, urgent = first_tokens(PLAIN, requests, OnDemand())
    assert first is not None and batch is not None and urgent is not None
    assert first < urgent < batch


class Reader(OnDemand):
    """Wishes for `b` before anything comes."""

    name = "reader"

    def begin(self, cluster: Cluster) -> None:
        cluster.read_ahead(cluster.workers[0], ("b",))


def test_wishes_are_read_while_the_disk_is_idle_and_then_load_from_the_page_cache():
    """b's 1 GB need the disk for 1 s: 400 ms until a's load reads from 400 to 1400, the rest until 2000. Then a, idle
    since 2000, stops until 2200, b loads from the page cache until 2800 and has a token at 2900."""
    requests = [request(400, "a"), request(2100, "b")]
    assert first_tokens(PLAIN, requests, Reader()) == pytest.approx([2000, 2900])


def test_what_is_not_read_to_its_end_comes_from_the_disk():
    """a's load reads from 200 to 1200, and a is gone at 1900, when b's file was read for 900 ms."""
    requests = [request(200, "a"), request(1500, "b")]
    assert first_tokens(PLAIN, requests, Reader()) == pytest.approx([1800, 3500])


class Leaver(OnDemand):
    """Two replicas from the start; that with the first job is told to go."""

    name = "leaver"

    def begin(self, cluster: Cluster) -> None:
        for worker in cluster.workers:
            cluster.load(worker, "a")

    def decide(self, cluster: Cluster) -> None:
        if cluster.now_ms >= 2000:
            cluster.evict(cluster.workers[0], "a")


def test_parked_jobs_go_on_at_once_on_another_replica():
    """Both are ready at 1500. The first job takes 100 ms for its prompt and 3900 for 39 tokens; a second one ends at
    2100 and has the other's runner leave. The first is parked at 4100 with 26 tokens and goes on elsewhere: a prompt of
    126 tokens, and 13 more."""
    setting = Setting(models=(Model(id="a", bytes=GB, slots=1),), num_workers=2, hardware=PLAIN)
    requests = [request(1500, "a", tokens=40), request(2000, "a")]
    cluster = Cluster(setting, requests, Leaver())
    cluster.run(60_000)
    assert [job.finished_ms for job in cluster.jobs] == pytest.approx([5526, 2100])


class Inspected:
    """A policy after each of whose decisions all budgets are looked at."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.name = inner.name
        self.is_ticked = inner.is_ticked
        self.looks = 0

    def begin(self, cluster: Cluster) -> None:
        self.inner.begin(cluster)

    def decide(self, cluster: Cluster) -> None:
        self.inner.decide(cluster)
        self.looks += 1
        for worker in cluster.workers:
            assert worker.used_bytes <= worker.budget_bytes
            assert all(len(runner.running) <= runner.model.slots for runner in worker.runners.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_budgets_and_slots_hold_whoever_decides_and_everybody_is_served(policy: str):
    setting = Setting(models=zoo(8), num_workers=2)
    names = [model.id for model in setting.models]
    requests = synthetic(names, alpha=0.9, cv=2.0, rate_per_s=0.5, duration_s=30, seed=5)
    inspected = Inspected(named(policy))
    figures = run(setting, requests, inspected)
    assert inspected.looks > 0
    assert figures.unfinished == 0


@pytest.mark.parametrize("policy", ["keepwarm", OnDemand.name])
def test_the_same_requests_give_the_very_same_figures(policy: str):
    setting = Setting(models=zoo(8), num_workers=2)
    requests = synthetic([m.id for m in setting.models], alpha=1.3, cv=2.0, rate_per_s=0.5, duration_s=30, seed=6)
    once, again = (run(setting, requests, named(policy)) for _ in range(2))
    assert once == again
    assert once != run(setting, requests[:-3], named(policy))


# ---- goals


def test_bound_on_waiting_is_counted_from_the_target_and_by_who_was_overdue_before():
    """A load takes 1.5 s, so a turn is its frame of 13.5 s, a drain and stop of 2.1 s, the load, and 2 s."""
    turn_ms = 13_500 + 2_100 + 1_500 + 2_000
    bound = WaitingBound(Setting(models=(Model(id="a", bytes=GB),), hardware=PLAIN), RULES)
    bound.look({"a": 0.0}, 0.0)
    bound.look({"a": 0.0, "b": 1_000.0}, 1_000.0)
    bound.look({"b": 1_000.0}, 1_000.0 + turn_ms)  # a is ready; b had it ahead
    assert bound.worst_share == pytest.approx(0.5)
    bound.look({"b": 1_000.0}, 1_000.0 + 3 * turn_ms)
    assert bound.worst_share == pytest.approx(1.5)


class Idler:
    """Loads a, and nothing else."""

    name = "idler"
    is_ticked = False

    def begin(self, cluster: Cluster) -> None:
        cluster.load(cluster.workers[0], "a")

    def decide(self, cluster: Cluster) -> None: ...


@pytest.mark.parametrize(("policy", "is_kept"), [(KeepwarmPolicy(), True), (Idler(), False)])
def test_simulation_tells_whether_the_bound_on_waiting_was_kept(policy: Policy, is_kept: bool):
    """Of two models in one place a has work all the time, and b one job."""
    models = tuple(Model(id=name, bytes=GB, slots=1) for name in "ab")
    requests = [request(0, "a", tokens=600), request(500, "b"), request(90_000, "a")]
    cluster = Cluster(Setting(models=models, num_workers=1, hardware=PLAIN), requests, policy)
    cluster.run(120_000)
    assert (cluster.bound.worst_share <= 1) is is_kept
    assert cluster.bound.worst_share > 0


def figures(p95_s: float, load_share: float = 0.05) -> Figures:
    return Figures(
        ttft_p50_s=0.0, ttft_p95_s=p95_s, ttft_p99_s=0.0, ttft_mean_s=0.0, batch_p95_s=0.0, warm_share=1.0,
        load_share=load_share, loads=0, longest_absence_s=0.0, bound_share=0.5, unfinished=0,
    )  # fmt: skip


def test_missed_goal_says_whether_clairvoyant_eviction_misses_it_too():
    seeds = {
        seed: {OURS: figures(4.0 * seed, 0.2), PEER: figures(10.0 * seed), CLAIRVOYANT: figures(2.0 * seed)}
        for seed in (1, 2, 3)
    }
    found = {each.limit: each for each in verdicts("s", 1.7, seeds) if "bound" not in each.goal}
    assert set(found) == {0.3, 1.0, 1.2, 0.1, 0.0}
    peer, share = found[0.3], found[0.1]
    assert [peer.value.median, peer.clairvoyant] == pytest.approx([0.4, 0.2])
    assert peer.is_clairvoyant_there and not peer.is_reached
    assert share.is_clairvoyant_there and not share.is_reached
    assert found[1.0].is_reached and not found[1.2].is_reached
    said = "\n".join(lines(list(found.values())))
    assert "α 1.7: 0 of 1; missed by us alone: s: 0.40 [0.40, 0.40] (clairvoyant 0.20)" in said


# ---- calibration

CORES = Cores(cores=2, threads=2)
PACE = Pace(byte_s=1e-10, sequence_s=0.005, prompt_tokens_per_step=20.0)
SIZES = {"a": 3 * GB // 10, "b": GB // 2, "c": GB}


def real_run(seed: int = 0) -> Run:
    """As if a machine with exactly that pace had been measured."""
    asks = tuple(
        Ask(
            at_s=3.0 * number + seed,
            model="abcacb"[(number + seed) % 6],
            prompt_tokens=10 + 7 * number % 90,
            num_tokens=4 + 5 * number % 40,
        )
        for number in range(40)
    )
    loads = {
        name: Loads(count=2, load_s=2 * (1.0 + size / GB), bytes=size + GB // 4, file_bytes=size)
        for name, size in SIZES.items()
    }
    empty = Run(
        side="keepwarm",
        rooms=2,
        seed=seed,
        p50_s=0,
        p95_s=0,
        max_s=0,
        loads_per_request=0,
        failures={},
        oom_kills=0,
        major_faults=0,
        peak_bytes=0,
        limit_bytes=None,
        budget_bytes=2 * GB,
        loads=loads,
        asks=asks,
    )
    requests = [request(ask.at_s * 1000, ask.model, context=ask.prompt_tokens, tokens=ask.num_tokens) for ask in asks]
    cluster = SharedCores(setting_of(empty, PACE, 4), requests, KeepwarmPolicy(max_replicas=1), cores=2, threads=2)
    cluster.run(3_600_000)
    answers = []
    for ask, job in zip(asks, cluster.jobs, strict=True):
        assert job.first_token_ms is not None and job.finished_ms is not None
        first_s, total_s = job.first_token_ms / 1000 - ask.at_s, job.finished_ms / 1000 - ask.at_s
        answers.append(Answer(model=ask.model, first_token_s=first_s, total_s=total_s, prompt_tokens=ask.prompt_tokens))
    return msgspec.structs.replace(empty, answers=answers, load_spans=cluster.load_spans)


def test_a_run_is_replayed_exactly_when_the_pace_is_known():
    found = compare(real_run(), PACE, 4, CORES)
    assert found.errors == pytest.approx((0.0, 0.0))
    assert found.measured_p95_s > found.measured_p50_s > 0
    assert found.clairvoyant_p95_s == pytest.approx(found.simulated_p95_s, rel=0.2)  # it saves loads, not waiting


def test_the_pace_is_found_from_one_run_and_predicts_another():
    pace = fit_pace([real_run()], CORES)
    assert pace.byte_s == pytest.approx(PACE.byte_s, rel=0.2)
    assert pace.prompt_tokens_per_step == pytest.approx(PACE.prompt_tokens_per_step, rel=0.3)
    assert max(map(abs, compare(real_run(seed=1), pace, 4, CORES).errors)) < 0.15


def test_a_machine_that_is_twice_as_slow_is_not_mistaken_for_this_one():
    slow = Pace(byte_s=2 * PACE.byte_s, sequence_s=0.01, prompt_tokens_per_step=20.0)
    assert max(compare(real_run(), slow, 4, CORES).errors) > 0.15


def test_runs_are_read_as_they_were_kept_so_that_a_later_call_goes_on_behind_them(tmp_path: Path):
    setting = Mix(models=tmp_path / "family", threads=2, slots=4, context_length=1024, kv_type="bf16")
    scale = Scale(rate_per_s=0.5, num_requests=40, length_divisor=16)
    terms = Terms(setting=setting, scale=scale, room_bytes=GB, services_bytes=None)
    report = Report(machine={"cpu": "one", "cores": 2, "packages": {"numpy": "2"}}, terms=terms, runs=[real_run()])
    write_report(tmp_path / "swap.json", report)
    assert read_report(tmp_path / "swap.json") == report
    (tmp_path / "swap.json").write_text('{"runs": [], "scale": {}}')  # of an earlier version
    assert read_report(tmp_path / "swap.json") is None


def test_ratios_are_taken_schedule_by_schedule():
    fast, slow = (msgspec.structs.replace(real_run(seed), p95_s=2.0 + seed) for seed in (0, 1))
    theirs = [msgspec.structs.replace(each, side="router", p95_s=4.0) for each in (fast, slow)]
    assert ratios("router", 2, [fast, slow, *theirs]) == [0.5, 0.75]
    assert ratios("router", 2, [fast, *theirs]) == [0.5]


def test_without_an_answer_of_some_length_there_is_no_pace():
    empty = msgspec.structs.replace(real_run(), asks=(), answers=[])
    with pytest.raises(ValueError, match="no answer is long enough"):
        fit_pace([empty], CORES)


def test_steps_beside_loads_wait_until_all_their_threads_run_at_once():
    assert [slowdown(loads, cores=2, threads=2) for loads in (0, 1, 2)] == [1.0, 3.0, 6.0]
    assert [slowdown(loads, cores=2, threads=1) for loads in (0, 1, 2)] == [1.0, 1.0, 1.5]
    assert slowdown(3, cores=8, threads=4) == 1.0


def test_an_answer_beside_a_load_comes_later_by_what_the_load_takes_of_the_cores():
    """a: loaded by 1.5 s, first token after one step of 100 ms, then 20 more; b loads from 2.0 to 3.5 s, and steps
    take three times as long meanwhile: 4 until then, 5 during the load, one beside the token of b, and 10 behind it."""
    models = tuple(Model(id=name, bytes=GB // 2, slots=1, load_ms=1500, step_ms=100) for name in "ab")
    setting = Setting(models=models, num_workers=1, hardware=PLAIN)
    requests = [request(0, "a", tokens=21), request(2000, "b")]
    cluster = SharedCores(setting, requests, OnDemand(), cores=2, threads=2)
    cluster.run(3_600_000)
    assert cluster.jobs[0].first_token_ms == pytest.approx(1600)
    assert cluster.jobs[0].finished_ms == pytest.approx(3500 + 200 + 1000)
    assert [(span.model, span.begin_s, span.end_s) for span in cluster.load_spans] == [("a", 0.0, 1.5), ("b", 2.0, 3.5)]


def test_loads_are_read_from_the_log_of_a_worker():
    lines = [
        "2026-11-23T06:22:20.500000Z [info     ] load_started epoch=2 model=a reserved_bytes=482203136",
        "2026-11-23T06:22:21.500000Z [info     ] load_finished load_ms=750 model=a pid=65 untouched=7f0-8f0,a0-b0",
        "2026-11-23T06:22:22.500000Z [info     ] load_finished bytes=4522 load_ms=750 model=b pid=66 untouched=",
        "a line of something else",
    ]
    span, _ = load_spans(lines, datetime(2026, 11, 23, 6, 22, 20, tzinfo=UTC).timestamp())
    assert (span.model, span.begin_s, span.end_s) == ("a", 0.75, 1.5)
    assert untouched_ranges(lines) == {65: [(0x7F0, 0x8F0), (0xA0, 0xB0)], 66: []}
