"""How fast a batch goes and when it will be done, from what was seen of it. Pure: no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tasks.generation import JsonObject

WINDOW_S = 30.0


@dataclass(slots=True)
class Pace:
    """Rates over the last half minute."""

    _seen: deque[tuple[float, int, int]] = field(default_factory=deque)  # (seconds, lines done, tokens made)

    def saw(self, batch: JsonObject, now_s: float) -> None:
        self._seen.append((now_s, num_done(batch), batch["usage"]["output_tokens"]))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()

    @property
    def tokens_per_s(self) -> float | None:
        return self._rate(2)

    def eta_s(self, batch: JsonObject) -> float | None:
        """Seconds until the last line is done; None while nothing says so."""
        rate = self._rate(1)
        return (batch["request_counts"]["total"] - num_done(batch)) / rate if rate else None

    def _rate(self, index: int) -> float | None:
        if len(self._seen) < 2:
            return None
        first, last = self._seen[0], self._seen[-1]
        took_s = last[0] - first[0]
        return (last[index] - first[index]) / took_s if took_s > 0 else None


def num_done(batch: JsonObject) -> int:
    counts = batch["request_counts"]
    return int(counts["completed"]) + int(counts["failed"])
