"""The continuous-batching loop: waiting sequences take slots, every step decodes one batch of all of them.

Knows nothing of llama.cpp: a Backend decodes. One step = admit → share out the batch → decode → sample → publish.

A batch has one LoRA adapter: while sequences of several run, their batches take turns (`adapter_turns`).

A sequence without a slot waits, whether it is new or was parked: then its tokens so far are its prompt, and what its
slot held is found again like any other prefix.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np

from tasks.errors import AdapterFailed, PromptTooLong
from tasks.jobs import JobError, Priority
from workers.engine import scheduler
from workers.engine.adapter_turns import AdapterTurns
from workers.engine.backend import Backend, Interrupted, NoRoom, Slice
from workers.engine.base import EngineFailed
from workers.engine.constraint import Constraint
from workers.engine.draft_model import DraftModel
from workers.engine.drafting import Drafting, drop_drafts
from workers.engine.parked_states import ParkedStates
from workers.engine.sampling import Floats
from workers.engine.sequence import Sequence
from workers.engine.slots import Slots
from workers.engine.waiting import WaitingLine
from workers.messages import Done, Generate, TokenOut

_NO_LOGITS = np.empty((0, 0), dtype=np.float32)


class StepLoop:
    """Sequences, slots and steps on top of one backend."""

    def __init__(
        self,
        backend: Backend,
        *,
        slots: int,
        context_length: int,
        prefill_chunk: int,
        parked_bytes: int = 0,
        draft_model: DraftModel | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._context_length = context_length
        self._pace = scheduler.PrefillPace(prefill_chunk)
        self._rounds: dict[str, scheduler.PrefillRound] = defaultdict(scheduler.PrefillRound)  # by adapter
        self._drafting = Drafting(backend.max_drafted, draft_model, monotonic_s)
        self._turns = AdapterTurns()
        self._monotonic_s = monotonic_s
        self._waiting = WaitingLine()
        self._slots = Slots(backend, slots, ParkedStates(parked_bytes, cuts_tails=backend.cuts_tails))
        self._capacity = self._num_slots = slots  # less capacity than slots while the KV cache is short of room
        self._outbox: list[TokenOut | Done] = []  # outputs that need no decode: cancelled, already complete
        self._prefilling: frozenset[int] = frozenset()  # keys with a piece of their prompt in the batch under way
        self._can_wait = False  # the batch under way is of batch work only, and can be begun again
        self._has_waited = False  # the last such batch was stopped: the next one goes through, or none ever might
        self._arrivals = 0
        self._steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._slots.running or self._waiting or self._outbox)

    def sequence(self, message: Generate, prompt_ids: Items[int], constraint: Constraint | None = None) -> Sequence:
        """Raises PromptTooLong, or InvalidRequest for what doesn't fit the vocabulary. Safe in any thread."""
        if len(prompt_ids) + 1 > self._context_length:
            raise PromptTooLong(prompt_tokens=len(prompt_ids), context_length=self._context_length)
        return Sequence(message, prompt_ids, self._backend.vocabulary, self._context_length, constraint)

    def add(self, sequence: Sequence) -> None:
        leftover = sequence.leftover()
        if leftover is not None:
            self._outbox.append(leftover)
        if sequence.finish_reason is not None:  # the forced ids were already the whole text
            self._outbox.append(sequence.done())
            return
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._waiting.enter(sequence)

    def cancel(self, key: int) -> None:
        for sequence in self._slots.running:
            if sequence.key == key:
                self._release(sequence)
                self._outbox.append(sequence.done())
                return
        waiting = self._waiting.find(key)
        if waiting is not None:
            self._waiting.leave(waiting)
            self._outbox.append(waiting.done())

    def interrupt(self, key: int) -> None:
        """Stop the decode under way if it spends its time on this sequence's prompt. Any thread may call this.

        Nothing is lost when it comes too late and stops the next one: the others decode their part again."""
        if key in self._prefilling:
            self._backend.interrupt()

    def hurry(self) -> None:
        """Somebody more urgent than batch work has arrived: stop the decode under way if it is of batch work only, to
        begin again beside the newcomer. Of two in a row one is left alone. Any thread may call this."""
        if self._can_wait:
            self._backend.interrupt()

    def open_slots(self, count: int) -> None:
        """Use the first `count` slots from now on; fewer than before only while nothing runs."""
        self._capacity = self._num_slots = count
        self._slots.open(count)

    def rest(self) -> None:
        """Do what can be done for those to come, while there is no work."""
        if not self.has_work:
            self._slots.save_ahead()

    def step(self) -> tuple[TokenOut | Done, ...]:
        self._steps += 1
        outputs, self._outbox = self._outbox, []
        if self._waiting:
            self._admit()
        if self._slots.running:
            sampled, logits = self._decode()
            if sampled:
                self._sample(sampled, logits, outputs)
        return tuple(outputs)

    # ---- who runs

    def _admit(self) -> None:
        """Fill the slots in the order of the line; batch sequences make room for more urgent ones."""
        running = self._slots.running
        for sequence in self._waiting:
            if len(running) >= self._capacity and not scheduler.gives_way(running, sequence):
                return
            if self._is_led(sequence):
                continue
            if len(running) >= self._capacity:
                self._park(max(running, key=Sequence.rank))
            self._waiting.leave(sequence)
            self._slots.take(sequence)

    def _is_led(self, sequence: Sequence) -> bool:
        """Another one prefills what both begin with: then this one waits, and copies it."""
        if sequence.waits_for is None or not _is_under_way(*sequence.waits_for):
            sequence.waits_for = self._slots.leader(sequence)
        return sequence.waits_for is not None

    def _park(self, sequence: Sequence) -> None:
        self._slots.release(sequence, self._steps)
        self._waiting.enter(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._slots.release(sequence, self._steps)
        self._capacity = min(self._capacity + 1, self._num_slots)

    # ---- one step of those who run

    def _sample(self, sampled: list[Sequence], logits: Floats, outputs: list[TokenOut | Done]) -> None:
        if math.isnan(logits[:, 0].sum()):  # where one logit is NaN, practically all are
            return self._fail(sampled, logits, outputs)
        likeliest = logits.argmax(axis=1).tolist()
        row = 0
        for sequence in sampled:
            if sequence.draft:
                drafted, before = len(sequence.draft), len(sequence.tokens)
                rows = slice(row, row + 1 + drafted)
                outputs += sequence.sample_all(likeliest[rows], logits[rows])
                if not sequence.is_over:
                    self._drafting.verified(sequence, drafted, len(sequence.tokens) - before - 1, len(sampled))
                sequence.decoded = self._backend.keep_prefix(sequence.slot, len(sequence.tokens) - 1)
                row = rows.stop
            else:
                output = sequence.sample(likeliest[row], logits[row])
                if output is not None:
                    outputs.append(output)
                row += 1
            if sequence.is_over:
                self._release(sequence)
                outputs.append(sequence.done())

    def _fail(self, sampled: list[Sequence], logits: Floats, outputs: list[TokenOut | Done]) -> None:
        """A model that produces NaN can't go on; an adapter ends its own sequences, and costs the others a prefill."""
        adapter = sampled[0].adapter
        if not adapter:
            raise EngineFailed("The model produced NaN: its file is damaged, or its KV type doesn't suit it.")
        error = AdapterFailed(adapter)
        row = 0
        for sequence in sampled:
            rows = slice(row, row + 1 + len(sequence.draft))
            row, sequence.draft = rows.stop, []
            if math.isnan(logits[rows, 0].sum()):
                sequence.error = JobError(code=error.code, message=str(error))
                self._release(sequence)
                outputs.append(sequence.done())
        self._slots.clear(adapter)

    def _decode(self) -> tuple[list[Sequence], Floats]:
        """Decode the next batch: who may be sampled now, and their logits."""
        adapter = self._whose_turn()
        while running := [each for each in self._slots.running if each.adapter == adapter]:
            pending = [sequence.pending for sequence in running]
            try:
                granted, logits = self._decode_what_fits(running, pending)
            except Interrupted:
                self._take_stock()
                break
            except NoRoom:
                self._make_room()
                continue
            sampled = []
            for sequence, wanted, count in zip(running, pending, granted, strict=True):
                sequence.decoded += count
                if count == wanted:
                    sampled.append(sequence)
            return sampled, logits
        return [], _NO_LOGITS

    def _whose_turn(self) -> str:
        """The adapter of the next batch. Batch work sits out while a more urgent prompt is read, as within a batch."""
        running = self._slots.running
        urgent = [each for each in running if each.priority is not Priority.BATCH]
        candidates = urgent if any(each.pending > 1 for each in urgent) else running
        return self._turns.choose({each.adapter for each in candidates}, self._monotonic_s())

    def _decode_what_fits(self, running: list[Sequence], pending: list[int]) -> tuple[list[int], Floats]:
        """With less prefill while the KV cache has no room for it. Raises NoRoom when even a token is too much."""
        round_ = self._rounds[running[0].adapter]
        if max(pending) == 1:
            round_.end()
            return pending, self._decode_with_drafts(running, pending)
        demands = [scheduler.Demand(each.pending, each.priority, each.arrival) for each in running]
        chunk = round_.left(self._chunk())
        while True:
            due = scheduler.shares(demands, chunk)
            granted = scheduler.first_part(demands, due, self._pace.least_part())
            try:
                logits = self._timed_decode(running, pending, granted)
            except NoRoom:
                if chunk <= 1:
                    raise
                chunk //= 2
                continue
            if granted == due:
                round_.end()
            else:
                round_.read(sum(granted))
            return granted, logits

    def _chunk(self) -> int:
        """Prompt tokens for this step: those who generate under other adapters wait for it too, and so do prompts."""
        running = self._slots.running
        prefilling = [each for each in running if each.pending > 1]
        generating = sum(each.pending == 1 and each.priority is not Priority.BATCH for each in running)
        is_brief = self._has_waited and all(each.priority is Priority.BATCH for each in prefilling)
        waiting = sum(each.priority is not Priority.BATCH for each in prefilling)
        chunk = self._pace.chunk(generating=generating, waiting=waiting, is_brief=is_brief)
        return max(1, chunk // len({each.adapter for each in prefilling}))

    def _decode_with_drafts(self, running: list[Sequence], pending: list[int]) -> Floats:
        """Of sequences that all generate. Raises NoRoom when there is none even without the drafts."""
        self._drafting.prepare(running)
        try:
            return self._timed_decode(running, pending, pending)
        except NoRoom:
            if not drop_drafts(running):
                raise
            return self._timed_decode(running, pending, pending)

    def _make_room(self) -> None:
        """The KV cache has no room for another token: 1 idle slots are emptied, 2 the last in rank is parked until
        another one ends, 3 a sequence that is alone has reached the end of its context."""
        running = self._slots.running
        if self._slots.empty_idle():
            return
        last = max(running, key=Sequence.rank)
        if len(running) > 1:
            self._park(last)
            self._capacity = len(running)
            return
        rest = last.cut_off()
        if rest is not None:
            self._outbox.append(rest)
        self._release(last)
        self._outbox.append(last.done())

    def _take_stock(self) -> None:
        """After an interruption: go on from what is in the cache, with at least the last token still to decode."""
        drop_drafts(self._slots.running)
        for sequence in self._slots.running:
            length = min(self._backend.length(sequence.slot), len(sequence.tokens) - 1)
            sequence.decoded = self._backend.keep_prefix(sequence.slot, length)

    def _timed_decode(self, running: list[Sequence], pending: list[int], granted: list[int]) -> Floats:
        batch = [
            Slice(
                sequence.slot,
                sequence.decoded,
                sequence.tokens[sequence.decoded : sequence.decoded + count] + sequence.draft,
                int(count == wanted) + len(sequence.draft),
            )
            for sequence, wanted, count in zip(running, pending, granted, strict=True)
            if count
        ]
        # A state that can't be cut is spoilt by a decode that stops inside the batch, for all who share it.
        is_stoppable = self._backend.cuts_tails
        is_batch_work = all(sequence.priority is Priority.BATCH for sequence in running)
        self._can_wait = is_stoppable and is_batch_work and not self._has_waited
        self._prefilling = frozenset(
            sequence.key
            for sequence, wanted, count in zip(running, pending, granted, strict=True)
            if wanted > 1 and count and is_stoppable
        )
        started_s = self._monotonic_s()
        try:
            logits = self._backend.decode(batch, running[0].adapter)
            self._has_waited = self._has_waited and not is_batch_work
        except Interrupted:
            self._has_waited = self._has_waited or is_batch_work
            raise
        finally:
            self._prefilling = frozenset()
            self._can_wait = False
        seconds = self._monotonic_s() - started_s
        others = sum(wanted == count == 1 for wanted, count in zip(pending, granted, strict=True))
        if max(pending) == 1:
            self._drafting.measured(running, seconds)
        self._pace.measured(sum(granted) - others, others, seconds)
        return logits


def _is_under_way(leader: Sequence, length: int) -> bool:
    """Whether the leader still works towards so many tokens."""
    return leader.slot >= 0 and leader.decoded < length
