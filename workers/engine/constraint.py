"""What a sequence may say next: the port between sampling and whatever keeps an answer to a form. Pure interface."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Constraint(Protocol):
    """State of one generation; the step loop's thread owns it once the sequence was added."""

    def allows(self, token: int) -> bool:
        """Whether this token may come next. Cheap: asked for every token."""
        ...

    def mask(self) -> npt.NDArray[np.bool_]:
        """For each token id whether it may come next. Raises GrammarFailed."""
        ...

    def take(self, token: int) -> bool:
        """Go on past a token that is no end token; True when nothing more may follow. Raises GrammarFailed."""
        ...
