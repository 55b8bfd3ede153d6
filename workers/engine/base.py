"""The engine as the runner process sees it: sequences go in, one step of all of them comes out. Pure interface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.messages import Done, Generate, Ready, TokenOut


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How to load one model."""

    model_path: Path
    context_length: int  # tokens per sequence
    slots: int  # sequences that run at once
    threads: int
    kv_type: str = "f16"  # f16, q8_0, q4_0
    gpu_layers: int = 0  # -1: all
    main_gpu: int = 0
    use_extra_bufts: bool = True  # False where AMX kills the process
    prefill_chunk: int = 512  # prompt tokens per step at most


class Engine(Protocol):
    """Single-threaded: every method is called by the one thread that owns the context."""

    def load(self, progress: ProgressCallback) -> Ready:
        """Load the weights and create the context. Raises ModelLoadFailed."""
        ...

    def prepare(self, message: Generate) -> PreparedPrompt:
        """Render the chat template and tokenise. The one method that any thread may call after load.

        Raises InvalidRequest (PromptTooLong among others)."""
        ...

    def add(self, prompt: PreparedPrompt) -> None:
        """Start a sequence at the next step; waits inside the engine while no slot is free."""
        ...

    def cancel(self, key: int) -> None:
        """End a sequence; its Done comes with the next step. Unknown keys are ignored (it has ended already)."""
        ...

    @property
    def has_work(self) -> bool: ...

    def step(self) -> tuple[TokenOut | Done, ...]:
        """Decode one batch and return what it produced, in order."""
        ...

    def close(self) -> None: ...


class ProgressCallback(Protocol):
    def __call__(self, fraction: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """A tokenised request, ready to be scheduled."""

    message: Generate
    prompt_ids: tuple[int, ...]
