"""A pop names exactly the queues whose jobs could start at once."""

from __future__ import annotations

from workers.slot_gate import ARRIVAL_LIMIT_S, SlotGate

PRIVATE = "worker.w1"


class Bench:
    def __init__(self, **free_slots: int) -> None:
        self.now = 0.0
        self.rings = 0
        self.free_slots = free_slots
        self.gate = SlotGate(clock=lambda: self.now)
        self.gate.connect(lambda: self.free_slots, self._ring)

    def _ring(self) -> None:
        self.rings += 1

    def named(self) -> list[str]:
        return self.gate.choose([PRIVATE, "model.a", "model.b"])


def test_full_model_is_left_out_of_the_pop() -> None:
    assert Bench(a=0, b=1).named() == [PRIVATE, "model.b"]


def test_model_without_a_ready_runner_is_left_out() -> None:
    assert Bench(a=1).named() == [PRIVATE, "model.a"]


def test_message_on_its_way_counts_as_a_taken_slot() -> None:
    bench = Bench(a=1, b=0)
    bench.gate.popped("model.a")
    assert bench.named() == [PRIVATE]
    bench.free_slots["a"] = 0
    bench.gate.arrived("a")
    assert bench.named() == [PRIVATE]
    bench.free_slots["a"] = 1
    assert bench.named() == [PRIVATE, "model.a"]


def test_message_that_never_arrived_is_forgotten() -> None:
    bench = Bench(a=1)
    bench.gate.popped("model.a")
    bench.now = ARRIVAL_LIMIT_S + 1
    assert bench.named() == [PRIVATE, "model.a"]


def test_free_slot_rings_only_when_the_pop_left_the_model_out() -> None:
    bench = Bench(a=0, b=1)
    bench.named()
    bench.free_slots["b"] = 2
    bench.gate.look_again()
    assert bench.rings == 0
    bench.free_slots["a"] = 1
    bench.gate.look_again()
    assert bench.rings == 1


def test_private_queue_is_always_open() -> None:
    bench = Bench()
    bench.gate.popped(PRIVATE)
    assert bench.named() == [PRIVATE]
