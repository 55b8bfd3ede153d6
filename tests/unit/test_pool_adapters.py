"""LoRA adapters in the warm pool: one runner, one account and the same slots for a base and all its adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.fleet import RunnerState
from tasks.jobs import Priority
from tasks.ports import Failed, Finished
from tests.support.scripted_pool import PoolBench, make_adapter, make_model, with_adapters
from tests.support.scripted_runner import MIB, Running, make_attempt
from workers.messages import TokenOut
from workers.model_files import ModelFile, ModelFolder

FORMAL, RHYMING = make_adapter("formal"), make_adapter("rhyming")


def base(*adapters, slots: int = 2) -> ModelFile:
    return with_adapters(make_model("base", mib=100, slots=slots), *(adapters or (FORMAL, RHYMING)))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[PoolBench]:
    bench = PoolBench(tmp_path, base(), make_model("other", mib=40), budget_mib=150)
    yield bench
    bench.pool.close()
    assert bench.pool.used_bytes == 0


def start(bench: PoolBench, model: str, job: str = "job_1", priority: Priority = Priority.DEFAULT) -> Running:
    slot = bench.pool.take_slot(model, priority)
    assert slot is not None
    return Running(slot, make_attempt(job, model=model))


def offers(bench: PoolBench):
    return {offer.id: offer for offer in bench.pool.offers()}


def test_one_runner_and_one_account_serve_a_base_and_its_adapters(bench: PoolBench) -> None:
    bench.warm("base")
    assert bench.pool.free_slots() == {"base": 2, "formal": 2, "rhyming": 2}
    assert bench.pool.used_bytes == 102 * MIB  # the weights once, and a MiB for each adapter
    assert [(report.model, sorted(report.adapters)) for report in bench.pool.report()] == [
        ("base", ["formal", "rhyming"])
    ]
    assert {model: bench.pool.runner_of(model) for model in ("base", "formal", "other")} == {
        "base": "base",
        "formal": "base",
        "other": "other",
    }


def test_work_of_all_shares_the_slots_and_names_its_adapter(bench: PoolBench) -> None:
    bench.warm("base")
    link = bench.starter.links["base"][0]
    formal = start(bench, "formal")
    assert link.await_generate(1).adapter == "formal"
    plain = start(bench, "base", "job_2")
    assert link.await_generate(2).adapter == ""
    bench.changes.wait_until(lambda: bench.pool.free_slots() == {"base": 0, "formal": 0, "rhyming": 0})
    assert bench.pool.take_slot("rhyming", Priority.DEFAULT) is None
    report = bench.report("base")
    assert report is not None
    assert (report.in_flight, report.adapters) == (2, {"formal": 1, "rhyming": 0})
    for key, running in ((1, formal), (2, plain)):
        link.step(TokenOut(key, "x", (1,)))
        link.finish(key)
        assert isinstance(running.outcome(), Finished)


def test_offers_of_adapters_name_the_base_and_what_it_has(bench: PoolBench) -> None:
    formal = offers(bench)["formal"]
    assert (formal.base, formal.runner_model, formal.bytes, formal.slots) == ("base", "base", MIB, 2)
    assert (offers(bench)["base"].base, offers(bench)["base"].runner_model) == (None, "base")
    assert formal.load_ms == offers(bench)["base"].load_ms


def test_broken_adapter_is_unusable_with_its_reason_while_the_others_serve(bench: PoolBench) -> None:
    bench.place("base")
    bench.finish_load("base", broken_adapters={"formal": "its tensors don't fit"})
    assert set(bench.pool.free_slots()) == {"base", "rhyming"}
    assert bench.pool.take_slot("formal", Priority.DEFAULT) is None
    formal = offers(bench)["formal"]
    assert (formal.failure, formal.is_usable) == ("its tensors don't fit", False)
    assert offers(bench)["base"].failure is None
    assert offers(bench)["rhyming"].failure is None
    mended = base(make_adapter("formal", identity="2"), RHYMING)
    bench.pool.update_models(ModelFolder(models=(mended,)))
    assert offers(bench)["formal"].failure is None
    bench.finish_load("base", start=2)
    assert set(bench.pool.free_slots()) == {"base", "formal", "rhyming"}


@pytest.mark.parametrize("adapters", [(FORMAL,), (FORMAL, RHYMING, make_adapter("terse"))])
def test_base_is_loaded_anew_when_it_is_idle_and_an_adapter_came_or_went(bench: PoolBench, adapters) -> None:
    bench.warm("base")
    running = start(bench, "rhyming")
    link = bench.starter.links["base"][0]
    key = link.await_generate().key
    bench.pool.update_models(ModelFolder(models=(base(*adapters),)))
    assert bench.state("base") is RunnerState.READY
    assert set(bench.pool.free_slots()) == {"base", "formal", "rhyming"}  # what the old process has
    link.finish(key)
    assert isinstance(running.outcome(), Finished)
    bench.pool.reconcile()
    bench.finish_load("base", start=2)
    assert set(bench.pool.free_slots()) == {"base", *(each.id for each in adapters)}


def test_what_stands_in_the_way_of_the_base_stands_in_the_way_of_its_adapters(tmp_path: Path) -> None:
    bench = PoolBench(tmp_path, base(), budget_mib=50)
    failure = offers(bench)["formal"].failure
    assert failure is not None
    assert failure == offers(bench)["base"].failure


def test_crash_breaks_the_attempts_of_all_models_each_in_the_company_of_the_others(bench: PoolBench) -> None:
    bench.warm("base")
    link = bench.starter.links["base"][0]
    both = [start(bench, "base"), start(bench, "formal", "job_2")]
    link.await_generate(2)
    link.exit(-11)
    for each in both:
        outcome = each.outcome()
        assert isinstance(outcome, Failed)
        assert (outcome.error.code, outcome.is_retryable, outcome.company) == ("runner_crashed", True, 1)


def test_work_of_an_adapter_keeps_its_base_from_being_the_first_to_go(tmp_path: Path) -> None:
    bench = PoolBench(tmp_path, base(), make_model("unused", mib=102), make_model("new", mib=100), budget_mib=210)
    bench.warm("base", "unused")
    running = start(bench, "formal")
    link = bench.starter.links["base"][0]
    link.finish(link.await_generate().key)
    assert isinstance(running.outcome(), Finished)
    bench.place("new")
    bench.await_gone("unused")
    bench.finish_load("new")
    assert bench.state("base") is RunnerState.READY
    bench.pool.close()
