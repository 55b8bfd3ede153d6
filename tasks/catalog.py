"""Which models exist, under which names, and the nearest names to a wrong one. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from tasks.errors import UnknownModel
from tasks.fleet import ModelOffer

MAX_SUGGESTIONS = 3


class Catalog:
    """Look-up of a client's model name (id or alias, any case) among the offers of the fleet.

    Only what this returns may be used in a key, a path or a queue name.
    """

    def __init__(self, offers: Iterable[ModelOffer]) -> None:
        self._offers = {offer.id: offer for offer in offers}
        self._ids_by_name = {alias.lower(): offer.id for offer in self._offers.values() for alias in offer.aliases}
        self._ids_by_name.update({model_id: model_id for model_id in self._offers})

    def __iter__(self) -> Iterator[ModelOffer]:
        return iter(sorted(self._offers.values(), key=lambda offer: offer.id))

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._ids_by_name

    def resolve(self, name: str) -> ModelOffer:
        """The offer behind a name. Raises UnknownModel with the nearest names."""
        model_id = self._ids_by_name.get(name.lower())
        if model_id is None:
            nearest = difflib.get_close_matches(name.lower(), self._ids_by_name, n=MAX_SUGGESTIONS, cutoff=0.4)
            raise UnknownModel(name, nearest, sorted(self._ids_by_name)[:MAX_SUGGESTIONS])
        return self._offers[model_id]
