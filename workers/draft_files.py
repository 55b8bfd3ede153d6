"""Draft models: which file of the folder guesses for which, by `draft:` in models.yaml. Pure.

A draft changes how quick a model is and never what it says. So a model whose draft is missing serves without it, and
one whose draft speaks in other tokens is refused: that never gets well by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import InvalidSetting
from tasks.fleet import ModelKind
from workers.engine.base import MAX_VOCABULARY_DIFFERENCE
from workers.estimate import ModelShape

if TYPE_CHECKING:
    from workers.model_files import ModelFile

_BETTER = "name a small model that generates text"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFile:
    """The model that guesses."""

    id: str
    path: Path
    shape: ModelShape
    trained_context_length: int  # 0: not known

    def context_length_for(self, context_length: int) -> int:
        """Tokens per sequence beside a model that has so many; behind them there are no guesses."""
        return min(context_length, self.trained_context_length or context_length)


def add_drafts(
    models: dict[str, ModelFile], wishes: Mapping[str, str | None], adapters: Collection[str] = ()
) -> dict[str, str]:
    """Give every model its draft, by id; its adapters share it. Returns the reasons of those that can't be served with
    theirs. Raises InvalidSetting for a draft that can never be one; `adapters` are none."""
    reasons = {}
    plain = dict(models)
    for model in plain.values():
        wish = wishes.get(model.id)
        if wish is None:
            continue
        if wish.lower() in adapters:
            raise _refusal(model, f"'{wish}' is a LoRA adapter and can't draft; {_BETTER}")
        draft = plain.get(wish.lower())
        _check(model, draft)
        if draft is None:
            problem = f"the folder has no usable model '{wish.lower()[:64]}'"
            models[model.id] = replace(
                model, draft_problem=problem, description=f"{model.description}, without its draft ({problem})"
            )
        elif abs(draft.shape.vocabulary_size - model.shape.vocabulary_size) > MAX_VOCABULARY_DIFFERENCE:
            reasons[model.id] = (
                f"its draft '{draft.id}' has {draft.shape.vocabulary_size} tokens in its vocabulary, and it has "
                f"{model.shape.vocabulary_size}; name a small model of the same family as `draft`, or none"
            )
        else:
            models[model.id] = _with_draft(model, draft)
    return reasons


def _with_draft(model: ModelFile, draft: ModelFile) -> ModelFile:
    return replace(
        model,
        draft=DraftFile(
            id=draft.id,
            path=draft.path,
            shape=draft.shape,
            trained_context_length=draft.trained_context_length,
        ),
        identity=f"{model.identity};draft {draft.identity}",
        description=f"{model.description} + draft {draft.id}",
    )


def _check(model: ModelFile, draft: ModelFile | None) -> None:
    problem = None
    if model.kind is not ModelKind.GENERATE:
        problem = f"only a model that generates text may have one, and this one is of kind {model.kind}; remove it"
    elif draft is not None and draft.path == model.path:
        problem = "a model can't draft for itself; name a smaller one"
    elif draft is not None and draft.kind is not ModelKind.GENERATE:
        problem = f"'{draft.id}' is of kind {draft.kind} and can't draft; {_BETTER}"
    if problem is not None:
        raise _refusal(model, problem)


def _refusal(model: ModelFile, problem: str) -> InvalidSetting:
    return InvalidSetting("models.yaml", f"model '{model.id}': draft: {problem}")
