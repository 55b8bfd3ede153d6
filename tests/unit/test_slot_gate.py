"""A pop names exactly the queues whose jobs could start at once."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from kombu.transport.redis import Channel

import celeryconfig
from workers.slot_gate import ARRIVAL_LIMIT_S, QueuesByLevel, SlotGate

PRIVATE = "worker.w1"


class Bench:
    def __init__(self, **free_slots: int) -> None:
        self.now = 0.0
        self.rings = 0
        self.free_slots = free_slots
        self.urgent_slots: dict[str, int] = {}  # beyond the free ones, held by batch work
        self.gate = SlotGate(clock=lambda: self.now)
        self.gate.connect(lambda: self.free_slots, self._urgent, self._ring)

    def _urgent(self) -> dict[str, int]:
        return {model: free + self.urgent_slots.get(model, 0) for model, free in self.free_slots.items()}

    def _ring(self) -> None:
        self.rings += 1

    def named(self) -> list[str]:
        return self.choose().batch

    def choose(self) -> QueuesByLevel:
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


def test_wakeups_of_adapters_count_against_the_slots_that_they_share() -> None:
    bench = Bench(a=1, b=1)
    bench.gate.connect(lambda: bench.free_slots, bench._urgent, bench._ring, runner_of=lambda model: "a")
    bench.gate.popped("model.b")
    assert bench.named() == [PRIVATE]
    bench.gate.arrived("b")
    assert bench.named() == [PRIVATE, "model.a", "model.b"]


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


def test_pop_in_flight_is_ended_once_however_many_slots_become_free() -> None:
    bench = Bench(a=0)
    bench.choose()
    for free in (1, 2, 3):
        bench.free_slots["a"] = free
        bench.gate.look_again()
    assert bench.rings == 1
    bench.free_slots["a"] = 0
    bench.choose()
    bench.free_slots["a"] = 1
    bench.gate.look_again()
    assert bench.rings == 2


def test_slot_that_became_free_while_a_wakeup_was_on_its_way_rings_when_that_has_arrived() -> None:
    bench = Bench(a=1)
    bench.choose()
    bench.gate.popped("model.a")
    assert bench.named() == [PRIVATE]
    bench.free_slots["a"] = 2
    bench.gate.look_again()
    bench.free_slots["a"] = 1  # the wake-up has taken one of them
    bench.rings = 0
    bench.gate.choose([PRIVATE, "model.a"])  # still on its way: one slot, one coming
    bench.gate.arrived("a")
    assert bench.rings == 1


def test_slot_that_becomes_free_while_the_next_pop_is_chosen_rings() -> None:
    bench = Bench(a=0)
    releases: list[threading.Thread] = []

    def look_then_release() -> dict[str, int]:
        seen = dict(bench.free_slots)
        if not releases:
            bench.free_slots["a"] = 1
            releases.append(threading.Thread(target=bench.gate.look_again))
            releases[0].start()
            releases[0].join(0.05)
        return seen

    bench.gate.connect(look_then_release, bench._urgent, bench._ring)
    bench.gate.choose([PRIVATE, "model.a"])
    releases[0].join()
    assert bench.rings == 1


def test_private_queue_is_always_open() -> None:
    bench = Bench()
    bench.gate.popped(PRIVATE)
    assert bench.named() == [PRIVATE]


def test_model_full_of_batch_work_is_named_for_urgent_work_only() -> None:
    bench = Bench(a=0, b=0)
    bench.urgent_slots["a"] = 1
    chosen = bench.choose()
    assert chosen.urgent == [PRIVATE, "model.a"]
    assert chosen.batch == [PRIVATE]
    bench.gate.popped("model.a")
    assert bench.choose().urgent == [PRIVATE]


def test_place_that_urgent_work_may_share_rings_when_the_pop_left_the_model_out() -> None:
    bench = Bench(a=0, b=0)
    bench.choose()
    bench.urgent_slots["a"] = 1
    bench.gate.look_again()
    assert bench.rings == 1


def test_kombu_makes_no_batch_key_of_a_queue_that_is_open_to_urgent_work_only() -> None:
    sent: list[str] = []
    client = SimpleNamespace(connection=SimpleNamespace(send_command=lambda *words: sent.extend(map(str, words))))
    cycle = SimpleNamespace(consume=lambda _: QueuesByLevel(urgent=["open", "urgent"], batch=["open"]))
    kombu: Any = Channel
    channel = SimpleNamespace(
        brpop_timeout=1,
        client=client,
        active_queues={"open", "urgent"},
        global_keyprefix="",
        priority_steps=celeryconfig.broker_transport_options["priority_steps"],
        sep=kombu.sep,
        _queue_cycle=cycle,
    )
    channel.priority = lambda level: kombu.priority(channel, level)
    channel._q_for_pri = lambda queue, level: kombu._q_for_pri(channel, queue, level)
    kombu._brpop_start(channel)
    at = kombu.sep
    assert sent == ["BRPOP", "open", "urgent", f"open{at}3", f"urgent{at}3", f"open{at}6", "1"]
