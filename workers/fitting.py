"""Make a model fit that would not with its default context and slots: fewer slots first, then a shorter context. Pure.

What models.yaml says of a model is never changed, and what does not fit even so stays as it was: it is refused with the
arithmetic.

    1  the most slots with which the whole context fits
    2  with one slot, the longest context that fits, in steps of CONTEXT_STEP and not below CONTEXT_FLOOR
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

NeedOf = Callable[[ModelFile], int]


def fit_models(
    models: Iterable[ModelFile], budget_bytes: int, need_of: NeedOf, warm: Mapping[str, ModelFile]
) -> dict[str, ModelFile]:
    """By id. Pinned models come first; what they need is not there for the others.

    What is warm keeps the size that it was loaded with, unless its file or its settings have changed: a better estimate
    is no reason to load it again."""
    fitted: dict[str, ModelFile] = {}
    pinned_bytes = 0
    for model in sorted(models, key=lambda each: (not each.is_pinned, each.id)):
        as_warm = _sized_like(model, warm.get(model.id))
        fitted[model.id] = as_warm or fit(model, budget_bytes - pinned_bytes, need_of)
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
            return _explained(candidates[place], model, room_bytes)
    return model


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


def _explained(smaller: ModelFile, model: ModelFile, room_bytes: int) -> ModelFile:
    changes = []
    if smaller.slots != model.slots:
        changes.append(f"{smaller.slots} of {model.slots} slots")
    if smaller.context_length != model.context_length:
        changes.append(f"{smaller.context_length} of {model.context_length} tokens of context")
    return replace(
        smaller,
        reduced=f"{' and '.join(changes)}, to fit into {format_bytes(room_bytes)}",
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
