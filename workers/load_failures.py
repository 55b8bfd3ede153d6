"""Which models' loads failed, why, and when the next try is due. Pure: no lock, no clock; the pool's lock guards it.

The pauses double, so that a model that can't be loaded costs little. A failure belongs to one version of the file: a
changed file is tried at once.
"""

from __future__ import annotations

from dataclasses import dataclass

CRASHES_IN_A_ROW = 3  # of a model's runner, before its waiting jobs are told that it can't be loaded


@dataclass(frozen=True, slots=True)
class LoadFailure:
    reason: str
    count: int
    pause_s: float
    retry_at_s: float  # monotonic
    identity: str  # of the file that failed
    is_crash: bool  # a runner that died says less about its model than one that refused it

    @property
    def is_final(self) -> bool:
        return not self.is_crash or self.count >= CRASHES_IN_A_ROW


class LoadFailures:
    """At most one failure per model: the newest, with how many came before it. Times are monotonic seconds."""

    def __init__(self, *, first_pause_s: float, last_pause_s: float) -> None:
        self._first_pause_s = first_pause_s
        self._last_pause_s = last_pause_s
        self._by_model: dict[str, LoadFailure] = {}

    def record(self, model: str, *, identity: str, reason: str, is_crash: bool, now_s: float) -> LoadFailure:
        known = self._by_model.get(model)
        count = known.count + 1 if known else 1
        pause_s = min(self._first_pause_s * 2 ** min(count - 1, 30), self._last_pause_s)
        failure = LoadFailure(reason, count, pause_s, now_s + pause_s, identity, is_crash)
        self._by_model[model] = failure
        return failure

    def loaded(self, model: str, *, is_proven: bool) -> None:
        """A load has worked. Until the runner has proven itself, crashes that nobody was told of still count."""
        known = self._by_model.get(model)
        if known is not None and (is_proven or known.is_final):
            del self._by_model[model]

    def is_pausing(self, model: str, identity: str, now_s: float) -> bool:
        failure = self._by_model.get(model)
        return failure is not None and failure.identity == identity and now_s < failure.retry_at_s

    def may_retry(self, model: str, identity: str, now_s: float) -> bool:
        """It failed, and the pause is over."""
        return model in self._by_model and not self.is_pausing(model, identity, now_s)

    def final_reason(self, model: str, identity: str) -> str | None:
        """Why this version of the model can't be loaded, if that is settled."""
        failure = self._by_model.get(model)
        return failure.reason if failure and failure.is_final and failure.identity == identity else None
