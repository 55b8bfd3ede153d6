"""The continuous-batching loop: waiting sequences take slots, every step decodes one batch of all of them.

Knows nothing of llama.cpp: a Backend decodes. One step = admit → share out the batch → decode → sample → publish.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import NamedTuple, Protocol

import numpy as np

from tasks.errors import PromptTooLong
from workers.engine import scheduler
from workers.engine.base import EngineFailed
from workers.engine.constraint import Constraint
from workers.engine.sampling import Floats
from workers.engine.sequence import Sequence
from workers.engine.vocabulary import Vocabulary
from workers.messages import Done, Generate, TokenOut


class Slice(NamedTuple):
    """Tokens of one slot in a batch."""

    slot: int
    start: int  # position of the first one
    tokens: list[int]
    wants_logits: bool  # of the last one


class NoRoom(Exception):
    """The KV cache can't take this batch; nothing was changed."""


class Interrupted(Exception):
    """The decode was stopped inside the batch. What each slot holds now is for `Backend.length` to say."""


class Backend(Protocol):
    """A model that decodes batches; one thread owns it."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def decode(self, batch: Items[Slice]) -> Floats:
        """One row of logits per slice that wants them, in order, valid until the next call.

        Slices come in ascending order of their slots. Raises NoRoom, Interrupted or EngineFailed."""
        ...

    def interrupt(self) -> None:
        """Stop the decode under way, if there is one. Any thread may call this."""
        ...

    def length(self, slot: int) -> int:
        """How many tokens the slot's cache holds."""
        ...

    def keep_prefix(self, slot: int, length: int) -> int:
        """Forget all but the first `length` tokens of a slot; the number really kept (0 where tails can't be cut)."""
        ...


class StepLoop:
    """Sequences, slots and steps on top of one backend."""

    def __init__(
        self,
        backend: Backend,
        *,
        slots: int,
        context_length: int,
        prefill_chunk: int,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._context_length = context_length
        self._pace = scheduler.PrefillPace(prefill_chunk)
        self._monotonic_s = monotonic_s
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # by slot: the order that llama.cpp batches best
        self._free = set(range(slots))
        self._cached: list[list[int]] = [[] for _ in range(slots)]  # what each free slot's KV cache holds
        self._used_at = dict.fromkeys(range(slots), 0)
        self._outbox: list[TokenOut | Done] = []  # outputs that need no decode: cancelled, already complete
        self._prefilling: frozenset[int] = frozenset()  # keys with a piece of their prompt in the batch under way
        self._steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting or self._outbox)

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
        else:
            self._waiting.append(sequence)

    def cancel(self, key: int) -> None:
        for sequence in self._running:
            if sequence.key == key:
                self._release(sequence)
                self._outbox.append(sequence.done())
                return
        for sequence in self._waiting:
            if sequence.key == key:
                self._waiting.remove(sequence)
                self._outbox.append(sequence.done())
                return

    def interrupt(self, key: int) -> None:
        """Stop the decode under way if it spends its time on this sequence's prompt. Any thread may call this.

        Nothing is lost when it comes too late and stops the next one: the others decode their part again."""
        if key in self._prefilling:
            self._backend.interrupt()

    def step(self) -> tuple[TokenOut | Done, ...]:
        self._steps += 1
        outputs, self._outbox = self._outbox, []
        while self._waiting and self._free:
            self._admit(self._waiting.popleft())
        if self._running:
            self._decode_and_sample(outputs)
        return tuple(outputs)

    def _admit(self, sequence: Sequence) -> None:
        # The last token is always decoded again: its logits are needed and were not kept.
        reusable = {
            slot: min(scheduler.common_prefix(self._cached[slot], sequence.tokens), len(sequence.tokens) - 1)
            for slot in self._free
        }
        busy = {other.slot for other in self._running}
        slot = scheduler.choose_slot(reusable, len(sequence.tokens), busy, self._used_at)
        sequence.slot = slot
        sequence.decoded = self._backend.keep_prefix(slot, reusable[slot])
        sequence.cached_tokens = min(sequence.decoded, sequence.prompt_tokens)
        self._free.remove(slot)
        self._running.append(sequence)
        self._running.sort(key=lambda running: running.slot)

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free.add(sequence.slot)
        self._cached[sequence.slot] = sequence.tokens[: sequence.decoded]
        self._used_at[sequence.slot] = self._steps

    def _decode_and_sample(self, outputs: list[TokenOut | Done]) -> None:
        sampled, logits = self._decode()
        if not sampled:
            return
        if math.isnan(logits[:, 0].sum()):  # where one logit is NaN, practically all are
            raise EngineFailed("The model produced NaN: its file is damaged, or its KV type doesn't suit it.")
        likeliest = logits.argmax(axis=1).tolist()
        for row, sequence in enumerate(sampled):
            output = sequence.sample(likeliest[row], logits[row])
            if output is not None:
                outputs.append(output)
            if sequence.is_over:
                self._release(sequence)
                outputs.append(sequence.done())

    def _decode(self) -> tuple[list[Sequence], Floats]:
        """Decode the next batch, with less prefill while the KV cache has no room for it."""
        pending = [sequence.pending for sequence in self._running]
        chunk = self._pace.chunk(others_generate=1 in pending)
        while True:
            granted = scheduler.shares(pending, chunk, self._steps)
            try:
                logits = self._timed_decode(granted)
                break
            except Interrupted:
                self._take_stock()
                return [], np.empty((0, 0), dtype=np.float32)
            except NoRoom:
                if chunk <= 1:
                    raise EngineFailed("The KV cache has no room for the running sequences.") from None
                chunk //= 2
        sampled = []
        for sequence, count in zip(self._running, granted, strict=True):
            sequence.decoded += count
            if count and sequence.decoded == len(sequence.tokens):
                sampled.append(sequence)
        return sampled, logits

    def _take_stock(self) -> None:
        """After an interruption: go on from what is in the cache, with at least the last token still to decode."""
        for sequence in self._running:
            length = min(self._backend.length(sequence.slot), len(sequence.tokens) - 1)
            sequence.decoded = self._backend.keep_prefix(sequence.slot, length)

    def _timed_decode(self, granted: list[int]) -> Floats:
        batch = [
            Slice(
                sequence.slot,
                sequence.decoded,
                sequence.tokens[sequence.decoded : sequence.decoded + count],
                count == sequence.pending,
            )
            for sequence, count in zip(self._running, granted, strict=True)
            if count
        ]
        self._prefilling = frozenset(
            sequence.key for sequence, count in zip(self._running, granted, strict=True) if count > 1
        )
        started_s = self._monotonic_s()
        try:
            logits = self._backend.decode(batch)
        finally:
            self._prefilling = frozenset()
        prompt_tokens = sum(count for count in granted if count > 1)
        if prompt_tokens:
            self._pace.measured(prompt_tokens, self._monotonic_s() - started_s)
        return logits
