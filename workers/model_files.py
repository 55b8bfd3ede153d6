"""What a worker's folder of models holds: models, the adapters over them, and files that can't be served."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tasks.fleet import CachePolicy, ModelKind
from workers.draft_files import DraftFile
from workers.estimate import ModelShape, parked_bytes
from workers.models_yaml import MODELS_YAML


def adapter_fingerprint(of_base: str, adapter: str) -> str:
    """Of what an adapter says over a base with this fingerprint, which depends on the adapters' files and scales."""
    return f"{of_base}/{adapter}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """A LoRA adapter: a model for clients, with a queue of its own, that the runner of its base serves."""

    id: str
    base: str
    path: Path
    file_bytes: int
    tensor_bytes: int
    identity: str  # changes when a runner has to load it anew: size, modification time and scale
    scale: float
    aliases: tuple[str, ...]
    fallback: str | None
    cache: CachePolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model that this worker can serve, and how."""

    id: str
    path: Path  # the first file; llama.cpp finds the other parts itself
    file_bytes: int
    identity: str  # changes when a file does, also an adapter's: sizes and modification times
    shape: ModelShape
    trained_context_length: int
    description: str  # "llama 1.8M Q8_0"
    aliases: tuple[str, ...]
    context_length: int  # tokens per sequence
    slots: int
    kv_type: str
    is_pinned: bool
    ttl_s: int | None
    fallback: str | None
    devices: tuple[str, ...]
    replicas: int
    max_replicas: int
    kind: ModelKind = ModelKind.GENERATE
    pooling: str | None = None  # of an embedding model or reranker; None: as the file says
    is_matryoshka: bool = False
    has_fixed_context: bool = False  # models.yaml says how long, so it is not shortened to fit
    has_fixed_slots: bool = False
    has_steady_weights: bool = False  # a row of logits is the same in any batch (`gguf_types.STEADY`)
    architecture: str = "unknown"
    adapters: tuple[AdapterFile, ...] = ()  # served over the same weights, in the order of their ids
    draft: DraftFile | None = None  # a small model that guesses for this one
    draft_problem: str | None = None  # why there is none, though models.yaml names one
    reduced: str | None = None  # what was taken away to make it fit here (`workers.fitting`)
    full_size: tuple[int, int] | None = None  # context length and slots before that; None: it has them
    cache: CachePolicy | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of the file's identity and of all that a runner is loaded with."""
        return hashlib.sha256(repr(self._loaded_as).encode()).hexdigest()[:32]

    @property
    def adapter_bytes(self) -> int:
        return sum(each.tensor_bytes for each in self.adapters)

    def parked_bytes(self, wished: int | None) -> int:
        """Main memory beside the KV cache for what lost its slot; see `workers.estimate`."""
        if self.kind is not ModelKind.GENERATE:
            return 0
        return parked_bytes(
            self.shape,
            context_length=self.context_length,
            slots=self.slots,
            kv_type=self.kv_type,
            wished=wished,
        )

    def loads_like(self, other: ModelFile) -> bool:
        """Whether a runner of the one is as good as a runner of the other."""
        return self._loaded_as == other._loaded_as

    @property
    def _loaded_as(self) -> tuple[object, ...]:
        return (self.identity, self.context_length, self.slots, self.kv_type, self.kind, self.pooling)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusableFile:
    """A *.gguf file that can't be served, and why. Clients may ask for it all the same: its fallback answers them."""

    id: str
    path: Path
    file_bytes: int
    reason: str
    aliases: tuple[str, ...] = ()
    fallback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """One scan's result, in the order of ids."""

    models: tuple[ModelFile, ...] = ()  # each with its adapters
    unusable: tuple[UnusableFile, ...] = ()
    unmatched: tuple[str, ...] = ()  # ids in models.yaml that no file has: probably misspelt

    @property
    def warnings(self) -> tuple[str, ...]:
        """What models.yaml asks for in vain, in sentences. Unusable files say so in their offers."""
        without_draft = [each for each in self.models if each.draft_problem is not None]
        return (
            *(f"{MODELS_YAML} has an entry '{name}', and the folder no file of this name." for name in self.unmatched),
            *(f"'{each.id}' runs without its draft: {each.draft_problem}." for each in without_draft),
        )
