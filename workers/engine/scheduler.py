"""Which tokens go into the next batch. Pure: numbers in, numbers out.

Every generating sequence gets its one token in every step. Prompts share a bounded chunk, so that a long one never
stalls the others (the weakness of llama.cpp's own server, llama.cpp#29175): short prompts get all they need, long
ones split the rest evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from collections.abc import Set as AbstractSet


def shares(pending: Items[int], prefill_chunk: int, turn: int = 0) -> list[int]:
    """How many tokens of each sequence go into the batch, given how many each has pending.

    `turn` (the step number) rotates who gets the remainder of an uneven split, and who goes first when there are
    more prompts than tokens in the chunk.
    """
    granted = [1 if tokens == 1 else 0 for tokens in pending]
    prompts = [index for index, tokens in enumerate(pending) if tokens > 1]
    if not prompts:
        return granted
    left = prefill_chunk
    # Water-filling: smallest demand first; each may take an even share of what is left.
    order = sorted(prompts, key=lambda index: (pending[index], (index + turn) % len(pending)))
    for position, index in enumerate(order):
        competitors = len(order) - position
        granted[index] = min(pending[index], -(-left // competitors))
        left -= granted[index]
    return granted


class PrefillPace:
    """Bounds the chunk by time: 512 prompt tokens are nothing on a GPU and many seconds on a CPU.

    While others generate, a step may take STEP_BESIDE_OTHERS_S longer than their tokens alone; without them it may take
    STEP_ALONE_S, so that a cancel and the proof of life don't wait for a whole chunk.
    """

    STEP_BESIDE_OTHERS_S = 0.15
    STEP_ALONE_S = 1.0
    FIRST_CHUNK = 128  # tokens, before anything was measured
    SMALLEST_CHUNK = 32  # below it the weights are read too often for too few tokens

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._token_s: float | None = None  # seconds per prompt token, the newest measurement counting half

    def chunk(self, *, others_generate: bool) -> int:
        """Prompt tokens for the next step at most."""
        if self._token_s is None:
            return min(self._chunk, self.FIRST_CHUNK)
        budget_s = self.STEP_BESIDE_OTHERS_S if others_generate else self.STEP_ALONE_S
        return min(self._chunk, max(self.SMALLEST_CHUNK, int(budget_s / self._token_s)))

    def measured(self, tokens: int, seconds: float) -> None:
        """A step with so many prompt tokens took so long."""
        if tokens < min(self.SMALLEST_CHUNK, self._chunk):
            return  # mostly the cost of a step, not of its tokens
        token_s = max(seconds, 1e-6) / tokens
        self._token_s = token_s if self._token_s is None else (self._token_s + token_s) / 2


def choose_slot(
    reusable: Mapping[int, int], prompt_tokens: int, busy: AbstractSet[int], used_at: Mapping[int, int]
) -> int:
    """The slot for a new sequence out of the free ones (`reusable`: slot → cached tokens it would save), by rule:

    1. the longest cached prefix, if it saves at least a tenth of the prompt (llama-server's threshold),
    2. between or beside busy slots: llama.cpp decodes each run of consecutive sequence ids on its own (four sequences
       in one run took 307 µs a step, in four runs 696),
    3. the one that has been idle longest, the lowest first.
    """

    def rank(slot: int) -> tuple[int, int, int, int]:
        saves = reusable[slot] if reusable[slot] * 10 >= prompt_tokens else 0
        neighbours = (slot - 1 in busy) + (slot + 1 in busy)
        return (-saves, -neighbours, used_at[slot], slot)

    return min(reusable, key=rank)


def common_prefix(left: list[int], right: list[int]) -> int:
    """Length of the longest common start; list slices compare in C, so bisection beats a loop."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
