"""What workers offer and hold, and what the controller wants them to hold. Frozen values, stored as JSON. Pure."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

import msgspec

from tasks.jobs import WorkerId


class RunnerState(StrEnum):
    """Life of one runner process. Draining is irreversible; a stopped or crashed runner is replaced, never revived."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    CRASHED = "crashed"


RUNNER_NEXT: dict[RunnerState, frozenset[RunnerState]] = {
    RunnerState.STARTING: frozenset({RunnerState.READY, RunnerState.STOPPED, RunnerState.CRASHED}),
    RunnerState.READY: frozenset({RunnerState.DRAINING, RunnerState.STOPPED, RunnerState.CRASHED}),
    RunnerState.DRAINING: frozenset({RunnerState.STOPPED, RunnerState.CRASHED}),
    RunnerState.STOPPED: frozenset(),
    RunnerState.CRASHED: frozenset(),
}


class ModelKind(StrEnum):
    """What a model makes of its input: text, one vector, or a score for a pair of texts."""

    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"


class CachePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How answers of a model are cached, if its owner wants that."""

    ttl_s: int
    max_bytes: int  # of one answer; a larger one is not kept


class ModelOffer(msgspec.Struct, frozen=True, kw_only=True):
    """One model that a worker could serve, with what is known of its cost there."""

    id: str
    aliases: tuple[str, ...] = ()
    context_length: int  # tokens per sequence
    slots: int
    bytes: int  # to reserve: measured before if possible, else estimated
    load_ms: int  # measured before if possible, else estimated from the bytes
    file_bytes: int = 0
    description: str = ""  # e.g. "llama 1.8M Q8_0"
    pinned: bool = False
    ttl_s: int | None = None  # unload after this long without a job
    replicas: int = 0  # keep at least this many warm
    max_replicas: int = 1
    fallback: str | None = None
    devices: tuple[str, ...] = ()  # cpu, cuda or cuda:1: where it may run; empty: anywhere
    tier: str | None = None  # where the bytes of a load would come from: "disk", "page_cache"; None: not known
    failure: str | None = None  # why the last load failed; cleared when the file changes or a retry succeeds
    may_retry: bool = False  # the pause after the failure is over: the next job may try a load again
    kind: ModelKind = ModelKind.GENERATE
    embedding_length: int = 0  # numbers in a vector of this model
    estimate_error: float | None = (
        None  # of the bytes, before the first load: 0.1 is a tenth too many; None: not loaded
    )
    reduced: str | None = None  # what was taken from its context or slots to make it fit
    is_matryoshka: bool = False  # the start of its vectors is a vector too, if made to have length 1
    fingerprint: str = ""  # of the file and of what it is loaded with: an equal one says the same; "" is equal to none
    cache: CachePolicy | None = None  # None: its answers are not cached
    base: str | None = None  # of a LoRA adapter: the model whose runner serves it; it is never placed itself

    @property
    def runner_model(self) -> str:
        """The model that has to be loaded."""
        return self.base or self.id

    @property
    def is_usable(self) -> bool:
        return self.failure is None or self.may_retry


def may_run_on(devices: Collection[str], device: str) -> bool:
    """Whether a model that may go to these devices may go to this one, a worker's `device`. None means any; `cuda` any
    GPU, `cuda:1` the second one. A device's name goes on with a description."""
    name = device.partition(" ")[0]
    return not devices or any(name == each or name.startswith(f"{each}:") for each in devices)


def openable_slots(closed_slots: int, slot_bytes: int, free_bytes: int) -> int:
    """Of so many closed slots, those for which so many bytes are enough."""
    return min(closed_slots, max(0, free_bytes) // slot_bytes) if closed_slots else 0


class RunnerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One runner as its worker sees it."""

    pid: int
    model: str
    state: RunnerState
    bytes: int
    slots: int
    in_flight: int
    batch_in_flight: int = 0  # of these: batch work, whose places all others share
    closed_slots: int = 0  # of `slots`: those that `bytes` leave out; the worker opens them when they are needed
    slot_bytes: int = 0  # what each of them will take
    since_ms: int  # when it entered this state
    idle_since_ms: int | None = None  # None while something runs
    progress: float = 1.0  # of the load
    reduced: str | None = None  # what was taken from its context or slots to make it fit
    adapters: dict[str, int] = {}  # LoRA adapters that it serves as well → how many of `in_flight` are theirs

    @property
    def open_slots(self) -> int:
        return self.slots - self.closed_slots

    def slots_with(self, free_bytes: int) -> int:
        """Slots that are open, and those for which so many bytes are enough."""
        return self.open_slots + openable_slots(self.closed_slots, self.slot_bytes, free_bytes)

    def serves(self, model: str) -> bool:
        """Also while it starts."""
        return model == self.model or model in self.adapters


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's heartbeat; a worker without a fresh one is gone."""

    id: WorkerId
    pid: int
    host: str
    device: str  # "cpu", "cuda:0 NVIDIA H100"
    budget_bytes: int
    used_bytes: int
    started_ms: int
    is_draining: bool = False
    placement_epoch: int = 0  # newest placement that this worker has acted on
    bandwidths: dict[str, int] = {}  # tier → measured bytes/s of a load from there
    init_ms: int = 0  # of a load, whatever its size: spawn, context, warm-up; counts with `bandwidths`
    cache_bytes: int = 0  # of files that the page cache of its host can hold; 0: not known, nothing is read ahead
    offers: tuple[ModelOffer, ...] = ()
    runners: tuple[RunnerReport, ...] = ()
    warnings: tuple[str, ...] = ()  # what its operator should mend, such as an entry of models.yaml; sentences

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.used_bytes


class WorkerPlacement(msgspec.Struct, frozen=True, kw_only=True):
    """Desired state of one worker. What it holds beyond `hold` may be evicted when bytes are needed;
    what is in `evict` goes at once (drained first)."""

    hold: tuple[str, ...] = ()
    evict: tuple[str, ...] = ()
    prefetch: tuple[str, ...] = ()  # likely next: worth reading into the page cache while the disk is idle; a hint only


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Desired state of the fleet. A higher epoch always wins."""

    epoch: int = 0
    workers: dict[str, WorkerPlacement] = {}


class ClassBacklog(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs of one model and one priority that wait."""

    priority: int  # tasks.jobs.Priority
    depth: int
    oldest_age_ms: int


class QueueReport(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs of one model that wait, over all priorities and per priority that has any."""

    model: str
    depth: int
    oldest_age_ms: int
    classes: tuple[ClassBacklog, ...] = ()


class LoadCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model on all workers, since the store exists."""

    loads: int  # that worked
    load_ms: int  # which these took in all
    swap_ms: int  # the same from when the placement began to want them: others had to leave first
    cold_starts: int  # jobs that came while no runner had the model ready


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """All live workers at one moment of the store's clock."""

    now_ms: int
    workers: tuple[WorkerReport, ...] = ()

    def offers(self) -> dict[str, ModelOffer]:
        """One offer per model id; a worker where the model works wins over one where it failed."""
        best: dict[str, ModelOffer] = {}
        for worker in self.workers:
            for offer in worker.offers:
                known = best.get(offer.id)
                if known is None or (known.failure and not offer.failure):
                    best[offer.id] = offer
        return best

    def has_ready_runner(self, model: str) -> bool:
        return any(
            runner.serves(model) and runner.state is RunnerState.READY
            for worker in self.workers
            for runner in worker.runners
        )
