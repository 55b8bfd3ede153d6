"""Make a model fit that would not with its default context and slots: fewer slots first, then a shorter context. Pure.

What models.yaml says of a model is never changed, and what does not fit even so stays as it was: it is refused with the
arithmetic.

    1  the most slots with which the whole context fits
    2  with one slot, the longest context that fits, in steps of CONTEXT_STEP and not below CONTEXT_FLOOR

A load takes the memory of all slots for a moment, for which others have to leave. So where the models don't fit side by
side, each gets the most slots with which a load takes a third of the memory, or half of it where one slot takes more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from tasks.fleet import ModelKind
from workers.byte_text import format_bytes
from workers.model_files import ModelFile

CONTEXT_FLOOR = 512  # tokens; a chat with less is none
CONTEXT_STEP = 256  # llama.cpp rounds the cache up to this
SHARES = (3, 2)  # parts of the memory that a load should get along with one of

NeedOf = Callable[[ModelFile], int]


def fit_models(
    models: Iterable[ModelFile],
    budget_bytes: int,
    need_of: NeedOf,
    warm: Mapping[str, ModelFile],
    *,
    rough_need_of: NeedOf | None = None,
) -> dict[str, ModelFile]:
    """By id. Pinned models come first; what they need is not there for the others. `rough_need_of` asks for no dry run:
    for sizes of which most are not taken.

    What is warm keeps the size that it was loaded with, unless its file or its settings have changed: a better estimate
    is no reason to load it again."""
    known = sorted(models, key=lambda each: (not each.is_pinned, each.id))
    fitted: dict[str, ModelFile] = {}
    pinned_bytes = 0
    must_share = sum(map(need_of, known)) > budget_bytes
    num_sharing = sum(not each.is_pinned for each in known) if must_share else 1
    rough_need_of = rough_need_of or need_of
    for model in known:
        as_warm = _sized_like(model, warm.get(model.id))
        room_bytes = budget_bytes - pinned_bytes
        modest = None if model.is_pinned else leave_room(model, room_bytes, num_sharing, need_of, rough_need_of)
        fitted[model.id] = as_warm or modest or fit(model, room_bytes, need_of)
        if model.is_pinned:
            pinned_bytes += need_of(fitted[model.id])
    return fitted


def fit(model: ModelFile, room_bytes: int, need_of: NeedOf) -> ModelFile:
    """The model, reduced if that makes it fit into so many bytes, with what was done in `reduced`."""
    if need_of(model) <= room_bytes:
        return model
    for candidates in (_fewer_slots(model), _shorter_contexts(model)):
        # Sorted from the largest, so that "fits" is false up to a place and true from there on.
        place = bisect_right(candidates, 0, key=lambda each: int(need_of(each) <= room_bytes))
        if place < len(candidates):
            return _explained(candidates[place], model, f"to fit into {format_bytes(room_bytes)}")
    return model


def leave_room(
    model: ModelFile, room_bytes: int, num_sharing: int, need_of: NeedOf, rough_need_of: NeedOf
) -> ModelFile | None:
    """The model with so many slots that others have room beside its load; None when one slot alone takes too much for
    that, or nobody shares the room."""
    for parts in (each for each in SHARES if each <= num_sharing):
        if need_of(model) <= room_bytes // parts:
            return model
        for smaller in _fewer_slots(model):
            if rough_need_of(smaller) <= room_bytes // parts:
                return _explained(smaller, model, "to leave memory for others")
    return None


def _fewer_slots(model: ModelFile) -> list[ModelFile]:
    if model.has_fixed_slots or model.kind is not ModelKind.GENERATE:
        return []
    return [replace(model, slots=slots) for slots in range(model.slots - 1, 0, -1)]


def _shorter_contexts(model: ModelFile) -> list[ModelFile]:
    if model.has_fixed_context:
        return []
    lengths = range((model.context_length - 1) // CONTEXT_STEP * CONTEXT_STEP, CONTEXT_FLOOR - 1, -CONTEXT_STEP)
    slots = model.slots if model.has_fixed_slots or model.kind is not ModelKind.GENERATE else 1
    return [replace(model, slots=slots, context_length=length) for length in lengths]


def _explained(smaller: ModelFile, model: ModelFile, why: str) -> ModelFile:
    changes = []
    if smaller.slots != model.slots:
        changes.append(f"{smaller.slots} of {model.slots} slots")
    if smaller.context_length != model.context_length:
        changes.append(f"{smaller.context_length} of {model.context_length} tokens of context")
    return replace(
        smaller,
        reduced=f"{' and '.join(changes)}, {why}",
        full_size=(model.context_length, model.slots),
    )


def _sized_like(model: ModelFile, warm: ModelFile | None) -> ModelFile | None:
    size = (model.context_length, model.slots)
    if warm is None or size != (warm.full_size or (warm.context_length, warm.slots)):
        return None
    sized = replace(
        model,
        context_length=warm.context_length,
        slots=warm.slots,
        reduced=warm.reduced,
        full_size=warm.full_size,
    )
    return sized if sized.loads_like(warm) else None
