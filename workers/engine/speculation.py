"""How many drafted tokens to decode along with the sampled ones. Pure: numbers in, numbers out.

A step of g sequences makes g tokens, and those of its drafts that turn out right. Drafts make it longer: on a GPU
hardly, on a CPU almost in proportion. So the length of the drafts is the one that promises most tokens per second,
given how often guesses were right lately and how long such steps took; often that is none. What the drafts cost is
known as a ratio to steps without, which stays the same while contexts grow and the machine is more or less busy.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import NamedTuple

from workers.engine.lookup import Guess

MAX_GENERATING = 4  # with more sequences, a step has work enough without guesses
LEVELS = (1, 2, 4, 8)  # lengths to choose from: each has to be tried to know what it costs
WORTH_IT = 1.05  # times as many tokens per second
PLAIN_EVERY = 32  # so many steps with drafts, one goes without: what they are compared with changes
FORGET_EVERY = 32  # decisions
TRUSTED_ON = 0.94  # of the trust in a cost that was not measured meanwhile: in the end everything is tried again
_NEWEST = 1 / 8  # weight of the newest measurement


class Plan(NamedTuple):
    """How many tokens to draft for each sequence, and how many times as many tokens per second that promises."""

    lengths: list[int]
    speedup: float


class Speculation:
    def __init__(self, max_drafted: int) -> None:
        """`max_drafted`: tokens per step, of all sequences together; 0 for never."""
        self._max_drafted = max_drafted
        self._plain_s: dict[int, float] = {}  # seconds of a step without drafts, by sequences
        self._costs: dict[int, list[_Cost]] = {}  # of a step with 0, 1, 2 … drafted tokens, by sequences
        self._since_plain = 0
        self._decisions = 0

    def longest(self, generating: int) -> int:
        """Tokens that one draft may have now; 0: nobody needs to guess."""
        return self._max_drafted // generating if generating <= MAX_GENERATING else 0

    def is_due(self, generating: int) -> bool:
        """Whether the next step may have drafts. Now and then one goes without."""
        return generating in self._costs and self._since_plain < PLAIN_EVERY

    def decided(self) -> None:
        """A step had guesses, whether they were drafted or not: what drafts cost is known a little less."""
        self._decisions += 1
        if self._decisions % FORGET_EVERY == 0:
            self._forget()

    def best(self, guesses: Items[Guess | None], position_s: float = 0.0) -> Plan:
        """The lengths of most tokens per second; a guess per sequence, None where there is none.

        `position_s`: seconds that it takes to find out one more token of all drafts."""
        generating = len(guesses)
        costs, plain_s = self._costs[generating], self._plain_s[generating]
        position = position_s / plain_s if plain_s > 0 else 0.0
        best = Plan([0] * generating, 1.0)
        longest = self.longest(generating)
        for level in (level for level in LEVELS if level <= longest):
            lengths = [min(level, guess.length) if guess else 0 for guess in guesses]
            tokens = generating + sum(guess.expected(level) for guess in guesses if guess)
            speedup = tokens / generating / (costs[sum(lengths)].expected + max(lengths) * position)
            if speedup > max(best.speedup, WORTH_IT):
                best = Plan(lengths, speedup)
        return best

    def plain_s(self, generating: int) -> float:
        """Seconds of a step without drafts; 0.0 before there was one."""
        return self._plain_s.get(generating, 0.0)

    def extra_s(self, generating: int, drafted: int) -> float:
        """Seconds that a step with so many drafted tokens is expected to take longer than one without."""
        return (self._costs[generating][drafted].expected - 1) * self._plain_s[generating]

    def measured(self, generating: int, drafted: int, seconds: float) -> None:
        """A step of so many sequences, and nothing else, with so many drafted tokens took so long."""
        if generating > MAX_GENERATING:
            return
        if not drafted:
            self._since_plain = 0
            before_s = self._plain_s.get(generating, seconds)
            # A step that was held up says little.
            self._plain_s[generating] = before_s + (min(seconds, 2 * before_s) - before_s) * _NEWEST
            self._costs.setdefault(generating, [_Cost() for _ in range(self._max_drafted + 1)])
            return
        self._since_plain += 1
        plain_s = self._plain_s[generating]
        if plain_s > 0:
            # More is less than one token at a time would take, and less than 1 is chance.
            self._costs[generating][drafted].measured(max(1.0, min(seconds / plain_s, drafted + 1)))

    def _forget(self) -> None:
        for costs in self._costs.values():
            for cost in costs:
                cost.trust *= TRUSTED_ON


class _Cost:
    """How many times as long as a step without drafts one with so many drafted tokens is; hopefully none."""

    __slots__ = ("_value", "trust")

    def __init__(self) -> None:
        self._value = 1.0
        self.trust = 0.0  # 1: just measured

    @property
    def expected(self) -> float:
        return 1 + (self._value - 1) * self.trust

    def measured(self, value: float) -> None:
        if self.trust:
            value = min(value, 2 * self._value)  # one that was held up says little
        self._value += (value - self._value) * max(1 - self.trust, _NEWEST)
        self.trust = 1.0
