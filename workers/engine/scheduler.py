"""Which tokens go into the next batch. Pure: numbers in, numbers out.

Every generating sequence gets its one token in every step. Prompts share a bounded chunk, so that a long one never
stalls the others (the weakness of llama.cpp's own server, llama.cpp#29175): the more urgent ones first, and among
equals short prompts get all they need, long ones split the rest evenly. Batch work sits out the steps that read a more
urgent prompt: nobody waits for its next token, and somebody does wait for the first one of that prompt.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from collections.abc import Set as AbstractSet

from tasks.jobs import Priority
from workers.engine.sequence import Sequence


def shares(pending: Items[int], levels: Items[int], prefill_chunk: int, turn: int = 0) -> list[int]:
    """How many tokens of each sequence go into the batch, given how many each has pending and its level (priority).

    `turn` (the step number) rotates who gets the remainder of an uneven split, and who goes first when there are
    more prompts than tokens in the chunk.
    """
    is_urgent = any(tokens > 1 and level < Priority.BATCH for tokens, level in zip(pending, levels, strict=True))
    wanted = [0 if is_urgent and level >= Priority.BATCH else each for each, level in zip(pending, levels, strict=True)]
    granted = [int(tokens == 1) for tokens in wanted]
    prompts = [index for index, tokens in enumerate(wanted) if tokens > 1]
    left = prefill_chunk
    for level in sorted({levels[index] for index in prompts}):
        equals = [index for index in prompts if levels[index] == level]
        # Water-filling: smallest demand first; each may take an even share of what is left.
        equals.sort(key=lambda index: (pending[index], (index + turn) % len(pending)))
        for position, index in enumerate(equals):
            granted[index] = min(pending[index], -(-left // (len(equals) - position)))
            left -= granted[index]
    return granted


class PrefillPace:
    """Bounds the chunk by time: 512 prompt tokens are nothing on a GPU and many seconds on a CPU.

    While others wait for their next token, prefill may take GENERATION_STEPS times as long as their step takes anyway:
    then it gets four fifths of the device, whatever the device. When more wait for their first token than for their
    next one, as after a burst of short prompts, it may take as many times longer, up to LONGEST_BESIDE_S. A gap of
    IMPERCEPTIBLE_S is nobody's loss, so that much is always allowed. And no step takes longer than LONGEST_S, so that a
    cancel and the proof of life don't wait.
    """

    GENERATION_STEPS = 4
    IMPERCEPTIBLE_S = 0.03
    LONGEST_BESIDE_S = 0.25
    LONGEST_S = 1.0
    FIRST_CHUNK = 128  # tokens, before anything was measured
    SMALLEST_CHUNK = 32  # below it the weights are read too often for too few tokens

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._token_s: float | None = None  # seconds per prompt token; in averages the newest measurement counts half
        self._generation_s = 0.0  # seconds per step without a prompt

    def chunk(self, *, generating: int, waiting: int, is_brief: bool = False) -> int:
        """Prompt tokens for the next step at most, given how many sequences wait for their next and for their first
        token. `is_brief`: somebody may come who can't stop it."""
        if self._token_s is None:
            return min(self._chunk, self.FIRST_CHUNK)
        budget_s = self.LONGEST_BESIDE_S if is_brief else self.LONGEST_S
        if generating:
            fair_s = self.GENERATION_STEPS * self._generation_s
            burst_s = min(self.LONGEST_BESIDE_S, fair_s * waiting / generating)
            budget_s = min(budget_s, max(self.IMPERCEPTIBLE_S, fair_s, burst_s))
        return min(self._chunk, max(self.SMALLEST_CHUNK, int(budget_s / self._token_s)))

    def measured(self, prompt_tokens: int, others: int, seconds: float) -> None:
        """A step with so many prompt tokens, and one token of so many generating sequences, took so long."""
        if not prompt_tokens:
            self._generation_s = (self._generation_s + seconds) / 2 if self._generation_s else seconds
        elif prompt_tokens >= min(self.SMALLEST_CHUNK, self._chunk):  # else mostly the cost of a step
            if others:
                seconds = max(seconds - self._generation_s, seconds / 2)
            token_s = max(seconds, 1e-6) / prompt_tokens
            self._token_s = token_s if self._token_s is None else (self._token_s + token_s) / 2


def gives_way(running: Items[Sequence], newcomer: Sequence) -> bool:
    """Whether somebody has to leave a slot for the newcomer: batch work does, for everything that is more urgent."""
    return newcomer.priority < Priority.BATCH and any(each.priority >= Priority.BATCH for each in running)


def choose_slot(free: AbstractSet[int], busy: AbstractSet[int], used_at: Items[int]) -> int:
    """The free slot whose cache may be overwritten, by rule:

    1. between or beside busy slots: llama.cpp decodes each run of consecutive sequence ids on its own (four sequences
       in one run took 307 µs a step, in four runs 696),
    2. the one that has been idle longest, the lowest first.
    """

    def rank(slot: int) -> tuple[int, int, int]:
        neighbours = (slot - 1 in busy) + (slot + 1 in busy)
        return (-neighbours, used_at[slot], slot)

    return min(free, key=rank)


def common_prefix(left: list[int], right: list[int]) -> int:
    """Length of the longest common start. List slices compare in C: gallop to the first difference, then bisect."""
    low, step, end = 0, 32, min(len(left), len(right))
    while low < end and left[low : low + step] == right[low : low + step]:
        low, step = min(low + step, end), step * 2
    high = min(low + step, end)
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
