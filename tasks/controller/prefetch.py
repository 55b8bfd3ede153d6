"""Rule 8 of `plan`: models that are likely to come next and whose bytes lie on disk, named for the page cache. Pure.

Reading a file ahead costs nothing that anybody waits for, while loading ahead into device memory costs evictions and
does not pay (it takes more loads for no better waiting). A hint goes to one worker per host, the page cache is shared.
Only what has room beside all that lies there is named: reading one more pushes out another that is as likely, which
is then named next, and the disk never rests. The kernel keeps what was loaded lately; no forecast was better than that.
"""

from __future__ import annotations

import heapq

import msgspec

from tasks.controller.fleet_view import WorkerView, by_id
from tasks.controller.scene import Scene
from tasks.fleet import Placement, WorkerPlacement

PERIOD_MS = 10_000  # hints change at most so often, and with any other change


def prefetch_hints(scene: Scene, desired: Placement, before: Placement) -> Placement:
    """The same placement with fresh hints, if they are due and differ."""
    if desired is before and scene.now_ms - scene.state.prefetch_ms < PERIOD_MS:
        return desired
    hints = _hints(scene)
    if desired is before and all(hints.get(name, ()) == each.prefetch for name, each in desired.workers.items()):
        return desired
    scene.set_prefetch_time()
    workers: dict[str, WorkerPlacement] = {
        name: each
        if each.prefetch == hints.get(name, ())
        else msgspec.structs.replace(each, prefetch=hints.get(name, ()))
        for name, each in desired.workers.items()
    }
    return Placement(epoch=before.epoch + 1, workers=workers)


def _hints(scene: Scene) -> dict[str, tuple[str, ...]]:
    hosts: dict[str, list[WorkerView]] = {}
    for view in by_id(scene.fleet):
        if view.shelf.has_disk:
            hosts.setdefault(view.report.host, []).append(view)
    if not hosts:
        return {}
    rates = {model: scene.state.rate_per_s(model, scene.now_ms, scene.rules) for model in scene.state.rates}
    likely = heapq.nsmallest(64, ((-rate, model) for model, rate in rates.items() if not scene.fleet.copies(model)))
    names = [model for _, model in likely]
    return {views[0].id: _of_host(views, names, scene.rules.max_prefetches) for views in hosts.values()}


def _of_host(views: list[WorkerView], likely: list[str], limit: int) -> tuple[str, ...]:
    """The likeliest ones on disk for which the page cache has room beside all that is there."""
    first = views[0]
    shelf = first.shelf
    room_bytes = first.report.cache_bytes - shelf.cached_bytes
    hints: list[str] = []
    for model in likely:
        offer = shelf.by_model.get(model)
        if len(hints) == limit:
            break
        if offer is not None and offer.tier == "disk" and offer.file_bytes <= room_bytes:
            room_bytes -= offer.file_bytes
            hints.append(model)
    return tuple(hints)
