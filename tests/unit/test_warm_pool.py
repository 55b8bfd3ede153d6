"""The warm pool against scripted runners: loads, evictions, failures and drains, without processes or sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.controller.decisions import Action, Code
from tasks.fleet import ModelKind, RunnerState, WorkerPlacement
from tasks.jobs import JobId, Priority
from tasks.ports import Cancelled, Failed, Finished, Lost, Parked
from tasks.store.verdict import Verdict
from tests.support.scripted_pool import PoolBench, make_model
from tests.support.scripted_runner import MIB, Running, ScriptedLink, make_attempt
from workers.estimate import need_of_measured
from workers.lease_keeper import LeaseKeeper
from workers.messages import READ_SHARE, LoadFailed, LoadProgress, OpenSlots, TokenOut
from workers.model_files import ModelFile, ModelFolder, UnusableFile
from workers.pool_planner import OUTDATED_GRACE_S
from workers.runner import RunnerSlot

MakeBench = Callable[..., PoolBench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    benches: list[PoolBench] = []

    def make(*models: ModelFile, **options: object) -> PoolBench:
        benches.append(PoolBench(tmp_path, *models, **options))  # type: ignore[arg-type]
        return benches[-1]

    yield make
    for bench in benches:
        for links in bench.starter.links.values():
            for link in links:
                link.is_deaf = False
        bench.pool.close()
        assert bench.pool.report() == ()
        assert bench.pool.used_bytes == 0 or bench.device.dirty_pids


def take(bench: PoolBench, model: str) -> RunnerSlot:
    slot = bench.pool.take_slot(model, Priority.DEFAULT)
    assert slot is not None
    return slot


def test_held_model_is_loaded_and_serves(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    loads = [bench.pool.is_loading]
    bench.place("a")
    loads.append(bench.pool.is_loading)
    assert bench.pool.used_bytes == 100 * MIB  # reserved before anything is spawned
    assert bench.pool.take_slot("a", Priority.DEFAULT) is None
    link = bench.finish_load("a")
    assert [*loads, bench.pool.is_loading] == [False, True, False]
    assert {m for m, n in bench.pool.free_slots().items() if n} == {"a"}
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    running = Running(slot, make_attempt(model="a"))
    key = link.await_generate().key
    assert [attempt.job_id for attempt in bench.pool.running_attempts()] == ["job_1"]
    link.step(TokenOut(key, "hi", (1,)))
    link.finish(key)
    assert isinstance(running.outcome(), Finished)


def warm_in_slots(bench: PoolBench, model: str, *, kv_mib: int, slots: int) -> ScriptedLink:
    """A model whose cache takes memory as it is filled."""
    bench.place(*{model, *(each.model for each in bench.pool.report())})
    link = bench.starter.await_start(model)
    weight_bytes = bench.models[model].shape.weight_bytes - kv_mib * MIB
    link.load(weight_bytes=weight_bytes, slots=slots, kv_bytes=kv_mib * MIB, untouched_bytes=kv_mib * MIB)
    bench.changes.wait_until(lambda: bench.state(model) is RunnerState.READY)
    return link


def opened(link: ScriptedLink) -> list[int]:
    return [message.count for message in link.sent if isinstance(message, OpenSlots)]


def test_runner_takes_the_memory_of_one_slot_and_that_of_others_when_jobs_come(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100, slots=4), make_model("b", mib=150), budget_mib=200)
    link = warm_in_slots(bench, "a", kv_mib=80, slots=4)
    assert bench.pool.used_bytes == 40 * MIB
    assert bench.pool.free_slots() == {"a": 4}
    first = take(bench, "a")
    assert bench.pool.used_bytes == 40 * MIB
    take(bench, "a")
    assert (bench.pool.used_bytes, bench.pool.free_slots(), opened(link)) == (60 * MIB, {"a": 2}, [1, 2])
    first.give_back()
    take(bench, "a")
    assert (bench.pool.used_bytes, opened(link)) == (60 * MIB, [1, 2])  # the slot that is open serves again
    report = bench.report("a")
    assert report is not None
    assert (report.slots, report.closed_slots, report.slot_bytes, report.bytes) == (4, 2, 20 * MIB, 60 * MIB)
    offered, _ = bench.pool.offers()
    assert offered.bytes == need_of_measured(100 * MIB).total_bytes  # a load needs all of it for a moment


def test_all_slots_are_open_where_all_models_fit_with_all_of_theirs(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100, slots=4), make_model("b", mib=100), budget_mib=200)
    link = warm_in_slots(bench, "a", kv_mib=80, slots=4)
    assert (bench.pool.used_bytes, bench.pool.free_slots(), opened(link)) == (100 * MIB, {"a": 4}, [])


@pytest.mark.parametrize(
    ("kind", "slots", "untouched_mib", "held_mib"),
    [
        (ModelKind.GENERATE, 4, 80, 40),
        (ModelKind.GENERATE, 4, 70, 100),  # the rest is written to already: nobody knows which slots have it
        (ModelKind.GENERATE, 4, 0, 100),  # another system, or a GPU
        (ModelKind.GENERATE, 1, 80, 100),
        (ModelKind.EMBED, 4, 80, 100),  # one cache for all inputs
    ],
)
def test_slots_are_closed_only_where_each_has_memory_of_its_own_that_nobody_wrote_to(
    make_bench: MakeBench, kind: ModelKind, slots: int, untouched_mib: int, held_mib: int
) -> None:
    model = replace(make_model("a", mib=100, slots=slots), kind=kind)
    bench = make_bench(model, make_model("b", mib=150), budget_mib=200)
    bench.place("a")
    link = bench.starter.await_start("a")
    link.load(weight_bytes=20 * MIB, slots=slots, kv_bytes=80 * MIB, untouched_bytes=untouched_mib * MIB)
    bench.changes.wait_until(lambda: bench.state("a") is RunnerState.READY)
    assert bench.pool.used_bytes == held_mib * MIB
    assert bench.pool.free_slots() == {"a": slots}


def test_slots_open_only_as_far_as_the_budget_goes(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100, slots=4), make_model("b", mib=50), budget_mib=112)
    link = warm_in_slots(bench, "a", kv_mib=80, slots=4)
    bench.place("a", "b")
    bench.finish_load("b")
    assert bench.pool.free_slots() == {"a": 2, "b": 2}  # of 22 MiB that are left, 20
    take(bench, "a")
    take(bench, "a")
    assert bench.pool.take_slot("a", Priority.DEFAULT) is None
    assert bench.pool.free_slots() == {"a": 0, "b": 2}
    bench.place("a", evict=("b",))
    bench.await_gone("b")
    take(bench, "a")
    assert opened(link) == [1, 2, 3]


def test_bytes_that_a_load_waits_for_open_no_slot(make_bench: MakeBench) -> None:
    bench = make_bench(
        make_model("a", mib=100, slots=4), make_model("b", mib=40), make_model("c", mib=60), budget_mib=125
    )
    warm_in_slots(bench, "a", kv_mib=80, slots=4)
    bench.place("a", "b")
    busy = bench.finish_load("b")
    slot = take(bench, "b")
    running = Running(slot, make_attempt(model="b"))
    busy.is_deaf = True
    bench.place("a", "c", evict=("b",))  # 45 MiB are free, and 40 more when b is gone
    take(bench, "a")
    take(bench, "a")  # 85 - 60 are nobody's
    assert bench.pool.take_slot("a", Priority.DEFAULT) is None
    busy.is_deaf = False
    busy.exit(0)
    running.outcome()
    bench.finish_load("c")


def test_memory_for_parked_states_is_accounted_before_and_after_the_load(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100), budget_mib=215, parked_mib=10)
    bench.place("a", "b")
    assert bench.pool.used_bytes == 110 * MIB
    bench.finish_load("a")
    assert bench.pool.used_bytes == 110 * MIB
    assert bench.report("b") is None  # 110 of 105 that are left
    offered = {offer.id: offer.bytes for offer in bench.pool.offers()}
    assert offered == {"a": need_of_measured(100 * MIB).total_bytes + 10 * MIB, "b": 110 * MIB}


def test_full_model_is_not_offered_for_new_jobs(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100, slots=1))
    bench.warm("a")
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    assert {m for m, n in bench.pool.free_slots().items() if n} == set()
    slot.give_back()
    assert {m for m, n in bench.pool.free_slots().items() if n} == {"a"}


def test_concurrent_placements_start_one_process_per_model(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    barrier = threading.Barrier(4)

    def request() -> None:
        barrier.wait()
        bench.pool.apply(WorkerPlacement(hold=("a",)), 1)

    threads = [threading.Thread(target=request) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.finish_load("a")
    bench.place("a")
    assert bench.starter.count("a") == 1


def test_older_placement_is_ignored(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.pool.apply(WorkerPlacement(), 7)
    bench.pool.apply(WorkerPlacement(hold=("a",)), 6)
    assert bench.pool.report() == ()
    assert bench.pool.epoch == 7


def test_measured_bytes_replace_the_estimate(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.place("a")
    link = bench.starter.await_start("a")
    bench.device.measured[link.pid] = 60 * MIB
    link.load()
    bench.changes.wait_until(lambda: bench.state("a") is RunnerState.READY)
    assert bench.pool.used_bytes == 60 * MIB
    assert next(offer.bytes for offer in bench.pool.offers()) == need_of_measured(60 * MIB).total_bytes


@pytest.mark.parametrize("change", [{"kind": ModelKind.EMBED}, {"pooling": "cls"}])
def test_bytes_of_a_model_are_measured_anew_when_it_becomes_another_kind(
    make_bench: MakeBench, change: dict[str, object]
) -> None:
    model = make_model("a", mib=100)
    bench = make_bench(model)
    bench.place("a")
    link = bench.starter.await_start("a")
    bench.device.measured[link.pid] = 60 * MIB
    link.load()
    bench.changes.wait_until(lambda: bench.state("a") is RunnerState.READY)
    bench.pool.update_models(ModelFolder(models=(replace(model, **change),)))  # type: ignore[arg-type]
    assert next(offer.bytes for offer in bench.pool.offers()) == 100 * MIB


def test_model_that_outgrows_its_reservation_and_the_budget_is_stopped(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), budget_mib=150)
    bench.place("a")
    link = bench.starter.await_start("a")
    bench.device.measured[link.pid] = 200 * MIB
    link.load()
    assert "200.0 MiB (measured)" in bench.await_failure("a")
    bench.await_gone("a")
    assert bench.pool.used_bytes == 0
    bench.clock.advance(100)
    bench.pool.reconcile()
    assert bench.starter.count("a") == 1  # the measurement says that it can't fit


def test_idle_model_that_is_not_held_is_evicted_for_bytes(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100), budget_mib=150)
    bench.warm("a")
    bench.place("b")
    bench.await_gone("a")
    bench.finish_load("b")
    assert bench.pool.used_bytes == 100 * MIB


def test_model_that_is_not_held_stays_while_bytes_suffice(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100), budget_mib=200)
    bench.warm("a")
    bench.place("b")
    bench.finish_load("b")
    assert bench.state("a") is RunnerState.READY


def test_evict_goes_at_once_even_when_nothing_needs_its_bytes(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    bench.place(evict=("a",))
    bench.await_gone("a")
    assert bench.pool.used_bytes == 0
    assert bench.was_asked_to_exit("a")


def test_evict_of_a_loading_model_stops_the_load_without_a_failure(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.place("a")
    bench.starter.await_start("a")
    bench.place(evict=("a",))
    bench.await_gone("a")
    assert bench.failure("a") is None


def test_busy_victim_is_drained_and_parked_when_idle_ones_are_not_enough(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100), budget_mib=150)
    bench.warm("a")
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    running = Running(slot, make_attempt(model="a"))
    bench.starter.links["a"][0].await_generate()
    bench.place("b")
    assert running.outcome() == Parked()
    bench.finish_load("b")
    assert bench.report("a") is None


def test_busy_victim_stays_while_an_idle_one_is_enough(make_bench: MakeBench) -> None:
    models = [make_model(name, mib=100) for name in "abc"]
    bench = make_bench(*models, budget_mib=200)
    bench.warm("a", "b")
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    bench.place("c")
    bench.finish_load("c")
    assert bench.state("a") is RunnerState.READY
    assert bench.report("b") is None
    slot.give_back()


def test_short_work_of_a_victim_may_end_by_itself(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), drain_s=10)
    bench.warm("a")
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    running = Running(slot, make_attempt(model="a"))
    link = bench.starter.links["a"][0]
    key = link.await_generate().key
    bench.place(evict=("a",))
    bench.changes.wait_until(lambda: bench.state("a") is RunnerState.DRAINING)
    link.finish(key)
    assert isinstance(running.outcome(), Finished)
    bench.await_gone("a")


def test_new_traffic_never_revives_a_draining_runner(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), drain_s=10)
    bench.warm("a")
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    bench.place(evict=("a",))
    bench.place("a")
    assert bench.pool.take_slot("a", Priority.DEFAULT) is None
    assert bench.starter.count("a") == 1  # only after the old process is gone
    slot.give_back()
    bench.starter.await_start("a", 2)
    bench.finish_load("a", start=2)


def test_slow_eviction_does_not_delay_a_load_that_fits(make_bench: MakeBench) -> None:
    bench = make_bench(
        make_model("a", mib=100), make_model("big", mib=150), make_model("c", mib=60), budget_mib=260, drain_s=10
    )
    bench.warm("a")
    slot = bench.pool.take_slot("a", Priority.DEFAULT)  # keeps the eviction of `a` from ending
    assert slot is not None
    bench.place("a")
    bench.place("c", "big", evict=("a",))
    bench.finish_load("c")
    assert bench.state("a") is RunnerState.DRAINING
    slot.give_back()
    bench.finish_load("big")
    bench.await_gone("a")


def test_loads_from_one_disk_go_one_after_the_other_in_the_order_of_wishes(make_bench: MakeBench) -> None:
    models = [make_model(name, mib=mib) for name, mib in (("b", 90), ("c", 80), ("a", 70), ("cached", 100))]
    bench = make_bench(*models, disks={"a": 1, "b": 1, "c": 1})
    bench.place("b")
    bench.clock.advance(1)
    bench.place("a", "b", "c", "cached")
    for name in ("b", "cached"):
        bench.starter.await_start(name)
    assert [bench.state(name) for name in "abc"] == [None, RunnerState.STARTING, None]
    bench.finish_load("b")
    bench.pool.reconcile()
    link = bench.starter.await_start("a")  # the smaller one of those that came together
    link.say(LoadProgress(READ_SHARE - 0.01))
    bench.pool.reconcile()
    assert bench.state("c") is None
    link.say(LoadProgress(READ_SHARE))

    def has_begun() -> bool:
        bench.pool.reconcile()
        return bench.state("c") is not None

    bench.changes.wait_until(has_begun)
    assert bench.state("a") is RunnerState.STARTING
    link.exit(-9)
    bench.finish_load("c")


def test_pinned_model_is_never_a_victim_and_the_refusal_says_so(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100, pinned=True), make_model("b", mib=100), budget_mib=150)
    bench.warm("a")
    bench.place("b")
    assert bench.state("a") is RunnerState.READY
    failure = bench.failure("b")
    assert failure is not None
    assert "'b' needs 100.0 MiB = weights 100.0; the budget is 150.0 MiB" in failure
    assert "held by pinned a 100.0 MiB" in failure


def test_budget_that_is_too_small_is_told_before_anyone_asks(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), budget_mib=90)
    assert "budget is 90.0 MiB and nothing else is loaded" in (bench.failure("a") or "")
    bench.place("a")
    assert bench.starter.count("a") == 0


def test_failed_load_is_recorded_and_backs_off(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.place("a")
    link = bench.starter.await_start("a")
    link.say(LoadFailed("bad tensor"))
    link.exit(3)
    assert "bad tensor" in bench.await_failure("a")
    bench.await_gone("a")
    assert bench.pool.used_bytes == 0
    bench.pool.reconcile()
    assert bench.starter.count("a") == 1
    bench.clock.advance(1.1)
    bench.pool.reconcile()
    link = bench.starter.await_start("a", 2)
    link.exit(-9)
    bench.await_gone("a")
    bench.clock.advance(1.1)  # the second pause is twice as long
    bench.pool.reconcile()
    assert bench.starter.count("a") == 2
    bench.clock.advance(1)
    bench.pool.reconcile()
    bench.finish_load("a", start=3)
    assert bench.failure("a") is None


def test_changed_file_is_tried_at_once(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.place("a")
    bench.starter.await_start("a").exit(3)
    bench.await_gone("a")
    bench.pool.update_models(ModelFolder(models=(make_model("a", mib=100, identity="2"),)))
    bench.finish_load("a", start=2)


def test_idle_runner_is_replaced_when_its_file_changes(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    bench.pool.update_models(ModelFolder(models=(make_model("a", mib=100, identity="2"),)))
    bench.finish_load("a", start=2)


def test_busy_runner_with_other_settings_goes_when_it_is_idle_or_after_a_minute(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100))
    bench.warm("a", "b")
    running = {model: Running(take(bench, model), make_attempt(model=model)) for model in ("a", "b")}
    keys = {model: bench.starter.links[model][0].await_generate().key for model in running}
    bench.pool.update_models(ModelFolder(models=tuple(make_model(model, mib=100, slots=3) for model in running)))
    assert bench.state("a") is bench.state("b") is RunnerState.READY

    bench.starter.links["a"][0].finish(keys["a"])
    assert isinstance(running["a"].outcome(), Finished)
    bench.pool.reconcile()
    bench.finish_load("a", start=2)
    assert bench.starter.count("b") == 1

    bench.clock.advance(OUTDATED_GRACE_S)
    bench.pool.reconcile()
    assert isinstance(running["b"].outcome(), Parked)
    bench.finish_load("b", start=2)
    report = bench.report("b")
    assert report is not None
    assert report.slots == 3


def test_runner_that_settings_outdate_says_what_has_changed(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    bench.pool.update_models(ModelFolder(models=(make_model("a", mib=100, slots=3),)))
    decision = bench.await_eviction()
    assert (decision.action, decision.code, decision.model) == (Action.EVICT, Code.OUTDATED, "a")
    assert (decision.worker, decision.at_ms) == ("w1", bench.clock.clock().now_ms())
    assert decision.text == "it is loaded anew: slots 2 → 3"
    assert decision.terms == {"outdated_for_ms": 0, "in_flight": 0}


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ((), "its file is gone"),
        ((make_model("a", mib=100, identity="2"),), "it is loaded anew: a file or a setting of it has changed"),
        ((replace(make_model("a", mib=100), devices=("cuda",)),), "it may run on cuda only, and is on fake"),
    ],
)
def test_runner_that_the_folder_outdates_says_why(
    make_bench: MakeBench, models: tuple[ModelFile, ...], text: str
) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    bench.pool.update_models(ModelFolder(models=models))
    assert bench.await_eviction().text == text


def test_victim_that_only_the_worker_chose_is_told_and_what_the_placement_names_is_not(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100), budget_mib=150)
    bench.warm("a")
    bench.place(evict=("a",))
    bench.await_gone("a")
    bench.warm("b")
    bench.place("a")
    decision = bench.await_eviction()
    assert (decision.code, decision.model, decision.terms) == (Code.NOT_HELD, "b", {"bytes": 100 * MIB})


def test_model_without_a_file_leaves(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100))
    bench.warm("a", "b")
    bench.pool.update_models(ModelFolder(models=(make_model("b", mib=100),)))
    bench.await_gone("a")
    assert [offer.id for offer in bench.pool.offers()] == ["b"]
    assert bench.starter.count("b") == 1


def test_pin_counts_without_a_reload(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100), budget_mib=150)
    bench.warm("a")
    bench.pool.update_models(ModelFolder(models=(make_model("a", mib=100, pinned=True), make_model("b", mib=100))))
    bench.place("b")
    assert "pinned" in bench.await_failure("b")
    assert bench.starter.count("a") == 1


def test_pin_that_is_taken_back_frees_its_bytes_for_others_without_a_reload(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100, pinned=True), make_model("b", mib=100), budget_mib=150)
    bench.warm("a")
    assert "held by pinned a" in (bench.failure("b") or "")
    bench.pool.update_models(ModelFolder(models=(make_model("a", mib=100), make_model("b", mib=100))))
    assert bench.failure("b") is None
    bench.place("b")
    bench.await_gone("a")
    bench.finish_load("b")
    assert bench.starter.count("a") == 1


def test_pin_of_a_warm_model_is_told_of_those_that_no_longer_fit(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100), budget_mib=150)
    bench.warm("a")
    bench.pool.update_models(ModelFolder(models=(make_model("a", mib=100, pinned=True), make_model("b", mib=100))))
    assert "held by pinned a" in (bench.failure("b") or "")


def test_model_that_may_run_elsewhere_only_leaves_when_it_is_idle_and_says_why(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    slot = take(bench, "a")
    elsewhere = replace(make_model("a", mib=100), devices=("cuda", "fake:1"))
    bench.pool.update_models(ModelFolder(models=(elsewhere,)))
    assert bench.state("a") is RunnerState.READY, "its job goes on"
    slot.give_back()
    bench.pool.reconcile()
    bench.await_gone("a")
    assert bench.await_failure("a") == "'a' may run on cuda, fake:1 only; this worker has fake."
    bench.pool.reconcile()
    assert bench.starter.count("a") == 1, "the placement holds it still, and it may not"
    bench.pool.update_models(ModelFolder(models=(replace(elsewhere, devices=("fake",)),)))
    bench.finish_load("a", start=2)


def test_model_that_is_pinned_to_other_devices_takes_no_room(make_bench: MakeBench) -> None:
    pinned = replace(make_model("a", mib=100, pinned=True), devices=("cuda",))
    bench = make_bench(pinned, make_model("b", mib=100), budget_mib=150)
    assert bench.failure("b") is None
    bench.warm("b")


def test_runner_that_can_not_be_spawned_is_a_failed_load(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.starter.error = OSError("no more processes")
    bench.place("a")
    assert "no more processes" in bench.await_failure("a")
    bench.await_gone("a")
    assert bench.pool.used_bytes == 0


def test_crashed_runner_is_removed_and_loaded_again(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    running = Running(slot, make_attempt(model="a"))
    link = bench.starter.links["a"][0]
    link.await_generate()
    link.exit(-11)
    outcome = running.outcome()
    assert isinstance(outcome, Failed)
    assert outcome.is_retryable
    bench.finish_load("a", start=2)
    assert bench.pool.used_bytes == 100 * MIB


def test_runner_that_crashes_without_any_work_is_not_restarted_in_a_loop(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    bench.starter.links["a"][0].exit(-11)
    bench.await_gone("a")
    assert bench.starter.count("a") == 1
    assert bench.failure("a") is None  # its waiting jobs are not ended for that
    bench.clock.advance(1.1)
    bench.pool.reconcile()
    bench.finish_load("a", start=2)


def test_model_whose_runner_crashes_again_and_again_has_failed(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    for start in (2, 3):
        bench.starter.links["a"][-1].exit(-11)
        bench.await_gone("a")
        bench.clock.advance(2.1)
        bench.pool.reconcile()
        bench.finish_load("a", start=start)
    bench.starter.links["a"][-1].exit(-11)
    assert "exit code -11" in bench.await_failure("a")


def test_idle_runner_that_dies_after_a_while_is_loaded_again_at_once(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    bench.clock.advance(11)
    bench.starter.links["a"][0].exit(-9)
    bench.finish_load("a", start=2)
    assert bench.failure("a") is None


def test_bytes_stay_reserved_until_the_device_agrees(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    pid = bench.starter.links["a"][0].pid
    bench.device.dirty_pids.add(pid)
    bench.place(evict=("a",))
    bench.await_gone("a")
    assert bench.pool.used_bytes == 100 * MIB
    bench.place("a")
    assert bench.starter.count("a") == 1
    bench.device.dirty_pids.clear()
    bench.pool.reconcile()
    bench.finish_load("a", start=2)


def test_bytes_of_a_process_that_outlives_its_kill_come_back_with_its_end(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    bench.clock.advance(11)
    link = bench.starter.links["a"][0]
    link.is_unkillable = True
    link.hang_up()
    bench.await_gone("a")
    bench.pool.reconcile()
    assert (bench.pool.used_bytes, bench.starter.count("a")) == (100 * MIB, 1)
    link.exit(-9)
    bench.pool.reconcile()
    bench.finish_load("a", start=2)
    assert bench.pool.used_bytes == 100 * MIB


def test_account_of_a_new_load_is_not_released_with_the_one_before(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.warm("a")
    bench.device.dirty_pids.add(bench.starter.links["a"][0].pid)
    bench.place(evict=("a",))
    bench.await_gone("a")
    bench.place("a")

    def another_thread_is_quicker() -> None:
        bench.device.on_question = lambda: None
        bench.device.dirty_pids.clear()
        bench.pool.reconcile()  # releases the account, and begins the next load

    bench.device.on_question = another_thread_is_quicker
    bench.pool.reconcile()
    assert bench.pool.used_bytes == need_of_measured(100 * MIB).total_bytes
    bench.finish_load("a", start=2)


def test_load_for_which_slots_have_left_no_room_has_not_failed(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100, slots=4), make_model("b", mib=50), budget_mib=100)
    warm_in_slots(bench, "a", kv_mib=80, slots=4)
    slots = [take(bench, "a") for _ in range(3)]
    bench.place("a", "b")  # was decided when 60 MiB were free
    assert (bench.starter.count("b"), bench.failure("b")) == (0, None)
    for slot in slots:
        slot.give_back()
    bench.place("b", evict=("a",))
    bench.finish_load("b")


def test_cancel_reaches_the_job_wherever_it_runs(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100))
    bench.warm("a", "b")
    slot = bench.pool.take_slot("b", Priority.DEFAULT)
    assert slot is not None
    running = Running(slot, make_attempt("job_7", model="b"))
    bench.starter.links["b"][0].await_generate()
    assert bench.pool.cancel(JobId("job_7"))
    assert isinstance(running.outcome(), Cancelled)
    assert not bench.pool.cancel(JobId("job_7"))


class HigherWins:
    """Leases of one job, which its second attempt holds."""

    def renew(self, attempts: Sequence[tuple[JobId, int]]) -> list[Verdict]:
        return [Verdict.OK if number == 2 else Verdict.LOST for _, number in attempts]


def test_attempt_that_lost_its_lease_leaves_the_newer_one_in_another_runner_alone(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100))
    bench.warm("a", "b")
    older = Running(take(bench, "a"), make_attempt("job_7", number=1, model="a"))
    bench.starter.links["a"][0].await_generate()
    newer = Running(take(bench, "b"), make_attempt("job_7", number=2, model="b"))  # rescued, and at its fallback now
    link = bench.starter.links["b"][0]
    key = link.await_generate().key
    keeper = LeaseKeeper(leases=HigherWins(), host=bench.pool, lease_s=6, stall_s=60, clock=bench.clock.clock())  # type: ignore[arg-type]
    keeper.renew_all()
    assert older.outcome() == Lost()
    link.finish(key)
    assert isinstance(newer.outcome(), Finished)


def test_drain_lets_work_end_and_stops_everything(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100))
    bench.warm("a")
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    running = Running(slot, make_attempt(model="a"))
    link = bench.starter.links["a"][0]
    key = link.await_generate().key
    bench.place("a", "b")
    bench.starter.await_start("b")
    drain = threading.Thread(target=bench.pool.drain, args=(10,))
    drain.start()
    bench.changes.wait_until(lambda: bench.state("a") is RunnerState.DRAINING)
    assert bench.pool.take_slot("a", Priority.DEFAULT) is None
    link.finish(key)
    drain.join(10)
    assert isinstance(running.outcome(), Finished)
    assert bench.pool.report() == ()
    bench.place("a")
    assert bench.starter.count("a") == 1


def test_close_parks_what_runs(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100))
    bench.warm("a")
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    running = Running(slot, make_attempt(model="a"))
    bench.starter.links["a"][0].await_generate()
    bench.pool.close()
    assert running.outcome() == Parked()
    assert bench.pool.report() == ()


def test_broken_file_is_offered_with_its_reason(make_bench: MakeBench) -> None:
    broken = UnusableFile(id="x", path=Path("/models/x.gguf"), file_bytes=3, reason="x.gguf: cut off")
    bench = make_bench(make_model("a", mib=100), unusable=(broken,))
    offers = {offer.id: offer for offer in bench.pool.offers()}
    assert offers["x"].failure == "x.gguf: cut off"
    assert offers["a"].failure is None
    bench.place("x", "a")
    bench.finish_load("a")


def test_used_model_outlives_an_unused_one_of_the_same_size(make_bench: MakeBench) -> None:
    models = [make_model(name, mib=100) for name in "abc"]
    bench = make_bench(*models, budget_mib=200)
    bench.warm("a", "b")
    for _ in range(3):
        slot = bench.pool.take_slot("a", Priority.DEFAULT)
        assert slot is not None
        slot.give_back()
    bench.place("c")
    bench.finish_load("c")
    assert bench.state("a") is RunnerState.READY


def test_device_that_tells_nothing_leaves_the_report_of_the_runner(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100))
    bench.device.runner_overhead_bytes = 30 * MIB
    bench.place("a")
    bench.starter.await_start("a").load(weight_bytes=50 * MIB)
    bench.changes.wait_until(lambda: bench.state("a") is RunnerState.READY)
    assert bench.pool.used_bytes == 80 * MIB


def test_runner_is_measured_again_after_its_first_work(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), budget_mib=150)
    bench.warm("a")
    link = bench.starter.links["a"][0]
    slot = bench.pool.take_slot("a", Priority.DEFAULT)
    assert slot is not None
    bench.device.measured[link.pid] = 120 * MIB
    bench.pool.reconcile()
    assert bench.pool.used_bytes == 100 * MIB  # it still works
    slot.give_back()
    bench.pool.reconcile()
    bench.changes.wait_until(lambda: bench.pool.used_bytes == 120 * MIB)
    assert next(offer.bytes for offer in bench.pool.offers()) == need_of_measured(120 * MIB).total_bytes


def test_a_swap_takes_from_the_wish_to_the_ready_runner_and_a_load_only_its_own_time(make_bench: MakeBench) -> None:
    bench = make_bench(make_model("a", mib=100), make_model("b", mib=100), budget_mib=150)
    bench.warm("a")
    bench.changes.wait_until(lambda: "a" in bench.loads)
    assert bench.loads["a"] == (0, 0)
    bench.starter.links["a"][0].is_deaf = True  # it takes its time to leave
    bench.place("b", evict=("a",))
    bench.clock.advance(4)
    bench.starter.links["a"][0].exit(0)
    bench.await_gone("a")
    bench.pool.reconcile()
    link = bench.starter.await_start("b")
    bench.clock.advance(2)
    link.load(weight_bytes=bench.models["b"].shape.weight_bytes)
    bench.changes.wait_until(lambda: "b" in bench.loads)
    assert bench.loads["b"] == (2_000, 6_000)
