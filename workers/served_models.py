"""The models of a worker's folder, as they would be loaded on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import structlog

from tasks.fleet import may_run_on
from workers.costs import ModelCosts
from workers.fitting import fit_models
from workers.model_files import ModelFile, ModelFolder

log = structlog.get_logger(__name__)


class ServedModels:
    """Of the folder's newest scan, each reduced if it would not fit otherwise. What is read here is replaced and never
    changed, so no lock is needed for it."""

    def __init__(self, folder: ModelFolder, *, costs: ModelCosts, budget_bytes: int, device_name: str) -> None:
        self._costs = costs
        self._budget_bytes = budget_bytes
        self._device_name = device_name
        self.put(folder, self.fitted(folder, {}))

    def fitted(self, folder: ModelFolder, warm: Mapping[str, ModelFile]) -> dict[str, ModelFile]:
        """The models of this scan as they would be loaded; those that are warm keep their size. Changes nothing."""
        self._costs.keep_only(folder.models)
        # A pin to other devices takes no room here.
        models = [each if self.may_run(each) else replace(each, is_pinned=False) for each in folder.models]
        fitted = fit_models(
            models,
            self._budget_bytes,
            lambda model: self._costs.need(model).total_bytes,
            warm,
            rough_need_of=lambda model: self._costs.need(model, asks=False).total_bytes,
        )
        for each in fitted.values():
            if each.reduced is not None:
                log.info("model_reduced", model=each.id, to=each.reduced)
            if each.draft_problem is not None:
                log.warning("model_without_draft", model=each.id, reason=each.draft_problem)
        return fitted

    def put(self, folder: ModelFolder, fitted: Mapping[str, ModelFile]) -> None:
        """Serve these from now on."""
        self.folder = folder
        self.by_id = fitted
        self._bases = {adapter.id: model.id for model in fitted.values() for adapter in model.adapters}

    def runner_of(self, model: str) -> str:
        """The model whose runner has the slots: its base, of an adapter."""
        return self._bases.get(model, model)

    def may_run(self, model: ModelFile) -> bool:
        return may_run_on(model.devices, self._device_name)

    def fit_together(self) -> bool:
        """Whether memory is no matter here: then a conversation finds its slot as it left it, rather than in the memory
        for parked states."""
        models = [each for each in self.by_id.values() if self.may_run(each)]
        return sum(self._costs.need(each).total_bytes for each in models) <= self._budget_bytes
