"""Whom the names in a folder of models mean: ids and aliases of models, and those of fallbacks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from tasks.errors import InvalidSetting
from tasks.fleet import ModelKind
from workers.model_files import AdapterFile, ModelFile, UnusableFile
from workers.models_yaml import MODELS_YAML

Named = TypeVar("Named", ModelFile, AdapterFile, UnusableFile)


class Names:
    """Ids and aliases share one namespace, in any case; a broken file disturbs nobody's."""

    def __init__(
        self,
        models: Mapping[str, ModelFile],  # each with its adapters
        adapters: Mapping[str, AdapterFile],
        unusable: Mapping[str, UnusableFile],
    ) -> None:
        """Raises InvalidSetting when two models want the same name, or a fallback can't answer."""
        self._owners = _owners([*models.values(), *adapters.values()], unusable.values())
        self._check_fallbacks(models, adapters, unusable)

    def settle(self, model: ModelFile) -> ModelFile:
        """Its fallback, and those of its adapters, by id."""
        adapters = tuple(self._with_id_of_fallback(each) for each in model.adapters)
        return replace(self._with_id_of_fallback(model), adapters=adapters)

    def settle_unusable(self, file: UnusableFile) -> UnusableFile:
        """Its fallback by id, and only the aliases that nothing usable has."""
        aliases = tuple(alias for alias in file.aliases if self._owners[alias.lower()] == file.id)
        return self._with_id_of_fallback(replace(file, aliases=aliases))

    def _id_of(self, name: str) -> str:
        """Of a model named by id or alias, in any case; one that this folder has not may be another worker's."""
        return self._owners.get(name.lower(), name.lower())

    def _with_id_of_fallback(self, model: Named) -> Named:
        return model if model.fallback is None else replace(model, fallback=self._id_of(model.fallback))

    def _check_fallbacks(
        self,
        models: Mapping[str, ModelFile],
        adapters: Mapping[str, AdapterFile],
        unusable: Mapping[str, UnusableFile],
    ) -> None:
        """Only text may come from another model than was asked. A fallback may be a model that only other workers have;
        the controller looks at its kind again."""
        kinds = {model.id: model.kind for model in models.values()}
        kinds |= {adapter.id: model.kind for model in models.values() for adapter in model.adapters}
        named: list[ModelFile | AdapterFile | UnusableFile] = [*models.values(), *adapters.values(), *unusable.values()]
        for model in named:
            if model.fallback is None:
                continue
            target = self._id_of(model.fallback)
            own_kind, kind = (kinds.get(each, ModelKind.GENERATE) for each in (model.id, target))
            if target == model.id:
                problem = "it names the model itself; name another one, or none"
            elif own_kind is not ModelKind.GENERATE:
                problem = (
                    f"only a model that generates text may have one, and this one is of kind {own_kind}: what two such "
                    "models say can't be compared; remove it, or give it more replicas"
                )
            elif kind is not ModelKind.GENERATE:
                problem = (
                    f"'{target}' is of kind {kind} and can't answer in its place; name a model that generates text"
                )
            else:
                continue
            raise InvalidSetting(MODELS_YAML, f"model '{model.id}': fallback: {problem}")


def _owners(models: Iterable[ModelFile | AdapterFile], unusable: Iterable[UnusableFile]) -> dict[str, str]:
    """The id behind every name."""
    named, broken = list(models), list(unusable)
    owners: dict[str, str] = {model.id: model.id for model in named}
    for model in named:
        for alias in model.aliases:
            other = owners.setdefault(alias.lower(), model.id)
            if other != model.id:
                raise InvalidSetting(
                    MODELS_YAML, f"model '{model.id}': the alias '{alias}' already belongs to '{other}'; choose another"
                )
    for file in broken:
        owners.setdefault(file.id, file.id)
    for file in broken:
        for alias in file.aliases:
            owners.setdefault(alias.lower(), file.id)
    return owners
