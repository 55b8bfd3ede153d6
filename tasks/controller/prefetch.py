"""Rule 8 of `plan`: models that are likely to come next and whose bytes lie on disk, named for the page cache. Pure.

Reading a file ahead costs nothing that anybody waits for, while loading ahead into device memory costs evictions and
does not pay (it takes more loads for no better waiting). A hint goes to one worker per host, the page cache is shared.
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
    likely = [m for _, m in heapq.nsmallest(64, ((-rate, model) for model, rate in rates.items()))]
    return {views[0].id: _of_host(views, likely, scene.rules.max_prefetches) for views in hosts.values()}


def _of_host(views: list[WorkerView], likely: list[str], limit: int) -> tuple[str, ...]:
    first = views[0]
    on_disk = [model for model in likely if model in first.offers and first.offers[model].tier == "disk"]
    return tuple(model for model in on_disk if not any(view.holds(model) for view in views))[:limit]
