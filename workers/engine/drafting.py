"""Speculative decoding (Leviathan et al. 2023): who gets a draft in the next step, and what came of it.

A draft is decoded behind its sequence's last token, and then sampled position by position as if its tokens had come
one by one; so it changes when a token comes, and never which. Guesses come from the text itself, or from a draft model
that samples with the same random numbers; whichever promises more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from collections.abc import Sequence as Items

from workers.engine.base import DRAFT_PIECE, EngineFailed
from workers.engine.draft_budget import DraftBudget
from workers.engine.draft_model import NEAR, DraftModel
from workers.engine.lookup import Guess
from workers.engine.sequence import Sequence
from workers.engine.speculation import WORTH_IT, Plan, Speculation

PROBE = 2  # tokens of a draft that is to show whether guesses are right
PAUSE = 8  # steps until the draft model is thought of again when there was nothing for it to do
LIKELIEST = 0.99  # nobody is surer than that


class Drafting:
    def __init__(
        self, max_drafted: int, model: DraftModel | None = None, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`max_drafted`: tokens per step, of all sequences together; 0 for never. Without a `model` nobody asked for
        drafts, so they may not change the text."""
        self._is_asked = model is not None
        self._speculation = Speculation(max_drafted)
        self._guesser = _Guesser(model, self._speculation, monotonic_s) if model is not None and max_drafted else None

    def prepare(self, generating: Items[Sequence]) -> None:
        """Set the drafts of sequences that have one token pending each, and are all that the batch holds."""
        if self._guesser is not None:
            self._guesser.settle()
        if generating[0].adapter and not self._is_asked:
            return  # its matrices are in floats, by which products round one row otherwise than several
        longest = self._speculation.longest(len(generating))
        if not longest:
            return
        guesses = [each.lookup.guess(min(longest, each.room - 1)) for each in generating]
        is_guessing = self._guesser is not None and self._guesser.is_awake()
        if not (is_guessing or any(guesses)) or not self._speculation.is_due(len(generating)):
            return
        plan = self._speculation.best(guesses)
        is_the_models = (
            self._guesser is not None and is_guessing and self._guesser.prepare(generating, longest, plan.speedup)
        )
        if is_the_models or any(guesses):
            self._speculation.decided()
        if is_the_models:
            return
        for each, length in zip(generating, plan.lengths, strict=True):
            if length:
                each.draft = each.lookup.draft(length)

    def measured(self, generating: Items[Sequence], seconds: float) -> None:
        """The batch with these drafts took so long."""
        self._speculation.measured(len(generating), sum(len(each.draft) for each in generating), seconds)
        if self._guesser is not None:
            self._guesser.decoded(len(generating), seconds)

    def verified(self, sequence: Sequence, drafted: int, right: int, generating: int) -> None:
        """So many tokens of its draft were what came, in a step of so many sequences."""
        if self._guesser is not None:
            self._guesser.verified(sequence, drafted, right, generating)


def drop_drafts(sequences: Items[Sequence]) -> bool:
    """False when there were none."""
    had_some = False
    for each in sequences:
        if each.draft:
            each.draft, had_some = [], True
    return had_some


class _Guesser:
    """The draft model's part: it works where that pays, or where it may be tried."""

    def __init__(self, model: DraftModel, speculation: Speculation, monotonic_s: Callable[[], float]) -> None:
        self._model: DraftModel | None = model  # None once it has failed
        self._speculation = speculation
        self._monotonic_s = monotonic_s
        self._budget = DraftBudget()
        self._pause = 0  # steps
        self._proposed = False  # the drafts of this step are the model's
        self._spent_s = self._saved_s = self._plain_s = 0.0  # in this step
        self._catching_up: Sequence | None = None  # begun is to be done: half of it is worth nothing

    def is_awake(self) -> bool:
        """Asked once per step: whether there may be something to do."""
        self._pause = max(0, self._pause - 1)
        return not self._pause and self._model is not None

    def prepare(self, generating: Items[Sequence], longest: int, speedup: float) -> bool:
        """Whether the sequences have drafts now, which promise more than this speedup, or show whether they would."""
        assert self._model is not None, "asked while asleep"
        try:
            return self._work(self._model, generating, longest, speedup)
        except EngineFailed as error:
            print(f"runner: goes on without the draft model: {error}", file=sys.stderr)
            self._model = None
            for each in generating:
                each.draft = []
            return False

    def decoded(self, generating: int, seconds: float) -> None:
        """The batch took so long."""
        plain_s = self._speculation.plain_s(generating)
        if plain_s > 0:
            self._budget.passed(plain_s)
        if self._proposed:
            self._spent_s += max(0.0, seconds - plain_s)

    def verified(self, sequence: Sequence, drafted: int, right: int, generating: int) -> None:
        if self._proposed:
            sequence.chance = self._budget.verified(self._chance(sequence), right, drafted)
            self._saved_s += right * self._plain_s / generating

    def settle(self) -> None:
        """Charge what the last step cost, and pay in what it saved."""
        if self._spent_s or self._saved_s:
            self._budget.gained(self._saved_s - self._spent_s, self._plain_s)
        self._proposed, self._spent_s, self._saved_s = False, 0.0, 0.0

    def _work(self, model: DraftModel, generating: Items[Sequence], longest: int, speedup: float) -> bool:
        self._plain_s = self._speculation.plain_s(len(generating))
        behind = [model.behind(each) for each in generating]
        near = [tokens is not None and tokens <= NEAR for tokens in behind]
        guesses = [
            self._guess(each, min(longest, each.room - 1, model.room(each))) if is_near else None
            for each, is_near in zip(generating, near, strict=True)
        ]
        plan = self._best(guesses)
        caught_up = self._catch_up(model, generating, behind, speedup)
        if plan.speedup <= max(speedup, WORTH_IT) or not self._budget.may_go_on(self._plain_s):
            plan = self._probe(guesses) if speedup <= WORTH_IT and not caught_up else Plan([0] * len(guesses), 1.0)
        for each, length in zip(generating, plan.lengths, strict=True):
            if not length and each.chance is not None:
                each.chance = self._budget.faded(each.chance)
        if not any(plan.lengths):
            self._pause = 0 if caught_up else PAUSE
            return False
        began_s = self._monotonic_s()
        decodes = model.propose(generating, plan.lengths)
        seconds = self._monotonic_s() - began_s
        self._budget.proposed(len(generating), decodes, seconds)
        self._proposed = True
        self._spent_s += seconds
        return True

    def _chance(self, sequence: Sequence) -> float:
        return self._budget.chance if sequence.chance is None else sequence.chance

    def _guess(self, sequence: Sequence, length: int) -> Guess | None:
        chance = min(self._chance(sequence), LIKELIEST)
        return Guess(length, chance, chance) if length > 0 else None

    def _best(self, guesses: Items[Guess | None]) -> Plan:
        """Of drafts for all sequences, or only for those whose guesses are likelier right."""
        position_s = self._budget.position_s(len(guesses))
        plans = [
            self._speculation.best([guess if guess and guess.first >= least else None for guess in guesses], position_s)
            for least in sorted({guess.first for guess in guesses if guess})
        ]
        return max(plans, key=lambda plan: plan.speedup, default=Plan([0] * len(guesses), 1.0))

    def _probe(self, guesses: Items[Guess | None]) -> Plan:
        """A short draft for the sequence whose guesses are likeliest right, when there is time to spend."""
        lengths = [0] * len(guesses)
        likely = [(guess.first, index, guess) for index, guess in enumerate(guesses) if guess]
        if likely:
            _, likeliest, guess = max(likely)
            length = min(PROBE, guess.length)
            cost_s = length * self._budget.position_s(len(guesses)) + self._speculation.extra_s(len(guesses), length)
            if self._budget.may_spend(cost_s):
                lengths[likeliest] = length
        return Plan(lengths, 1.0)

    def _catch_up(
        self, model: DraftModel, generating: Items[Sequence], behind: Items[int | None], speedup: float
    ) -> bool:
        """Bring one sequence nearer, by a piece that takes no longer than a step, if that pays or may be tried."""
        far = [(tokens, each) for tokens, each in zip(behind, generating, strict=True) if tokens and tokens > NEAR]
        chosen = next((pair for pair in far if pair[1] is self._catching_up), None)
        if chosen is None:
            chosen = min(far, key=lambda pair: pair[0], default=None)
            if chosen is None or not self._is_worth_it(*chosen, len(generating), speedup):
                self._catching_up = None
                return False
        _, self._catching_up = chosen
        began_s = self._monotonic_s()
        tokens = model.catch_up(self._catching_up, self._budget.piece(self._plain_s, DRAFT_PIECE, NEAR))
        seconds = self._monotonic_s() - began_s
        self._budget.caught_up(tokens, seconds, self._plain_s)
        return True

    def _is_worth_it(self, tokens: int, sequence: Sequence, generating: int, speedup: float) -> bool:
        guess = self._guess(sequence, min(self._speculation.longest(generating), sequence.room - 1))
        if guess is None:
            return False
        promised = self._best([guess] * generating).speedup
        if promised > max(speedup, WORTH_IT):
            return self._budget.pays_to_catch_up(tokens, sequence.room, promised, self._plain_s)
        return speedup <= WORTH_IT and self._budget.may_spend(self._budget.catch_up_s(tokens))
