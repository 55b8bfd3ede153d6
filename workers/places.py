"""Places of attempts in one runner, by priority. Pure: no lock, no clock; the lock of its lifecycle guards it.

The engine parks batch sequences for all others, so that these count only each other: as many urgent attempts as there
are slots have a place, whatever batch work is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.jobs import Priority


@dataclass(frozen=True, slots=True)
class Openness:
    """Whether there is a place at all: what the queues of the model depend on."""

    for_batch: bool
    for_urgent: bool


@dataclass(slots=True)
class Places:
    slots: int  # that are open
    _taken: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))

    @property
    def in_flight(self) -> int:
        """Attempts that hold a place, whether they have begun or not. More than `slots` while batch work is parked."""
        return sum(self._taken.values())

    @property
    def batch_in_flight(self) -> int:
        return self._taken[Priority.BATCH]

    @property
    def openness(self) -> Openness:
        return Openness(for_batch=self.room(Priority.BATCH) > 0, for_urgent=self.room(Priority.DEFAULT) > 0)

    def room(self, priority: Priority) -> int:
        """Places for attempts of this priority."""
        others = self.in_flight - self.batch_in_flight
        return max(0, self.slots - others - (self.batch_in_flight if priority is Priority.BATCH else 0))

    def take(self, priority: Priority) -> bool:
        """False when there is no room."""
        if not self.room(priority):
            return False
        self._taken[priority] += 1
        return True

    def give_back(self, priority: Priority) -> None:
        self._taken[priority] -= 1
