"""What the controller, or a worker by itself, decided and why: a record each, for logs, metrics and people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class Action(StrEnum):
    LOAD = "load"
    EVICT = "evict"
    KEEP = "keep"  # jobs wait for a model that is held: nothing to do, and why not a replica
    WAIT = "wait"  # a model should be loaded and can't be yet
    REFUSE = "refuse"  # the waiting jobs of a model can't be served
    FALLBACK = "fallback"  # the waiting jobs should go to another model


class Code(StrEnum):
    """Reasons. Each names the rule of `tasks.controller.plan` that spoke."""

    # load
    ROOM = "room"  # enough bytes are free
    IDLE_VICTIMS = "idle_victims"
    BUSY_VICTIMS = "busy_victims"  # within slack, residency floor and bucket
    OVERDUE = "overdue"  # the bound on waiting: past its target, and the victims had their frame
    REPLICA = "replica"
    # evict
    MAKES_ROOM = "makes_room"
    TTL = "ttl"
    ASKED = "asked"
    QUARANTINED = "quarantined"
    EXTRA_REPLICA = "extra_replica"
    OUTDATED = "outdated"  # by its worker: the model's file or settings have changed
    NOT_HELD = "not_held"  # by its worker: no placement holds it, and its bytes are needed
    # keep
    LOADING = "loading"
    SLOTS_FREE = "slots_free"
    REPLICA_CEILING = "replica_ceiling"
    REPLICA_TOO_DEAR = "replica_too_dear"
    QUEUE_TOO_SHORT = "queue_too_short"
    # wait
    NO_WORKER = "no_worker"
    ROOM_IS_BEING_MADE = "room_is_being_made"
    BUSY_WITHIN_SLACK = "busy_within_slack"
    RESIDENCY = "residency"
    BUCKET_EMPTY = "bucket_empty"
    CLAIMED = "claimed"  # an overdue model has the first claim on every worker that could serve
    PAUSE_AFTER_FAILURE = "pause_after_failure"
    # refuse, fallback
    NOT_OFFERED = "not_offered"
    DOES_NOT_FIT = "does_not_fit"
    PINNED_IN_THE_WAY = "pinned_in_the_way"
    LOAD_FAILED = "load_failed"
    WRONG_DEVICE = "wrong_device"
    WAIT_TOO_LONG = "wait_too_long"


SLOTS_TAKEN = (Code.REPLICA_CEILING, Code.REPLICA_TOO_DEAR, Code.QUEUE_TOO_SHORT)  # a line before a warm model stays


Term = int | float | str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One change, or one decision not to change. `terms` are the numbers that it rests on; bytes, ms, shares."""

    at_ms: int
    action: Action
    code: Code
    model: str
    worker: str | None = None
    text: str
    terms: Mapping[str, Term] = {}

    @property
    def topic(self) -> tuple[str, str, str, str | None]:
        """Two decisions with the same topic say the same thing with newer numbers."""
        return (self.action, self.model, self.code, self.worker)
