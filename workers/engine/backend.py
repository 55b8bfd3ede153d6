"""What the step loop needs of a model: batches in, logits out, and slots whose cached tokens can be cut and moved.

Pure interface: no llama.cpp, no policy.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import NamedTuple, Protocol

from workers.engine.sampling import Floats
from workers.engine.vocabulary import Vocabulary


class Slice(NamedTuple):
    """Tokens of one slot in a batch."""

    slot: int
    start: int  # position of the first one
    tokens: list[int]
    outputs: int  # the last so many of them want a row of logits


class NoRoom(Exception):
    """The KV cache can't take this batch; nothing was changed."""


class Interrupted(Exception):
    """The decode was stopped inside the batch. What each slot holds now is for `Backend.length` to say."""


class State(Protocol):
    """What a slot's cache held, in ordinary memory."""

    @property
    def nbytes(self) -> int: ...


class Backend(Protocol):
    """A model that decodes batches; one thread owns it."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def cuts_tails(self) -> bool:
        """False where a slot's last tokens can't be forgotten (recurrent models): all of it is kept, or nothing."""
        ...

    @property
    def max_drafted(self) -> int:
        """Drafted tokens that a batch may carry, each with a row of logits; 0 where they can't be forgotten at once."""
        ...

    def decode(self, batch: Items[Slice], adapter: str = "") -> Floats:
        """One row of logits per wanted output, in order, valid until the next call.

        All of it is computed with one adapter; "" is the model itself. Slices come in ascending order of their slots.
        Raises NoRoom, Interrupted or EngineFailed."""
        ...

    def interrupt(self) -> None:
        """Stop the decode under way, if there is one. Any thread may call this."""
        ...

    def length(self, slot: int) -> int:
        """How many tokens the slot's cache holds."""
        ...

    def keep_prefix(self, slot: int, length: int) -> int:
        """Forget all but the first `length` tokens of a slot; the number really kept (0 where tails can't be cut)."""
        ...

    def clear(self) -> None:
        """Forget all slots, bytes included: NaN in a cell that is in no use can spoil what is computed beside it."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Let the target hold what the source holds. The target must not be saved before the next decode."""
        ...

    def copy_cost(self, tokens: int) -> int:
        """How many tokens' worth of cache it moves to copy a slot that holds so many."""
        ...

    def save(self, slot: int, limit_bytes: int) -> State | None:
        """The slot's cache as it is; None when it is larger than the limit."""
        ...

    def restore(self, slot: int, state: State) -> bool:
        """Let the slot hold what was saved. False: it could not, and holds nothing."""
        ...
