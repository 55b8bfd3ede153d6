"""Whether a draft model may work: what its guesses are worth, what they cost, and what it may spend to find out. Pure.

Unlike a look into the text, a draft model's guess costs time, and so does keeping up with the sequences. So all that it
does is charged to an account, in seconds, and the tokens that it saved are paid in. While the account is empty it does
nothing; it fills by a small share of the time that passes. So a draft model that is of no use costs that share, and one
that was of no use is tried again.
"""

from __future__ import annotations

SHARE = 0.01  # of the time of all steps that may go into finding out
FIRST_TRIAL = 4.0  # steps without drafts; so much is there in the beginning
MOST = 32.0  # steps; no more is saved up
LEAST = -8.0  # drafts that should pay may owe so much, until they do
LEAST_TO_CATCH_UP = -4.0  # catching up doesn't owe more than this: what follows has to be given a chance
HORIZON = 64  # tokens over which catching up has to pay: nobody knows how long an answer will be
FIRST_CHANCE = 0.7
_NEWEST = 1 / 8  # weight of the newest measurement
_NEWEST_OF_ALL = 1 / 32
_BACK_TO_ALL = 1 / 64  # per step: what was true of a sequence long ago is no longer known


class DraftBudget:
    def __init__(self) -> None:
        self.chance = FIRST_CHANCE  # that a guess is right, where those before it are, in any sequence
        self._saved_s = 0.0
        self._has_begun = False
        self._position_s: dict[int, float] = {}  # seconds of one decode of a draft, by sequences
        self._token_s = 0.0  # seconds to catch up by one token

    def position_s(self, generating: int) -> float:
        return self._position_s.get(generating, 0.0)

    def catch_up_s(self, tokens: int) -> float:
        return tokens * self._token_s

    def piece(self, plain_s: float, largest: int, smallest: int) -> int:
        """Tokens to catch up by in one step: so many that it takes no longer than the step itself."""
        return largest if self._token_s <= 0 else max(smallest, min(largest, int(plain_s / self._token_s)))

    # ---- the account

    def passed(self, plain_s: float) -> None:
        """A step has passed, which takes so long without drafts."""
        self._put((SHARE if self._has_begun else FIRST_TRIAL) * plain_s, plain_s)
        self._has_begun = True

    def gained(self, seconds: float, plain_s: float) -> None:
        """A step with drafts has gained so much time, or lost it."""
        self._put(seconds, plain_s)

    def may_go_on(self, plain_s: float) -> bool:
        """Whether drafts may be made that should pay."""
        return self._saved_s >= LEAST * plain_s

    def may_spend(self, seconds: float) -> bool:
        return self._saved_s >= seconds

    def pays_to_catch_up(self, tokens: int, room: int, speedup: float, plain_s: float) -> bool:
        """Whether being behind by so many tokens is made up for by drafts that promise this speedup."""
        gained_s = min(room, HORIZON) * plain_s * (1 - 1 / speedup)
        return self.may_spend(0.0) and self.catch_up_s(tokens) <= gained_s

    def _put(self, seconds: float, plain_s: float) -> None:
        self._saved_s = min(self._saved_s + seconds, MOST * plain_s)

    # ---- what was seen

    def proposed(self, generating: int, decodes: int, seconds: float) -> None:
        """A draft for so many sequences took so many decodes."""
        value = seconds / decodes
        before = self._position_s.get(generating, value)
        self._position_s[generating] = before + (min(value, 2 * before) - before) * _NEWEST

    def caught_up(self, tokens: int, seconds: float, plain_s: float) -> None:
        """It took so long to catch up by so many tokens, which is charged."""
        if self._saved_s > LEAST_TO_CATCH_UP * plain_s:
            self._put(max(-seconds, LEAST_TO_CATCH_UP * plain_s - self._saved_s), plain_s)
        value = seconds / tokens
        before = self._token_s or value
        self._token_s = before + (min(value, 2 * before) - before) * _NEWEST

    def verified(self, chance: float, right: int, drafted: int) -> float:
        """The chance in a sequence, after so many guesses were right and then, unless that were all, one wrong."""
        for _ in range(right):
            chance += (1 - chance) * _NEWEST
            self.chance += (1 - self.chance) * _NEWEST_OF_ALL
        if right < drafted:
            chance -= chance * _NEWEST
            self.chance -= self.chance * _NEWEST_OF_ALL
        return chance

    def faded(self, chance: float) -> float:
        """The chance in a sequence after a step without its draft."""
        return chance + (self.chance - chance) * _BACK_TO_ALL
