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


def choose_slot(
    reusable: Mapping[int, int], prompt_tokens: int, busy: AbstractSet[int], used_at: Mapping[int, int]
) -> int:
    """The slot for a new sequence out of the free ones (`reusable`: slot → cached tokens it would save), by rule:

    1. the longest cached prefix, if it saves at least a tenth of the prompt (llama-server's threshold),
    2. a neighbour of a busy slot: llama.cpp decodes a run of consecutive sequence ids in one go,
    3. the one that has been idle longest, the lowest first.
    """

    def rank(slot: int) -> tuple[int, bool, int, int]:
        saves = reusable[slot] if reusable[slot] * 10 >= prompt_tokens else 0
        apart = bool(busy) and slot - 1 not in busy and slot + 1 not in busy
        return (-saves, apart, used_at[slot], slot)

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
