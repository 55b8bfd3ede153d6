"""Where an absent model goes: rule 5 of `plan`, for one candidate. Pure.

5a  a worker with room
5b  the worker where idle victims cost least
5c  with slack below the gate: busy victims that have more slack than the candidate by a margin and were ready for
    the residency floor, on a worker whose bucket of load time is not spent
5d  overdue: any victims that had their frame. If there are none yet, the candidate claims the worker where there
    will be first; nobody behind it gets room there. This is what bounds waiting (see `plan`)
5e  else it waits
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from tasks.controller.decisions import Action, Code, Term
from tasks.controller.fleet_view import WorkerView, by_id
from tasks.controller.scene import Scene
from tasks.controller.value import channel_ms, load_ms
from tasks.controller.victims import Resident, pick, slack_ms
from tasks.fleet import ModelOffer, RunnerState, may_run_on


@dataclass(frozen=True, slots=True)
class Site:
    """A worker where the candidate could be loaded, with what that costs and who would have to leave."""

    view: WorkerView
    offer: ModelOffer
    load_ms: int
    start_ms: int  # loads before it, drain of victims, and its own load
    victims: list[Resident]
    lost_s: float = 0.0

    @property
    def cost(self) -> tuple[float, int, int, str]:
        running = sum(runner.in_flight for runner in self.view.runners.values())
        return (self.lost_s + self.start_ms / 1000, running, -self.view.free_bytes, self.view.id)


def place(model: str, scene: Scene, *, may_displace_busy: bool = True) -> bool:
    """Decide for a candidate that nobody holds, or that needs one more copy; True when it is to be loaded."""
    views = open_workers(model, scene)
    if not views or _pauses(model, scene):
        if not views and not scene.fleet.copies(model):
            say_why_nowhere(model, scene)
        return False
    free = [view for view in views if view.id not in scene.claimed]
    sites = [_site(view, model, scene, []) for view in free if view.free_bytes >= view.offers[model].bytes]
    if sites:
        return _load(min(sites, key=lambda each: each.cost), Code.ROOM, model, scene)
    if site := cheapest(free, model, scene, lambda _view, each: not each.is_busy):
        return _load(site, Code.IDLE_VICTIMS, model, scene)
    patience = scene.patience_ms(model)
    if patience is None or not may_displace_busy:
        return _wait(model, scene, views, free, patience, Code.BUSY_WITHIN_SLACK)
    return _displace(model, scene, views, free, patience)


def open_workers(model: str, scene: Scene) -> list[WorkerView]:
    """Workers that could take the model once others left; of a large fleet those with the most free bytes where it fits
    right away, or else those with the most free and idle bytes.

    A runner that leaves is never revived: where there is one, the model comes back only after the process is gone."""
    width = scene.rules.search_width
    if len(scene.fleet) > width:
        with_room = _first(scene.fleet.by_free_bytes(), width, lambda view: _has_room(view, model))
        if with_room:
            return by_id(with_room)
    return by_id(_first(scene.fleet.by_promise(), width, lambda view: _can_take(view, model, scene)))


def _first(views: Iterable[WorkerView], count: int, is_fit: Callable[[WorkerView], bool]) -> list[WorkerView]:
    return list(islice(filter(is_fit, views), count))


def _has_room(view: WorkerView, model: str) -> bool:
    offer = view.offers.get(model)
    return offer is not None and offer.bytes <= view.free_bytes and _is_open(view, offer)


def _can_take(view: WorkerView, model: str, scene: Scene) -> bool:
    offer = view.offers.get(model)
    if offer is None or not _is_open(view, offer):
        return False
    return offer.bytes <= view.free_bytes or offer.bytes <= scene.reachable_bytes(view)


def _is_open(view: WorkerView, offer: ModelOffer) -> bool:
    is_there = offer.id in view.runners or offer.id in view.hold
    return not is_there and offer.is_usable and may_run_on(offer.devices, view.report.device)


def say_why_nowhere(model: str, scene: Scene) -> None:
    """Rule 7, with the first obstacle that all workers share."""
    offering = by_id(view for view in scene.fleet if model in view.offers)
    if not len(scene.fleet):
        return scene.say(Action.WAIT, Code.NO_WORKER, model, "no worker is alive")
    if not offering and model in scene.demand.away:
        text = f"no live worker offers '{model}'; the one that did so lately may come back"
        return scene.say(Action.WAIT, Code.NO_WORKER, model, text)
    if not offering:
        return scene.say(Action.REFUSE, Code.NOT_OFFERED, model, f"No live worker offers '{model}' any more.")
    allowed = [view for view in offering if may_run_on(view.offers[model].devices, view.report.device)]
    if not allowed:
        devices = ", ".join(sorted({view.report.device for view in offering}))
        wanted = ", ".join(offering[0].offers[model].devices)
        text = f"'{model}' may run on {wanted} only; the workers that offer it have {devices}."
        terms: dict[str, Term] = {"wanted": wanted, "devices": devices}
        return scene.say(Action.REFUSE, Code.WRONG_DEVICE, model, text, terms=terms)
    usable = [view for view in allowed if view.offers[model].is_usable]
    if not usable:
        reason = allowed[0].offers[model].failure or "unknown"
        text = f"'{model}' can't be loaded: {reason}"
        return scene.say(Action.REFUSE, Code.LOAD_FAILED, model, text, worker=allowed[0].id)
    if any(model in view.runners for view in usable):
        text = "its runner is on the way out; then it is loaded again"
        return scene.say(Action.WAIT, Code.ROOM_IS_BEING_MADE, model, text)
    return _say_does_not_fit(model, usable, scene)


def cheapest(
    views: list[WorkerView], model: str, scene: Scene, may_go: Callable[[WorkerView, Resident], bool]
) -> Site | None:
    """The site where a permitted set of victims costs least."""
    best: Site | None = None
    for view in views:
        ranked = scene.residents(view)
        shortfall = view.offers[model].bytes - view.free_bytes

        def permitted(each: Resident, view: WorkerView = view) -> bool:
            return may_go(view, each)

        victims = pick(ranked, shortfall, permitted)
        if victims is not None:
            site = _site(view, model, scene, victims)
            if best is None or site.cost < best.cost:
                best = site
    return best


def _displace(model: str, scene: Scene, views: list[WorkerView], free: list[WorkerView], patience: int) -> bool:
    """5c to 5e."""
    rules, now_ms = scene.rules, scene.now_ms

    def slack(view: WorkerView) -> int:
        return patience - load_ms(view, view.offers[model])

    def is_settled(view: WorkerView, each: Resident) -> bool:
        floor = rules.residency_floor_ms(load_ms(view, view.offers[model]))
        return not each.is_busy or now_ms - each.ready_ms >= floor

    def has_slack(view: WorkerView, each: Resident) -> bool:
        own = load_ms(view, view.offers[model])
        margin = round(rules.slack_margin_per_load * own) + rules.slack_margin_ms
        return slack_ms(each.model, scene.queues, scene.state, scene.fleet, rules) >= slack(view) + margin

    def may_go(view: WorkerView, each: Resident) -> bool:
        return not each.is_busy or (is_settled(view, each) and has_slack(view, each))

    urgent = [view for view in free if slack(view) < rules.slack_gate_ms]
    affordable = [view for view in urgent if _can_pay(view, model, scene)]
    if site := cheapest(affordable, model, scene, may_go):
        scene.spend(site.view.id, site.load_ms)
        return _load(site, Code.BUSY_VICTIMS, model, scene)
    if patience <= 0:
        if site := cheapest(
            free, model, scene, lambda view, each: not each.is_busy or _had_frame(view, model, each, scene)
        ):
            return _load(site, Code.OVERDUE, model, scene)
        _claim(model, scene, free)
        return _wait(model, scene, views, free, patience, Code.RESIDENCY)
    if not urgent:
        return _wait(model, scene, views, free, patience, Code.BUSY_WITHIN_SLACK)
    is_poor = cheapest(urgent, model, scene, may_go) is not None
    return _wait(model, scene, views, free, patience, Code.BUCKET_EMPTY if is_poor else Code.RESIDENCY)


def _had_frame(view: WorkerView, model: str, each: Resident, scene: Scene) -> bool:
    return scene.now_ms - each.ready_ms >= scene.rules.frame_ms(load_ms(view, view.offers[model]))


def _can_pay(view: WorkerView, model: str, scene: Scene) -> bool:
    cost = load_ms(view, view.offers[model])
    return scene.state.bucket_ms(view.id, scene.now_ms, scene.rules) >= min(cost, scene.rules.bucket_cap_ms)


def _claim(model: str, scene: Scene, free: list[WorkerView]) -> None:
    """5d: the worker where the victims' frames end first."""
    options = []
    for view in free:
        ends_ms = _room_ms(view, model, scene)
        if ends_ms is not None:
            options.append((ends_ms, view.id))
    if options:
        scene.claimed[min(options)[1]] = model


def _room_ms(view: WorkerView, model: str, scene: Scene) -> int | None:
    """When enough residents will have had their frame; those that still start are ready in a load from now."""
    frame = scene.rules.frame_ms(load_ms(view, view.offers[model]))
    shortfall = view.offers[model].bytes - view.free_bytes
    ends = [(each.ready_ms + frame if each.is_busy else scene.now_ms, each.bytes) for each in scene.residents(view)]
    for starting in view.hold:
        runner = view.runners.get(starting)
        if runner is None or runner.state is RunnerState.STARTING:
            ready_ms = scene.now_ms + load_ms(view, view.offers[starting])
            ends.append((ready_ms + frame, view.bytes_of(starting)))
    for ends_ms, size in sorted(ends):
        shortfall -= size
        if shortfall <= 0:
            return ends_ms
    return None


def _site(view: WorkerView, model: str, scene: Scene, victims: list[Resident]) -> Site:
    own = load_ms(view, view.offers[model])
    drain = scene.rules.drain_ms if any(each.is_busy for each in victims) else 0
    lost = sum(each.value_s for each in victims)
    return Site(view, view.offers[model], own, channel_ms(view) + drain + own, victims, lost)


def _load(site: Site, code: Code, model: str, scene: Scene) -> bool:
    view, need = site.view, site.offer.bytes
    free_bytes = view.free_bytes
    names = ", ".join(each.model for each in site.victims)
    text = f"'{model}' needs {mib(need)}; on {view.id} {mib(free_bytes)} are free"
    if site.victims:
        kind = {Code.IDLE_VICTIMS: "idle", Code.REPLICA: "idle"}.get(code, "busy")
        text += f", and {names} ({kind}) makes place, worth {site.lost_s:.2f} s of waiting"
    terms: dict[str, Term] = {
        "need_bytes": need,
        "free_bytes": free_bytes,
        "load_ms": site.load_ms,
        "start_ms": site.start_ms,
        "lost_s": round(site.lost_s, 3),
    }
    patience = scene.patience_ms(model)
    if patience is not None:
        terms["slack_ms"] = patience - site.load_ms
        terms["depth"] = scene.queues[model].depth
    if site.victims:
        terms["victims"] = names
    if code is Code.BUSY_VICTIMS:
        terms["bucket_ms"] = scene.state.bucket_ms(view.id, scene.now_ms, scene.rules)
    scene.say(Action.LOAD, code, model, text, worker=view.id, terms=terms)
    for victim in site.victims:
        why = f"makes place for '{model}'; keeping it was worth {victim.value_s:.2f} s of waiting"
        marks: dict[str, Term] = {
            "value_s": round(victim.value_s, 3),
            "bytes": victim.bytes,
            "is_busy": int(victim.is_busy),
            "ready_for_ms": scene.now_ms - victim.ready_ms,
            "candidate": model,
        }
        scene.say(Action.EVICT, Code.MAKES_ROOM, victim.model, why, worker=view.id, terms=marks)
    scene.load(view, model, site.victims)
    return True


def load_replica(site: Site, model: str, scene: Scene) -> None:
    _load(site, Code.REPLICA, model, scene)


def _wait(
    model: str, scene: Scene, views: list[WorkerView], free: list[WorkerView], patience: int | None, code: Code
) -> bool:
    rules = scene.rules
    if not free:
        claims = ", ".join(f"{view.id} by '{scene.claimed[view.id]}'" for view in by_id(views)[:4])
        text = f"every worker that could take it is claimed by a model that waits for longer: {claims}"
        scene.say(Action.WAIT, Code.CLAIMED, model, text, terms={"workers": len(views)})
        return False
    nearest = min(views, key=lambda view: (load_ms(view, view.offers[model]), view.id))
    own = load_ms(nearest, nearest.offers[model])
    terms: dict[str, Term] = {
        "need_bytes": nearest.offers[model].bytes,
        "free_bytes": max(view.free_bytes for view in views),
        "load_ms": own,
        "gate_ms": rules.slack_gate_ms,
        "floor_ms": rules.residency_floor_ms(own),
        "frame_ms": rules.frame_ms(own),
        "bucket_ms": max(scene.state.bucket_ms(view.id, scene.now_ms, rules) for view in views),
    }
    if patience is not None:
        terms["slack_ms"] = patience - own
    text = {
        Code.BUSY_WITHIN_SLACK: "every resident model is busy, and there is slack left",
        Code.BUCKET_EMPTY: "busy models could make place, but the load time that may be spent on that is used up",
        Code.RESIDENCY: "every resident model is busy and was loaded too recently, or is as urgent",
    }[code]
    scene.say(Action.WAIT, code, model, text, terms=terms)
    return False


def _pauses(model: str, scene: Scene) -> bool:
    known = scene.state.failures.get(model)
    if known is None or scene.now_ms >= known.until_ms:
        return False
    left_ms = known.until_ms - scene.now_ms
    terms: dict[str, Term] = {"failures": known.count, "left_ms": left_ms}
    if known.count >= scene.rules.max_failures:
        last = f"the last one on {known.workers[-1]}: {known.reason}"
        text = f"'{model}' can't be loaded: {known.count} loads in a row failed, {last}"
        scene.say(Action.REFUSE, Code.LOAD_FAILED, model, text, terms=terms)
    else:
        text = f"{known.count} loads failed, the last one with: {known.reason}; next try in {left_ms / 1000:.1f} s"
        scene.say(Action.WAIT, Code.PAUSE_AFTER_FAILURE, model, text, terms=terms)
    return True


def _say_does_not_fit(model: str, views: list[WorkerView], scene: Scene) -> None:
    sizes = "; ".join(
        f"{view.id} needs {mib(view.offers[model].bytes)} and can free at most "
        f"{mib(scene.reachable_bytes(view))} of its budget of {mib(view.report.budget_bytes)}"
        for view in views[:4]
    )
    only_pinned = any(view.offers[model].bytes <= view.report.budget_bytes for view in views)
    what = "lower its context_length or slots" if not only_pinned else "unpin a model"
    text = f"'{model}' fits on no worker: {sizes}. Raise KEEPWARM_MEMORY_BUDGET, or {what}."
    best = max(views, key=lambda view: (scene.reachable_bytes(view), view.id))
    code = Code.PINNED_IN_THE_WAY if only_pinned else Code.DOES_NOT_FIT
    terms: dict[str, Term] = {
        "need_bytes": best.offers[model].bytes,
        "reachable_bytes": scene.reachable_bytes(best),
        "budget_bytes": best.report.budget_bytes,
    }
    scene.say(Action.REFUSE, code, model, text, terms=terms)


def mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
