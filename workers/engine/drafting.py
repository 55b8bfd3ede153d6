"""Speculative decoding (Leviathan et al. 2023): who gets a draft in the next step, and what came of it.

A draft is decoded behind its sequence's last token, and then sampled position by position as if its tokens had come
one by one; so it changes when a token comes, and never which.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from workers.engine.sequence import Sequence
from workers.engine.speculation import Speculation


class Drafting:
    def __init__(self, max_drafted: int) -> None:
        """`max_drafted`: tokens per step, of all sequences together; 0 for never."""
        self._speculation = Speculation(max_drafted)

    def prepare(self, generating: Items[Sequence]) -> None:
        """Set the drafts of sequences that have one token pending each, and are all that the batch holds."""
        longest = self._speculation.longest(len(generating))
        if not longest:
            return
        guesses = [each.lookup.guess(min(longest, each.room - 1)) for each in generating]
        if not any(guesses):
            return
        for each, length in zip(generating, self._speculation.lengths(guesses), strict=True):
            if length:
                each.draft = each.lookup.draft(length)

    def measured(self, generating: Items[Sequence], seconds: float) -> None:
        """The batch with these drafts took so long."""
        self._speculation.measured(len(generating), sum(len(each.draft) for each in generating), seconds)


def drop_drafts(sequences: Items[Sequence]) -> bool:
    """False when there were none."""
    had_some = False
    for each in sequences:
        if each.draft:
            each.draft, had_some = [], True
    return had_some
