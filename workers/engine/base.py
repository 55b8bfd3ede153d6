"""The engine as the runner process sees it: sequences go in, one step of all of them comes out. Pure interface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tasks.fleet import ModelKind
from workers.messages import Encode, Generate, Output, Ready

DRAFT_TOKENS = 8  # of speculative decoding per step; each costs a row of logits in the output buffer
DRAFT_PIECE = 64  # tokens that a draft model computes at once, at most
MAX_VOCABULARY_DIFFERENCE = 128  # tokens at the end that only one of a model and its draft model has, as in llama.cpp


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftConfig:
    """A small model of the same vocabulary that guesses what the large one will say."""

    model_path: Path
    context_length: int  # tokens per sequence, not more than the large model's; behind them it guesses nothing
    threads: int


@dataclass(frozen=True, slots=True)
class EngineAdapter:
    """A LoRA adapter over the weights; sequences name it by its id."""

    id: str
    path: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How to load one model."""

    model_path: Path
    context_length: int  # tokens per sequence
    slots: int  # sequences that run at once
    threads: int
    turns_path: Path | None = None  # runners that share this file take turns on the CPU's cores (engine/turnstile.py)
    kv_type: str = "f16"  # one of engine/kv_types.py
    gpu_layers: int = 0  # -1: all
    main_gpu: int = 0
    split_mode: str = "none"  # or layer, row: over several GPUs
    tensor_split: tuple[float, ...] = ()  # shares of the GPUs; (): all alike
    has_steady_weights: bool = False  # all of types in gguf_types.STEADY: on CPUs a row is the same in any batch
    use_extra_bufts: bool = True  # False where AMX kills the process
    prefill_chunk: int = 512  # prompt tokens per step at most
    draft_tokens: int = DRAFT_TOKENS  # per step, of all sequences together; 0: no speculative decoding
    draft: DraftConfig | None = None  # None: guesses come from the text itself alone
    model_kind: ModelKind = ModelKind.GENERATE
    adapters: tuple[EngineAdapter, ...] = ()  # loaded beside the weights, for the sequences that ask for them
    pooling: str | None = None  # mean, cls, last; None: as the file says
    parked_bytes: int = 0  # memory for the caches of sequences that lost their slot, beside the KV cache


class EngineFailed(Exception):
    """The engine can't go on: the runner reports Fatal and exits; its jobs continue in new attempts elsewhere."""


class ProgressCallback(Protocol):
    def __call__(self, fraction: float, /) -> None: ...


class Prepared(Protocol):
    """Work that an engine can take: a sequence, or an encoding."""

    key: int
    prompt_tokens: int


P = TypeVar("P", bound=Prepared)


class Engine(Protocol[P]):
    """Single-threaded: every method is called by the one thread that owns the context, `prepare` excepted."""

    def load(self, progress: ProgressCallback) -> Ready:
        """Load the weights and create the context. Raises ModelLoadFailed."""
        ...

    def prepare(self, message: Generate | Encode) -> P:
        """Render the chat template, tokenise, replay the forced ids. Any thread may call this after load.

        Raises InvalidRequest (PromptTooLong and WrongModelKind among others)."""
        ...

    def add(self, work: P) -> None:
        """Start it at the next step; it waits inside the engine while no slot is free."""
        ...

    def cancel(self, key: int) -> None:
        """End a sequence; its Done comes with the next step. Unknown keys are ignored (it has ended already)."""
        ...

    def interrupt(self, key: int) -> None:
        """Any thread: a decode that works on this sequence's prompt may stop at once. A `cancel` follows."""
        ...

    def hurry(self) -> None:
        """Any thread: a decode of batch work alone may stop at once. An `add` of more urgent work follows."""
        ...

    @property
    def has_work(self) -> bool: ...

    def open_slots(self, count: int) -> None:
        """At most so many sequences run at once from now on, and only their part of the context is written to. Fewer
        than before only while nothing runs."""
        ...

    def rest(self) -> None:
        """Called when there is no work, before the wait for some; takes milliseconds at most times."""
        ...

    def step(self) -> tuple[Output, ...]:
        """Decode one batch and return what it produced, in order. Raises EngineFailed."""
        ...

    def close(self) -> None: ...
