"""The fleet as a plan is being made: what is there, what shall stay, and who holds what. No policy.

A view of a worker is derived once from its heartbeat and its part of the placement, and used again while both are the
very same objects (`Memo`): a tick costs what changed, not what exists. A memo never changes a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tasks.fleet import Fleet, ModelOffer, Placement, RunnerReport, RunnerState, WorkerPlacement, WorkerReport

ABSENT = WorkerPlacement()


class Shelf:
    """What a worker offers, by model; workers with the same tuple of offers share one."""

    __slots__ = ("by_model", "cached_bytes", "has_disk", "offers", "standing")

    def __init__(self, offers: tuple[ModelOffer, ...]) -> None:
        self.offers = offers
        self.by_model = {offer.id: offer for offer in offers}
        self.has_disk = any(offer.tier == "disk" for offer in offers)
        self.cached_bytes = sum(offer.file_bytes for offer in offers if offer.tier == "page_cache")
        # Models that are wanted whether or not a job waits, and in how many copies.
        self.standing = {
            offer.id: max(int(offer.pinned), offer.replicas)
            for offer in offers
            if offer.is_usable and (offer.pinned or offer.replicas)
        }


class WorkerView:
    """One worker. `hold` and `evict` are what it shall keep or load, and what shall leave it."""

    __slots__ = (
        "desired", "evict", "failed", "free_bytes", "hold", "idle_bytes", "offers", "report", "runners", "shelf",
        "ttl_ms", "wished",
    )  # fmt: skip

    def __init__(self, report: WorkerReport, desired: WorkerPlacement, shelf: Shelf) -> None:
        self.report = report
        self.desired = desired
        self.shelf = shelf
        self.offers = shelf.by_model
        self.runners: dict[str, RunnerReport] = {runner.model: runner for runner in report.runners}
        # An eviction stays on record until the runner is gone, so that a lost hint costs nothing.
        self.evict = {model for model in desired.evict if model in self.runners}
        kept = {model for model in desired.hold if model in self.offers} - self.evict
        self.failed = tuple(sorted(model for model in kept if not self.offers[model].is_usable))
        self.hold = kept.difference(self.failed)
        # Residents that no placement knows of: it was lost, or the worker came with them.
        self.hold |= {
            model
            for model, runner in self.runners.items()
            if model not in self.evict
            and model in self.offers
            and self.offers[model].is_usable
            and runner.state in (RunnerState.STARTING, RunnerState.READY)
        }
        self.wished: WorkerPlacement | None = None  # what `placement` returned last
        self.free_bytes = report.budget_bytes - sum(map(self.bytes_of, self.hold.union(self.runners) - self.evict))
        self._let_go_what_no_longer_fits()
        self.idle_bytes = sum(runner.bytes for runner in report.runners if idle_since_ms(runner) is not None)
        self.ttl_ms = min(map(self._ends_ms, self.runners.values()), default=None) if self._has_ttl() else None

    @property
    def id(self) -> str:
        return self.report.id

    def bytes_of(self, model: str) -> int:
        """What it takes once it is there: a runner that is ready may have closed slots, and take less than its load."""
        runner, offer = self.runners.get(model), self.offers.get(model)
        if runner is not None and runner.closed_slots:
            return runner.bytes
        return max(runner.bytes if runner else 0, offer.bytes if offer else 0)

    def holds(self, model: str) -> bool:
        return model in self.hold or (model in self.runners and model not in self.evict)

    def held(self) -> set[str]:
        return self.hold.union(self.runners) - self.evict

    def free_slots(self, model: str) -> int:
        """Jobs that its ready runner could take now: in open slots, and in closed ones for which bytes are free."""
        runner = self.runners.get(model)
        if runner is None or runner.state is not RunnerState.READY:
            return 0
        return max(0, runner.slots_with(self.free_bytes) - runner.in_flight)

    def copy(self) -> WorkerView:
        twin = object.__new__(WorkerView)
        for name in WorkerView.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.hold, twin.evict, twin.wished = set(self.hold), set(self.evict), None
        return twin

    def placement(self) -> WorkerPlacement:
        """What it shall hold and evict; the very one that was observed if nothing differs."""
        if self.wished is None:
            hold, evict = tuple(sorted(self.hold)), tuple(sorted(self.evict))
            is_same = (hold, evict) == (self.desired.hold, self.desired.evict)
            fresh = WorkerPlacement(hold=hold, evict=evict, prefetch=self.desired.prefetch)
            self.wished = self.desired if is_same else fresh
        return self.wished

    def _let_go_what_no_longer_fits(self) -> None:
        """Slots may have opened since a load was decided on; if it has not begun, it is placed anew."""
        for model in sorted(self.hold.difference(self.runners), key=lambda each: (-self.bytes_of(each), each)):
            if self.free_bytes < 0:
                self.hold.remove(model)
                self.free_bytes += self.bytes_of(model)

    def _has_ttl(self) -> bool:
        return any(model in self.offers and self.offers[model].ttl_s is not None for model in self.runners)

    def _ends_ms(self, runner: RunnerReport) -> int:
        """When its TTL is over if nothing comes; never (a time beyond all clocks) without one."""
        offer, idle = self.offers.get(runner.model), idle_since_ms(runner)
        if offer is None or offer.ttl_s is None or offer.pinned or idle is None:
            return 2**62
        return idle + offer.ttl_s * 1000


def idle_since_ms(runner: RunnerReport) -> int | None:
    """None while it works, or is not ready."""
    if runner.state is not RunnerState.READY or runner.in_flight:
        return None
    return runner.idle_since_ms


@dataclass(slots=True)
class Memo:
    """What was derived from reports that have not changed since. Belongs to one controller; may be dropped any time."""

    views: dict[str, WorkerView] = field(default_factory=dict)
    holders: dict[str, frozenset[str]] = field(default_factory=dict)
    replicated: set[str] = field(default_factory=set)  # models with more than one holder
    shelves: dict[int, Shelf] = field(default_factory=dict)  # by identity of the tuple, which the shelf keeps alive

    def refresh(self, fleet: Fleet, placement: Placement) -> None:
        alive = [report for report in fleet.workers if not report.is_draining]
        for gone in self.views.keys() - {report.id for report in alive}:
            self._reindex(self.views.pop(gone), None)
        for report in alive:
            desired = placement.workers.get(report.id, ABSENT)
            known = self.views.get(report.id)
            if known is not None and known.report is report and known.desired is desired:
                continue
            view = WorkerView(report, desired, self._shelf(report.offers))
            self.views[report.id] = view
            self._reindex(known, view)
        if len(self.shelves) > 2 * len(alive) + 16:
            in_use = {id(view.shelf.offers): view.shelf for view in self.views.values()}
            self.shelves = in_use

    def _shelf(self, offers: tuple[ModelOffer, ...]) -> Shelf:
        shelf = self.shelves.get(id(offers))
        if shelf is None:
            shelf = self.shelves[id(offers)] = Shelf(offers)
        return shelf

    def _reindex(self, old: WorkerView | None, new: WorkerView | None) -> None:
        before, after = old.held() if old else set(), new.held() if new else set()
        name = new.id if new else old.id if old else ""
        for model in before - after:
            self.holders[model] -= {name}
            if not self.holders[model]:
                del self.holders[model]
        for model in after - before:
            self.holders[model] = self.holders.get(model, frozenset()) | {name}
        for model in before ^ after:
            (self.replicated.add if len(self.holders.get(model, ())) > 1 else self.replicated.discard)(model)


class FleetView:
    """All workers that take models. Changes are made on copies; what a memo knows stays as it was observed."""

    def __init__(self, fleet: Fleet, placement: Placement, memo: Memo) -> None:
        memo.refresh(fleet, placement)
        self.now_ms = fleet.now_ms
        self._views = dict(memo.views)
        self._holders = dict(memo.holders)
        self._replicated = set(memo.replicated)
        self._shelves = list({id(view.shelf): view.shelf for view in memo.views.values()}.values())
        self.changed: set[str] = set()
        self._by_free: list[str] | None = None
        self._by_promise: list[str] | None = None

    def __iter__(self) -> Iterator[WorkerView]:
        return iter(self._views.values())

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, worker: str) -> WorkerView:
        return self._views[worker]

    def by_free_bytes(self) -> Iterator[WorkerView]:
        """The most free bytes first, as the plan began."""
        if self._by_free is None:
            self._by_free = sorted(self._views, key=lambda name: (-self._views[name].free_bytes, name))
        return map(self._views.__getitem__, self._by_free)

    def by_promise(self) -> Iterator[WorkerView]:
        """The most free and idle bytes first, as the plan began."""
        if self._by_promise is None:

            def promise(name: str) -> tuple[int, str]:
                return (-self._views[name].free_bytes - self._views[name].idle_bytes, name)

            self._by_promise = sorted(self._views, key=promise)
        return map(self._views.__getitem__, self._by_promise)

    def holder_ids(self, model: str) -> frozenset[str]:
        return self._holders.get(model, frozenset())

    def holders(self, model: str) -> list[WorkerView]:
        """Workers that hold the model or are to load it, in order of their ids."""
        return [self._views[worker] for worker in sorted(self._holders.get(model, ()))]

    def copies(self, model: str) -> int:
        return len(self._holders.get(model, ()))

    def replicated(self) -> list[str]:
        """Models with more than one copy."""
        return sorted(model for model in self._replicated if self.copies(model) > 1)

    def standing(self) -> dict[str, int]:
        """Models that are wanted without a job, with the number of copies; the largest wish counts."""
        wanted: dict[str, int] = {}
        for shelf in self._shelves:
            for model, copies in shelf.standing.items():
                wanted[model] = max(copies, wanted.get(model, 0))
        return wanted

    def offer(self, model: str) -> ModelOffer | None:
        """Of a worker where the model works, if there is one."""
        found: ModelOffer | None = None
        for shelf in self._shelves:
            offer = shelf.by_model.get(model)
            if offer is not None and (found is None or (not found.is_usable and offer.is_usable)):
                found = offer
                if found.is_usable:
                    break
        return found

    def hold(self, worker: str, model: str) -> None:
        view = self._edit(worker)
        if not view.holds(model):
            view.free_bytes -= view.bytes_of(model)
        view.hold.add(model)
        self._holders[model] = self._holders.get(model, frozenset()) | {worker}
        if len(self._holders[model]) > 1:
            self._replicated.add(model)

    def evict(self, worker: str, model: str) -> None:
        view = self._edit(worker)
        if view.holds(model):
            view.free_bytes += view.bytes_of(model)
        view.hold.discard(model)
        if model in view.runners:
            view.evict.add(model)
        left = self._holders.get(model, frozenset()) - {worker}
        if left:
            self._holders[model] = left
        else:
            self._holders.pop(model, None)

    def placement(self, before: Placement) -> Placement:
        """With the next epoch if anything differs, else the very one that was observed."""
        workers: dict[str, WorkerPlacement] = {name: view.placement() for name, view in self._views.items()}
        if _same(workers, before.workers):
            return before
        return Placement(epoch=before.epoch + 1, workers=workers)

    def _edit(self, worker: str) -> WorkerView:
        if worker not in self.changed:
            self.changed.add(worker)
            self._views[worker] = self._views[worker].copy()
        return self._views[worker]


def _same(workers: Mapping[str, WorkerPlacement], before: Mapping[str, WorkerPlacement]) -> bool:
    return len(workers) == len(before) and all(before.get(name) is each for name, each in workers.items())


def by_id(views: Iterable[WorkerView]) -> list[WorkerView]:
    return sorted(views, key=lambda view: view.id)
