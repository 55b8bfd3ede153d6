"""The bound on waiting that the placement policy promises, watched in a simulated fleet.

T + n·(R + D + L), as `tasks.controller.plan` has it: a model is overdue when a job of it has waited for its class
target T, counted from when the model last had to leave. From then on it is ready within n turns of a frame R, a drain D
and the longest load L, with n the models that were overdue no later, itself included.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.simulation.parameters import Setting
from tasks.controller.rules import Rules

LATE_TICKS = 4  # each of: overdue, room, load and readiness may be noticed a tick late


class WaitingBound:
    def __init__(self, setting: Setting, rules: Rules) -> None:
        load_ms = max(setting.load_ms(model, is_cached=False) for model in setting.models)
        leave_ms = setting.hardware.drain_ms + setting.hardware.stop_ms
        self._turn_ms = rules.frame_ms(round(load_ms)) + leave_ms + load_ms + LATE_TICKS * setting.tick_ms
        self._bounds_ms: dict[str, float] = {}  # of models that are overdue, from when they became so
        self.worst_share = 0.0  # the longest wait beyond T over its bound; the bound is broken above 1

    def look(self, overdue_ms: Mapping[str, float], now_ms: float) -> None:
        """Once per tick. `overdue_ms`: models with jobs past T and no ready runner, and since when."""
        self._bounds_ms = {model: bound for model, bound in self._bounds_ms.items() if model in overdue_ms}
        for model, since_ms in overdue_ms.items():
            if model not in self._bounds_ms:
                ahead = sum(other_ms <= since_ms for other_ms in overdue_ms.values())
                self._bounds_ms[model] = ahead * self._turn_ms
            self.worst_share = max(self.worst_share, (now_ms - since_ms) / self._bounds_ms[model])
