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
_KNOWN = 0.5  # trust in a cost that is nearly as good as measured


class Plan(NamedTuple):
    """How many tokens to draft for each sequence, and how many times as many tokens per second that promises."""

    lengths: list[int]
    speedup: float


class Speculation:
    def __init__(self, max_drafted: int) -> None:
        """`max_drafted`: tokens per step, of all sequences together; 0 for never."""
        self._max_drafted = max_drafted
        self._plain_s: dict[int, float] = {}  # seconds of a step without drafts, by sequences
        self._costs: dict[int, _Costs] = {}  # by sequences
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
            speedup = tokens / generating / (costs.expected[sum(lengths)] + max(lengths) * position)
            if speedup > max(best.speedup, WORTH_IT):
                best = Plan(lengths, speedup)
        return best

    def plain_s(self, generating: int) -> float:
        """Seconds of a step without drafts; 0.0 before there was one."""
        return self._plain_s.get(generating, 0.0)

    def extra_s(self, generating: int, drafted: int) -> float:
        """Seconds that a step with so many drafted tokens is expected to take longer than one without."""
        return (self._costs[generating].expected[drafted] - 1) * self._plain_s[generating]

    def measured(self, generating: int, drafted: int, seconds: float) -> None:
        """A step of so many sequences, and nothing else, with so many drafted tokens took so long."""
        if generating > MAX_GENERATING:
            return
        if not drafted:
            self._since_plain = 0
            before_s = self._plain_s.get(generating, seconds)
            # A step that was held up says little.
            self._plain_s[generating] = before_s + (min(seconds, 2 * before_s) - before_s) * _NEWEST
            self._costs.setdefault(generating, _Costs(self._max_drafted))
            return
        self._since_plain += 1
        plain_s = self._plain_s[generating]
        if plain_s > 0:
            # More is less than one token at a time would take, and less than 1 is chance.
            self._costs[generating].measured(drafted, max(1.0, min(seconds / plain_s, drafted + 1)))

    def _forget(self) -> None:
        for costs in self._costs.values():
            costs.forget()


class _Costs:
    """How many times as long as a step without drafts one with 0, 1, 2 … drafted tokens is expected to be; hopefully as
    long.

    What a number of tokens costs is known from steps with so many, and without these from other numbers: more tokens
    cost no less, and a further one no more than those before it. So a trial of one length is one of all. Where kernels
    change with the size of a batch the second may be wrong; then the lengths below the jump are found one by one."""

    def __init__(self, max_drafted: int) -> None:
        self._values = [1.0] * (max_drafted + 1)
        self._trust = [0.0] * (max_drafted + 1)  # 1: just measured
        self.expected = self._values.copy()

    def measured(self, drafted: int, value: float) -> None:
        trust, before = self._trust[drafted], self._values[drafted]
        if trust:
            value = min(value, 2 * before)  # one that was held up says little
        self._values[drafted] += (value - before) * max(1 - trust, _NEWEST)
        self._trust[drafted] = 1.0
        self._expect()

    def forget(self) -> None:
        self._trust = [trust * TRUSTED_ON for trust in self._trust]
        self._expect()

    def _expect(self) -> None:
        extras = [(value - 1) * trust for value, trust in zip(self._values, self._trust, strict=True)]
        self.expected = [
            1 + extra + (1 - trust) * self._concluded(drafted, extras)
            for drafted, (extra, trust) in enumerate(zip(extras, self._trust, strict=True))
        ]

    def _concluded(self, drafted: int, extras: Items[float]) -> float:
        """What so many tokens cost beside the step, by what is known of other numbers."""
        others = [of for of in range(1, len(extras)) if of != drafted]
        least = max((extras[of] * min(1.0, drafted / of) for of in others), default=0.0)
        known = (extras[of] * drafted / of for of in others if of < drafted and self._trust[of] > _KNOWN)
        return min(least, min(known, default=least))
