"""Which tokens go into the next batch. Pure: numbers in, numbers out.

Generating sequences get a token each, and prompts share a bounded chunk, in turn; so a long prompt never stalls the
others (the weakness of llama.cpp's own server, llama.cpp#29175). The chunk goes to the more urgent prompts first, and
among equals to the shortest. Where several prompts end within it, it is read in parts: on a CPU a prompt takes as long
as it has tokens, so the first of eight has its first token in an eighth of the time, and the last one hardly later.
Where a step takes the same time for one prompt or for all, as on a GPU, it is read at once.

Batch work sits out the steps that read a more urgent prompt: nobody waits for its next token, and somebody does wait
for the first one of that prompt.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from tasks.jobs import Priority
from workers.engine.sequence import Sequence

CRUMB = 16  # tokens; a piece of a prompt that is smaller costs nearly a step of its own


class Demand(NamedTuple):
    """What one running sequence could decode."""

    pending: int  # tokens; 1: it generates, more: a prompt
    level: int  # priority
    arrival: int = 0  # number in the engine


def shares(demands: Items[Demand], prefill_chunk: int) -> list[int]:
    """How many tokens of each sequence are due, with at most so many prompt tokens in all (crumbs may be left).

    The shortest rest of a prompt goes first, so that as many as possible have their first token soon. The oldest prompt
    gets its even share all the same, so that none waits for ever."""
    is_urgent = any(each.pending > 1 and each.level < Priority.BATCH for each in demands)
    served = [index for index, each in enumerate(demands) if not (is_urgent and each.level >= Priority.BATCH)]
    prompts = [index for index in served if demands[index].pending > 1]
    granted = [0] * len(demands)
    for index in served:
        granted[index] = int(demands[index].pending == 1)
    left = prefill_chunk
    for level in sorted({demands[index].level for index in prompts}):
        equals = sorted((index for index in prompts if demands[index].level == level), key=lambda at: demands[at])
        oldest = min(equals, key=lambda index: demands[index].arrival)
        granted[oldest] = _piece(demands[oldest].pending, max(-(-left // len(equals)), CRUMB), left)
        left -= granted[oldest]
        for index in equals:
            more = _piece(demands[index].pending - granted[index], left, left)
            granted[index] += more
            left -= more
    if prompts and left == prefill_chunk:
        first = min(prompts, key=lambda index: (demands[index].level, demands[index].arrival))
        granted[first] = min(demands[first].pending, left)
    return granted


def _piece(wanted: int, share: int, left: int) -> int:
    """How many of the wanted tokens to take, about as many as the share, so that neither they nor the rest are a
    crumb."""
    if wanted <= min(share + CRUMB, left):
        return wanted
    piece = min(share, left, wanted - CRUMB)
    return piece if piece >= CRUMB else 0


def first_part(demands: Items[Demand], due: list[int], least: int) -> list[int]:
    """Of what is due, what to decode first: at least so many tokens of prompts that end with them, so that their first
    tokens don't wait for the other prompts. All of it, the tokens of those who generate included, when no such part is
    to be had, or is the rest; and of batch work, whose first tokens nobody awaits."""
    prompts = [index for index, each in enumerate(demands) if each.pending > 1 and due[index]]
    ending = [index for index in prompts if due[index] == demands[index].pending]
    part: set[int] = set()
    tokens = 0
    for index in sorted(ending, key=lambda index: (demands[index].level, demands[index].pending)):
        if tokens < least and demands[index].level < Priority.BATCH:
            part.add(index)
            tokens += due[index]
    if tokens < least or len(part) == len(prompts):
        return due
    return [count if index in part else 0 for index, count in enumerate(due)]


class PrefillRound:
    """What may be read of prompts between two tokens of those who generate, in one step or in parts."""

    def __init__(self) -> None:
        self._chunk = 0
        self._read = 0

    def left(self, chunk: int) -> int:
        """Prompt tokens, where `chunk` are right now; if more were right at an earlier part, these were promised."""
        self._chunk = max(self._chunk, chunk)
        return max(1, self._chunk - self._read)

    def read(self, tokens: int) -> None:
        """A part of the prompts was decoded, and those who generate go on waiting."""
        self._read += tokens

    def end(self) -> None:
        """Those who generate have their next token."""
        self._chunk = self._read = 0


class PrefillPace:
    """Bounds the chunk by time: 512 prompt tokens are nothing on a GPU and many seconds on a CPU.

    While others wait for their next token, a prompt may take GENERATION_STEPS times as long as their step takes anyway:
    then it gets four fifths of the device, whatever the device. Several prompts may take as many times longer, up to
    LONGEST_BESIDE_S each: every step between them keeps them all waiting, and its batch is not full yet. But nobody
    waits longer than LONGEST_S for the next token. A gap of IMPERCEPTIBLE_S is nobody's loss, so that much is always
    allowed. And no step takes longer than LONGEST_S, so that a cancel and the proof of life don't wait.
    """

    GENERATION_STEPS = 4
    IMPERCEPTIBLE_S = 0.03
    LONGEST_BESIDE_S = 0.25
    LONGEST_S = 1.0
    FIRST_CHUNK = 128  # tokens, before anything was measured
    SMALLEST_CHUNK = 32  # below it the weights are read too often for too few tokens
    WORTH_A_STEP = 4  # times what a step costs in itself: so much prefill at least, where a smaller step would do

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._token_s: float | None = None  # seconds per prompt token; in averages the newest measurement counts half
        self._generation_s = 0.0  # seconds per step without a prompt,
        self._generating = 0  # of so many sequences
        self._empty_s: float | None = None  # what of that is not for its tokens

    def chunk(self, *, generating: int, waiting: int, is_brief: bool = False) -> int:
        """Prompt tokens for the next step at most, given how many sequences wait for their next and for their first
        token; batch work doesn't count. `is_brief`: somebody may come who can't stop it."""
        if self._token_s is None:
            return min(self._chunk, self.FIRST_CHUNK)
        budget_s = self.LONGEST_BESIDE_S if is_brief else self.LONGEST_S
        if generating:
            step_s = self._step_s(generating)
            fair_s = self.GENERATION_STEPS * step_s
            burst_s = min(min(self.LONGEST_BESIDE_S, fair_s) * waiting, self.LONGEST_S - step_s)
            budget_s = min(budget_s, max(self.IMPERCEPTIBLE_S, fair_s, burst_s))
        return min(self._chunk, max(self.SMALLEST_CHUNK, int(budget_s / self._token_s)))

    def least_part(self) -> int:
        """Prompt tokens that are worth a step of their own."""
        if self._token_s is None or self._empty_s is None:
            return self._chunk
        return max(self.SMALLEST_CHUNK, int(self.WORTH_A_STEP * self._empty_s / self._token_s))

    def measured(self, prompt_tokens: int, others: int, seconds: float) -> None:
        """A step with so many prompt tokens, and one token of so many generating sequences, took so long."""
        if not prompt_tokens:
            self._generation_s = (self._step_s(others) + seconds) / 2 if self._generating else seconds
            self._generating = others
            if others > 1 and self._token_s is not None:  # one alone is a matter of vectors, and tells nothing
                empty_s = max(0.0, seconds - others * self._token_s)
                self._empty_s = empty_s if self._empty_s is None else (self._empty_s + empty_s) / 2
        elif prompt_tokens >= min(self.SMALLEST_CHUNK, self._chunk):  # else mostly the cost of a step
            if others:
                seconds = max(seconds - self._step_s(others), seconds / 2)
            token_s = max(seconds, 1e-6) / prompt_tokens
            self._token_s = token_s if self._token_s is None else (self._token_s + token_s) / 2

    def _step_s(self, generating: int) -> float:
        """Seconds of a step without a prompt. The newest may have been of fewer or more: what one costs in a prompt is
        what one more costs here, and a token in company is never dearer than among fewer."""
        if not self._generating:
            return 0.0
        more_s = (generating - self._generating) * (self._token_s or 0.0)
        in_proportion_s = self._generation_s * generating / self._generating
        if more_s < 0:
            return max(self._generation_s + more_s, in_proportion_s)
        return min(self._generation_s + more_s, in_proportion_s)


def gives_way(running: Items[Sequence], newcomer: Sequence) -> bool:
    """Whether somebody has to leave a slot for the newcomer: batch work does, for everything that is more urgent."""
    return newcomer.priority < Priority.BATCH and any(each.priority >= Priority.BATCH for each in running)


def choose_slot(free: AbstractSet[int], busy: AbstractSet[int], used_at: Items[int]) -> int:
    """The free slot whose cache may be overwritten, by rule:

    1. between or beside busy slots: llama.cpp decodes each run of consecutive sequence ids on its own (four sequences
       in one run took 307 µs a step, in four runs 696),
    2. between the lowest and the highest busy slot, so that runs which are apart grow together,
    3. the one that has been idle longest, the lowest first.
    """
    lowest, highest = min(busy, default=0), max(busy, default=0)

    def rank(slot: int) -> tuple[int, bool, int, int]:
        neighbours = (slot - 1 in busy) + (slot + 1 in busy)
        return (-neighbours, not lowest < slot < highest, used_at[slot], slot)

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
