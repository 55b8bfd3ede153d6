"""The byte ledger: never over-committed, and clear about why it refuses."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tasks.errors import ModelDoesNotFit
from workers.estimate import EstimatedNeed, MeasuredNeed
from workers.ledger import Ledger

GIB = 1024**3
MODELS = ("a", "b", "c", "d")


def need(total: int) -> MeasuredNeed:
    return MeasuredNeed(total_bytes=total)


def test_account_is_reserved_committed_and_released() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", need(60))
    assert (ledger.reserved_bytes, ledger.used_bytes, ledger.free_bytes) == (60, 0, 40)
    ledger.commit("a", 50)
    assert (ledger.reserved_bytes, ledger.used_bytes, ledger.free_bytes) == (0, 50, 50)
    assert ledger.bytes_of("a") == 50
    ledger.release("a")
    assert (ledger.free_bytes, ledger.bytes_of("a"), ledger.accounts()) == (100, 0, ())


def test_refusal_holds_the_arithmetic() -> None:
    ledger = Ledger(4 * GIB)
    ledger.reserve("b", need(int(1.1 * GIB)))
    ledger.reserve("a", need(2 * GIB), is_pinned=True)
    wanted = EstimatedNeed(
        weight_bytes=int(2.1 * GIB),
        kv_bytes=int(0.9 * GIB),
        compute_bytes=int(0.2 * GIB),
        output_bytes=0,
        runner_bytes=0,
    )
    with pytest.raises(ModelDoesNotFit) as refusal:
        ledger.reserve("c", wanted)
    assert str(refusal.value) == (
        "'c' needs 3.2 GiB = weights 2.1 + KV 0.9 + compute 0.2; the budget is 4.0 GiB, "
        "held by pinned a 2.0 GiB, b 1.1 GiB"
    )


def test_measurement_beyond_reservation_and_free_bytes_is_refused_and_changes_nothing() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", need(50))
    ledger.reserve("b", need(40))
    with pytest.raises(ModelDoesNotFit):
        ledger.commit("b", 51)
    assert ledger.bytes_of("b") == 40
    ledger.commit("b", 50)
    assert ledger.free_bytes == 0


def test_account_may_grow_but_never_shrinks() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", need(50))
    ledger.commit("a", 50)
    ledger.grow("a", 40)
    assert ledger.bytes_of("a") == 50
    ledger.grow("a", 60)
    assert ledger.bytes_of("a") == 60
    with pytest.raises(ModelDoesNotFit):
        ledger.grow("a", 101)
    ledger.grow("gone", 10)
    assert ledger.used_bytes == 60


def test_pins_follow_the_settings_of_accounts_that_are_there() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", need(10), is_pinned=True)
    ledger.reserve("b", need(10))
    ledger.set_pinned({"b", "elsewhere"})
    assert [(each.model, each.is_pinned) for each in ledger.accounts()] == [("a", False), ("b", True)]


def test_second_account_of_a_model_is_a_mistake() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", need(10))
    with pytest.raises(ValueError, match="one load at a time"):
        ledger.reserve("a", need(10))


def test_release_without_an_account_is_no_error() -> None:
    Ledger(1).release("a")


def test_budget_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        Ledger(0)


def test_threads_never_reserve_the_same_bytes() -> None:
    ledger = Ledger(10)
    barrier = threading.Barrier(8)
    refused: list[str] = []

    def reserve(model: str) -> None:
        barrier.wait()
        try:
            ledger.reserve(model, need(4))
        except ModelDoesNotFit:
            refused.append(model)

    threads = [threading.Thread(target=reserve, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 6
    assert ledger.reserved_bytes == 8


class LedgerMachine(RuleBasedStateMachine):
    """Any order of calls against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(100)
        self.model: dict[str, int] = {}

    def free(self) -> int:
        return 100 - sum(self.model.values())

    @rule(model=st.sampled_from(MODELS), size=st.integers(0, 120))
    def reserve(self, model: str, size: int) -> None:
        if model in self.model:
            return
        if size > self.free():
            with pytest.raises(ModelDoesNotFit):
                self.ledger.reserve(model, need(size))
        else:
            self.ledger.reserve(model, need(size))
            self.model[model] = size

    @precondition(lambda self: self.model)
    @rule(data=st.data(), size=st.integers(0, 120))
    def commit(self, data: st.DataObject, size: int) -> None:
        model = data.draw(st.sampled_from(sorted(self.model)))
        if size > self.free() + self.model[model]:
            with pytest.raises(ModelDoesNotFit):
                self.ledger.commit(model, size)
        else:
            self.ledger.commit(model, size)
            self.model[model] = size

    @rule(model=st.sampled_from(MODELS))
    def release(self, model: str) -> None:
        self.ledger.release(model)
        self.model.pop(model, None)

    @invariant()
    def never_over_committed(self) -> None:
        assert self.ledger.used_bytes + self.ledger.reserved_bytes <= self.ledger.budget_bytes
        assert self.ledger.free_bytes == self.free() >= 0
        assert {each.model: each.bytes for each in self.ledger.accounts()} == self.model


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
