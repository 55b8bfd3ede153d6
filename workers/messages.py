"""What a worker and its runner processes say to each other: two closed unions, msgpack frames over a socket pair.

No pickle: a runner is a sandbox for native code and untrusted model files, so its bytes are parsed, never executed.
A frame is a 4-byte big-endian length and a msgpack map. Closing the socket ends the runner.
"""

from __future__ import annotations

import msgspec

from tasks.encoding import EncodingRequest
from tasks.generation import FinishReason, GenerationRequest, TokenLogprob
from tasks.jobs import JobError, Priority

# ---- worker → runner


class Generate(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Start a sequence under `key` (unique in this runner's life)."""

    key: int
    request: GenerationRequest
    forced_ids: tuple[int, ...] = ()  # already published: prefill them, don't emit their text again
    emitted_text: str = ""  # already published text of the forced ids
    priority: Priority = Priority.DEFAULT  # batch work gives up its place in the engine to any other
    adapter: str = ""  # that the job asked for; "": the model itself


class Encode(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Encode the inputs behind the first `published_rows`, whose results are out already."""

    key: int
    request: EncodingRequest
    published_rows: int = 0
    adapter: str = ""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """End the sequence within one step; answered by Done with reason None."""

    key: int


class OpenSlots(msgspec.Struct, frozen=True, tag=True):
    """From now on the first `count` slots may be used: the memory of the others belongs to somebody else. Fewer than
    before only while nothing runs."""

    count: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Free the model and exit with 0."""


ToRunner = Generate | Encode | Cancel | OpenSlots | Shutdown

# ---- runner → worker


READ_SHARE = 0.9  # of a load's progress: from here on it reads nothing from the disk any more


class LoadProgress(msgspec.Struct, frozen=True, tag=True):
    """0 to 1; sent at most every 100 ms while the weights load."""

    fraction: float


AddressRange = tuple[int, int]  # start and end


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The model is warm."""

    context_length: int  # tokens per sequence
    slots: int
    load_ms: int
    weight_bytes: int  # size of all tensors
    kv_bytes: int
    compute_bytes: int
    copied_weight_bytes: int = 0  # of the weights, what is not used from the mapped file but from a copy in main memory
    untouched: tuple[AddressRange, ...] = ()  # main memory that is taken page by page when it is first written to
    adapter_bytes: int = 0  # of the LoRA adapters beside the weights
    broken_adapters: dict[str, str] = {}  # those that could not be loaded, with the reason


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """The model can't be loaded; the runner exits."""

    reason: str


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """The request can't run (prompt too long, template error, …); nothing was generated."""

    key: int
    error: JobError


class TokenOut(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """New text of one sequence, with the ids of all tokens since its previous TokenOut."""

    key: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


class Encoded(msgspec.Struct, frozen=True, tag=True):
    """The next results of one encoding: little-endian 32-bit floats, one row per input."""

    key: int
    rows: tuple[bytes, ...]


class Done(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The work ended and its slot is free. `finish_reason` None: it was cancelled, or failed with `error`."""

    key: int
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int  # forced ids included
    cached_tokens: int = 0
    error: JobError | None = None


Output = TokenOut | Encoded | Done


class Step(msgspec.Struct, frozen=True, tag=True):
    """All output of one engine step, or of several fast ones. `number` counts steps: if it moves, the runner lives."""

    number: int
    outputs: tuple[Output, ...]


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The engine can't go on; the runner exits right after."""

    reason: str


FromRunner = LoadProgress | Ready | LoadFailed | Rejected | Step | Fatal
