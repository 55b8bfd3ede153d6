"""Fewer slots, then a shorter context, and what is never touched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.fleet import ModelKind
from tests.support.scripted_pool import make_model
from workers.fitting import fit, fit_models
from workers.model_files import ModelFile

WEIGHTS = 1000


def need_of(model: ModelFile) -> int:
    return WEIGHTS + model.slots * model.context_length


@pytest.fixture
def model() -> ModelFile:
    return replace(make_model("m", mib=1), context_length=4096, slots=8)


def size(model: ModelFile) -> tuple[int, int]:
    return model.context_length, model.slots


def test_what_fits_stays_as_it_is(model):
    assert fit(model, need_of(model), need_of) is model


def test_slots_go_first(model):
    fitted = fit(model, WEIGHTS + 3 * 4096 + 4095, need_of)
    assert size(fitted) == (4096, 3)
    assert (fitted.reduced or "").startswith("3 of 8 slots, to fit into ")
    assert fitted.full_size == (4096, 8)


def test_then_the_context_in_whole_steps(model):
    fitted = fit(model, WEIGHTS + 1000, need_of)
    assert size(fitted) == (768, 1)
    assert "1 of 8 slots and 768 of 4096 tokens of context" in (fitted.reduced or "")


def test_below_the_floor_nothing_is_changed(model):
    assert fit(model, WEIGHTS + 511, need_of) is model
    assert size(fit(model, WEIGHTS + 512, need_of)) == (512, 1)


def test_what_models_yaml_says_is_kept(model):
    assert size(fit(replace(model, has_fixed_slots=True), WEIGHTS + 8 * 1024, need_of)) == (1024, 8)
    assert size(fit(replace(model, has_fixed_context=True), WEIGHTS + 4096, need_of)) == (4096, 1)
    fixed = replace(model, has_fixed_slots=True, has_fixed_context=True)
    assert fit(fixed, WEIGHTS + 4096, need_of) is fixed


def test_slots_of_an_embedding_model_cost_nothing_and_stay(model):
    fitted = fit(replace(model, kind=ModelKind.EMBED), WEIGHTS + 1024, lambda each: WEIGHTS + each.context_length)
    assert size(fitted) == (1024, 8)


def test_pinned_models_take_their_room_first(model):
    pinned = replace(model, id="z", is_pinned=True)
    fitted = fit_models([model, pinned], need_of(pinned) + WEIGHTS + 4096, need_of, {})
    assert size(fitted["z"]) == (4096, 8)
    assert size(fitted["m"]) == (4096, 1)


@pytest.mark.parametrize(
    ("count", "budget", "slots"),
    [
        (3, 3 * (WEIGHTS + 8 * 4096), 8),  # all of them side by side
        (3, 3 * (WEIGHTS + 8 * 4096) - 1, 7),
        (3, 3 * (WEIGHTS + 2 * 4096), 2),
        (9, 3 * (WEIGHTS + 2 * 4096), 2),
        (9, 3 * (WEIGHTS + 4096) - 1, 1),  # not with a third of it: with half of it
        (9, 2 * (WEIGHTS + 4096) - 1, 2),  # not even that: what fits alone
        (2, 2 * (WEIGHTS + 3 * 4096), 3),
    ],
)
def test_models_that_do_not_fit_side_by_side_leave_room_for_others(model, count: int, budget: int, slots: int):
    models = [replace(model, id=f"m{number}") for number in range(count)]
    fitted = fit_models(models, budget, need_of, {})
    assert {size(each) for each in fitted.values()} == {(4096, slots)}


def test_slots_of_models_yaml_leave_no_room(model):
    fixed = replace(model, id="fixed", has_fixed_slots=True)
    fitted = fit_models([fixed, model], need_of(fixed), need_of, {})
    assert (size(fitted["fixed"]), size(fitted["m"])) == ((4096, 8), (4096, 3))


def test_a_warm_model_keeps_its_size_until_its_settings_change(model):
    warm = fit(model, WEIGHTS + 2 * 4096, need_of)
    again = fit_models([replace(model, aliases=("a",))], need_of(model), need_of, {"m": warm})["m"]
    assert (size(again), again.aliases) == ((4096, 2), ("a",))
    changed = fit_models([replace(model, slots=6)], need_of(model), need_of, {"m": warm})["m"]
    assert size(changed) == (4096, 6)
    other_file = fit_models([replace(model, identity="new")], need_of(model), need_of, {"m": warm})["m"]
    assert size(other_file) == (4096, 8)
