"""What a load costs, what keeping a model is worth, and what a displacement takes from others. Pure arithmetic.

Keep-value (greedy-dual, FaasCache): the expected waiting that keeping a model saves,
V = (1 − e^(−λH)) · L · (1 + λL/2): how likely it is to be asked for within the horizon H, times the wait of the first
request and of those that arrive during the load. Models leave in the order of V per byte. Start time as in
ServerlessLLM: queue on the load channel + initialisation + bytes / bandwidth of the tier that they come from.
"""

from __future__ import annotations

import math

from tasks.controller.fleet_view import FleetView, WorkerView
from tasks.controller.policy_state import PolicyState
from tasks.controller.rules import Rules
from tasks.fleet import ModelOffer, RunnerState


def load_ms(view: WorkerView, offer: ModelOffer) -> int:
    """Of this model alone: by the measured bandwidth of its tier, else as the worker measured or estimated it."""
    bandwidth = view.report.bandwidths.get(offer.tier) if offer.tier is not None else None
    if not bandwidth:
        return offer.load_ms
    return view.report.init_ms + offer.file_bytes * 1000 // bandwidth


def channel_ms(view: WorkerView) -> int:
    """Loads that are under way or decided on this worker, still to be done before another one."""
    total = 0
    for model in view.hold:
        runner = view.runners.get(model)
        if runner is not None and runner.state is not RunnerState.STARTING:
            continue
        offer = view.offers[model]
        done = runner.progress if runner is not None else 0.0
        total += round(load_ms(view, offer) * (1 - done))
    return total


def keep_value_s(rate_per_s: float, cost_ms: int, rules: Rules) -> float:
    """V in seconds of waiting."""
    load_s = cost_ms / 1000
    chance = 1 - math.exp(-rate_per_s * rules.keep_horizon_ms / 1000)
    return chance * load_s * (1 + rate_per_s * load_s / 2)


def value_of(view: WorkerView, model: str, fleet: FleetView, state: PolicyState, rules: Rules) -> float:
    """V of a resident: what its leaving is expected to cost, in seconds; little when another replica stays."""
    offer = view.offers.get(model)
    if offer is None:
        return 0.0
    copies = fleet.copies(model)
    rate = state.rate_per_s(model, fleet.now_ms, rules) / max(1, copies)
    value = keep_value_s(rate, load_ms(view, offer), rules)
    return value * rules.replica_share if copies > 1 else value
