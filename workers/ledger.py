"""The bytes of one device: who reserved them for a load, who uses them, what is left. Thread-safe; no I/O.

Invariant: used + reserved ≤ budget, always. An account is reserved → committed → released; a load that needs more
than it reserved, and more than is free, is refused at its commit and must stop.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from tasks.errors import ModelDoesNotFit
from workers.byte_text import format_bytes
from workers.estimate import MeasuredNeed, MemoryNeed


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What one runner holds of the budget."""

    model: str
    bytes: int
    is_committed: bool = False  # False: reserved for a load, True: measured and in use
    is_pinned: bool = False


class Ledger:
    """One account per model, because a worker runs at most one runner of a model."""

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes <= 0:
            raise ValueError("A ledger needs a positive budget.")
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {}

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return self._sum(is_committed=True)

    @property
    def reserved_bytes(self) -> int:
        with self._lock:
            return self._sum(is_committed=False)

    @property
    def free_bytes(self) -> int:
        with self._lock:
            return self._free()

    def accounts(self) -> tuple[Account, ...]:
        with self._lock:
            return tuple(sorted(self._accounts.values(), key=lambda account: account.model))

    def bytes_of(self, model: str) -> int:
        """Reserved or used by the model; 0 when it has no account."""
        with self._lock:
            account = self._accounts.get(model)
            return account.bytes if account else 0

    def reserve(self, model: str, need: MemoryNeed, *, is_pinned: bool = False) -> None:
        """Set the bytes aside before the load begins. Raises ModelDoesNotFit with the arithmetic."""
        with self._lock:
            if model in self._accounts:
                raise ValueError(f"'{model}' already has an account: one load at a time.")
            if need.total_bytes > self._free():
                raise ModelDoesNotFit(self._refusal(model, need))
            self._accounts[model] = Account(model=model, bytes=need.total_bytes, is_pinned=is_pinned)
            self._check()

    def commit(self, model: str, measured_bytes: int) -> None:
        """Replace the reservation, or an older measurement, by what is really in use.

        Raises ModelDoesNotFit, and leaves the account as it was, when that is more than the account and the free
        bytes together: the caller must stop the runner.
        """
        with self._lock:
            self._commit(model, measured_bytes)

    def grow(self, model: str, measured_bytes: int) -> None:
        """Like `commit`, for a runner that may be gone by now; never shrinks its account."""
        with self._lock:
            if model in self._accounts and measured_bytes > self._accounts[model].bytes:
                self._commit(model, measured_bytes)

    def set_pinned(self, models: AbstractSet[str]) -> None:
        """These are pinned from now on, and no others."""
        with self._lock:
            accounts = self._accounts.items()
            self._accounts = {model: replace(account, is_pinned=model in models) for model, account in accounts}

    def release(self, model: str) -> None:
        """Give the bytes back; a model without an account is no error, so that every path may release."""
        with self._lock:
            self._accounts.pop(model, None)

    def refusal(self, model: str, need: MemoryNeed) -> ModelDoesNotFit:
        """Why the model can't be loaded now, with the arithmetic."""
        with self._lock:
            return ModelDoesNotFit(self._refusal(model, need))

    def _commit(self, model: str, measured_bytes: int) -> None:
        account = self._accounts[model]
        if measured_bytes > account.bytes + self._free():
            raise ModelDoesNotFit(self._refusal(model, MeasuredNeed(total_bytes=measured_bytes)))
        self._accounts[model] = replace(account, bytes=measured_bytes, is_committed=True)
        self._check()

    def _refusal(self, model: str, need: MemoryNeed) -> str:
        others = [account for account in self._accounts.values() if account.model != model]
        sentence = f"'{model}' needs {need.explain()}; the budget is {format_bytes(self.budget_bytes)}"
        return f"{sentence}, {_holders(others)}" if others else f"{sentence} and nothing else is loaded"

    def _sum(self, *, is_committed: bool) -> int:
        return sum(each.bytes for each in self._accounts.values() if each.is_committed is is_committed)

    def _free(self) -> int:
        return self.budget_bytes - sum(account.bytes for account in self._accounts.values())

    def _check(self) -> None:
        if self._free() < 0:
            raise AssertionError("The ledger is over-committed.")


def _holders(accounts: Iterable[Account]) -> str:
    largest_first = sorted(accounts, key=lambda account: (-account.bytes, account.model))
    return "held by " + ", ".join(
        f"{'pinned ' if account.is_pinned else ''}{account.model} {format_bytes(account.bytes)}"
        for account in largest_first
    )
