"""The slots of one backend: who runs in which, what the idle ones still hold, and how a new sequence gets the longest
prefix that is to be had.

A prefix may lie in an idle slot (taken as it is), in any slot (copied) or in memory (restored). What a slot holds is
saved to memory only when somebody else is about to overwrite it, or nobody has anything better to do, so a parked
sequence that finds its slot untouched goes on at no cost.

What was computed under one LoRA adapter is of no use under another one: each adapter finds its own prefixes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.jobs import Priority
from workers.engine import scheduler
from workers.engine.backend import Backend
from workers.engine.parked_states import ParkedState, ParkedStates
from workers.engine.sequence import Sequence

WORTH_MOVING = 16  # tokens; below it even a small model computes them sooner than they are found and moved
TAKEN_FROM = 10  # a sequence takes a slot that holds at least a tenth of its tokens, as with llama-server
COMPUTED_PER_MOVED = 10  # a token's cache is moved at least so many times faster than it is computed


@dataclass(frozen=True, slots=True)
class Source:
    """Where the first `length` tokens of a sequence lie, and what it saves to take them from there, in tokens."""

    length: int
    saves: float
    slot: int = -1  # that holds them; -1 for a parked state or none at all
    parked: ParkedState | None = None
    in_place: bool = False  # the sequence may have the slot itself


NOWHERE = Source(0, 0)


class Slots:
    def __init__(self, backend: Backend, count: int, parked: ParkedStates) -> None:
        self._backend = backend
        self._parked = parked
        self._held: list[list[int]] = [[] for _ in range(count)]  # the tokens in each idle slot's cache
        self._adapter = [""] * count  # under which each slot's cache was computed
        self._used_at = [0] * count  # step of the last release
        self._is_litter = [False] * count  # what finished batch work left: it serves in place, but is not worth memory
        self.free = set(range(count))
        self.running: list[Sequence] = []  # by slot: the order that llama.cpp batches best

    def open(self, count: int) -> None:
        """Use the first `count` only. What others hold is not found any more."""
        self.free = set(range(count)) - {each.slot for each in self.running}

    # ---- in and out

    def take(self, sequence: Sequence) -> None:
        """Give the sequence a free slot with as much of its tokens as can be had."""
        source = self._best_source(sequence)
        slot = source.slot if source.in_place else self._slot_to_overwrite(sequence.adapter)
        if source.parked is not None:
            self._parked.touch(source.parked)  # what is saved now takes the room of others first
        if not source.in_place or source.length * 2 < len(self._held[slot]):
            self._save(slot)
        kept = self._backend.keep_prefix(slot, self._fetch(source, slot))
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(kept, sequence.prompt_tokens)
        sequence.slot, sequence.decoded = slot, kept
        self._held[slot], self._adapter[slot] = [], sequence.adapter
        self.free.remove(slot)
        self.running.append(sequence)
        self.running.sort(key=lambda each: each.slot)

    def release(self, sequence: Sequence, step: int) -> None:
        """The sequence leaves its slot; what the slot holds may serve others, or the same one again."""
        slot = sequence.slot
        self.running.remove(sequence)
        self.free.add(slot)
        self._held[slot] = sequence.tokens[: sequence.decoded]
        self._used_at[slot] = step
        self._is_litter[slot] = sequence.is_over and sequence.priority is Priority.BATCH
        sequence.slot, sequence.decoded = -1, 0

    def save_ahead(self) -> None:
        """Save what the next newcomer will probably overwrite: then its first token doesn't wait for that. Not the only
        slot: whoever goes on with what it holds would wait instead."""
        if len(self.free) > 1:
            self._save(self._slot_to_overwrite(""))

    def empty_idle(self) -> bool:
        """Forget what the idle slots hold; False when that was nothing."""
        filled = [slot for slot in self.free if self._held[slot]]
        for slot in filled:
            self._save(slot)
            self._backend.keep_prefix(slot, 0)
            self._held[slot] = []
        return bool(filled)

    def clear(self, adapter: str) -> None:
        """The slots can't be trusted, nor what this adapter left in memory: all that runs is computed again."""
        self._backend.clear()
        for slot in self.free:
            self._held[slot] = []
        for sequence in self.running:
            sequence.decoded = 0
        for entry in self._parked_of(adapter):
            self._parked.drop(entry)

    def leader(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        """A running sequence that is about to prefill so much of this one's tokens that waiting for them pays."""
        prefilling = [
            each
            for each in self.running
            if each.pending > 1 and each.priority <= sequence.priority and each.adapter == sequence.adapter
        ]
        if not prefilling or not self._backend.cuts_tails:  # without cuts its state would fit at one moment only
            return None
        best: tuple[Sequence, int] | None = None
        at_once: float | None = None  # what is saved without waiting; hardly ever asked for
        for other in prefilling:
            length = self._usable(other.tokens, sequence.tokens)
            saves = self._copy_saves(length, len(other.tokens))
            if length <= other.decoded or saves < WORTH_MOVING:
                continue
            if at_once is None:
                at_once = max(0.0, self._best_source(sequence).saves)
            if saves >= at_once + WORTH_MOVING:
                best, at_once = (other, length), saves
        return best

    # ---- sources

    def _best_source(self, sequence: Sequence) -> Source:
        tokens, adapter = sequence.tokens, sequence.adapter
        in_slots = max(self._slot_sources(tokens, adapter), key=lambda source: source.saves, default=NOWHERE)
        return self._better_parked(tokens, adapter, in_slots)

    def _slot_sources(self, tokens: list[int], adapter: str) -> Iterator[Source]:
        """All slots that are better than starting from nothing."""
        has_choice = len(self.free) > 1
        for slot in self._free_of(adapter):
            held = self._held[slot]
            length = self._usable(held, tokens)
            if length * TAKEN_FROM >= len(tokens) and length:
                loses_much = length * 2 < len(held)
                if not (loses_much and has_choice):
                    yield Source(length, length - loses_much * len(held) / COMPUTED_PER_MOVED, slot, in_place=True)
            if has_choice and (saves := self._copy_saves(length, len(held))) > 0:
                yield Source(length, saves, slot)
        for other in self._running_of(adapter):
            length = self._usable(other.tokens[: other.decoded], tokens)
            if (saves := self._copy_saves(length, other.decoded)) > 0:
                yield Source(length, saves, other.slot)

    def _better_parked(self, tokens: list[int], adapter: str, best: Source) -> Source:
        """What lies in memory and saves most, if that is more than `best` does.

        Of a small model there are hundreds of states, most of which begin alike, with the chat template: so first a
        glance at the last of the tokens that would have to agree."""
        for entry in self._parked:
            held = entry.tokens
            moving = len(held) / COMPUTED_PER_MOVED
            needed = max(WORTH_MOVING, int(best.saves + moving) + 1)
            if needed > len(held) or needed >= len(tokens) or held[needed - 1] != tokens[needed - 1]:
                continue
            if entry.adapter != adapter or held[:needed] != tokens[:needed]:
                continue
            length = self._usable(held, tokens)
            if length and (saves := length - moving) > best.saves:
                best = Source(length, saves, parked=entry)
        return best

    def _free_of(self, adapter: str) -> list[int]:
        return [slot for slot in self.free if self._adapter[slot] == adapter]

    def _running_of(self, adapter: str) -> list[Sequence]:
        return [each for each in self.running if each.adapter == adapter]

    def _parked_of(self, adapter: str) -> list[ParkedState]:
        return [entry for entry in self._parked if entry.adapter == adapter]

    def _usable(self, held: list[int], tokens: list[int]) -> int:
        shortest = min(WORTH_MOVING, -(-len(tokens) // TAKEN_FROM))
        if held[:shortest] != tokens[:shortest]:
            return 0  # mostly so, and found a lot sooner than the length of so little
        # The last token is always decoded again: its logits are needed and were not kept.
        length = min(scheduler.common_prefix(held, tokens), len(tokens) - 1)
        return length if length == len(held) or self._backend.cuts_tails else 0

    def _copy_saves(self, length: int, held: int) -> float:
        if length < WORTH_MOVING:
            return 0
        return length - self._backend.copy_cost(held) / COMPUTED_PER_MOVED

    # ---- moving

    def _slot_to_overwrite(self, adapter: str) -> int:
        busy = {each.slot for each in self._running_of(adapter)}  # whose batches it will share
        return scheduler.choose_slot(self.free, busy, self._used_at)

    def _save(self, slot: int) -> None:
        """Keep what the slot holds, unless that is little, lies elsewhere too, or is a finished line of a batch: nobody
        goes on with that, and it would push out conversations."""
        held = self._held[slot]
        if self._is_litter[slot] or len(held) < WORTH_MOVING or self._parked.limit_bytes <= 0:
            return
        if self._lies_elsewhere(slot, held):
            return
        state = self._backend.save(slot, self._parked.limit_bytes)
        if state is not None:
            self._parked.put(held, state, self._adapter[slot])

    def _lies_elsewhere(self, slot: int, held: list[int]) -> bool:
        contains, adapter = self._parked.contains, self._adapter[slot]
        running = self._running_of(adapter) if self._backend.cuts_tails else []  # else it is gone with their next token
        return (
            any(contains(self._held[other], held) for other in self._lasting(adapter) if other != slot)
            or any(contains(each.tokens[: each.decoded], held) for each in running)
            or any(contains(entry.tokens, held) for entry in self._parked_of(adapter))
        )

    def _lasting(self, adapter: str) -> list[int]:
        """Idle slots whose tokens will be saved before they are overwritten."""
        return [slot for slot in self._free_of(adapter) if not self._is_litter[slot]]

    def _fetch(self, source: Source, slot: int) -> int:
        """Bring the prefix into the slot; how much of what it holds then is to be kept."""
        if source.parked is not None:
            if not self._backend.restore(slot, source.parked.state):
                return 0
            if source.length == len(source.parked.tokens):
                self._parked.drop(source.parked)  # the slot holds all of it now
        elif source.slot not in (-1, slot):
            self._backend.copy(source.slot, slot)
        return source.length
