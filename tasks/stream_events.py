"""Events of a job's token stream: a closed union, encoded as JSON. Pure.

Numbered events (seq 1..n, kept in the job's Redis Stream under the id `0-<seq>`) are the truth that a client can
replay; exactly one `End` closes them. Notices carry no number, are published once, and may be lost.
"""

from __future__ import annotations

import msgspec

from tasks.generation import TokenLogprob
from tasks.jobs import JobError, JobState, Usage


class Tokens(msgspec.Struct, frozen=True, tag="tokens", omit_defaults=True):
    """New text, and the ids of all tokens generated since the previous event (the resume point)."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


class Vectors(msgspec.Struct, frozen=True, tag="vectors"):
    """The next results of an encoding job, one row per input in their order: little-endian 32-bit floats, which JSON
    holds as base64."""

    rows: tuple[bytes, ...]


class Reset(msgspec.Struct, frozen=True, tag="reset"):
    """All text so far is void: the new attempt could not continue it. `attempt` starts over."""

    attempt: int
    reason: str


class End(msgspec.Struct, frozen=True, tag="end", omit_defaults=True):
    """The job reached a terminal state."""

    state: JobState
    finish_reason: str | None = None
    usage: Usage | None = None
    error: JobError | None = None


class Queued(msgspec.Struct, frozen=True, tag="queued"):
    """Notice: the job waits; `position` 0 is next in line for its model."""

    position: int


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Notice: the job's model is being loaded; `progress` runs from 0 to 1."""

    model: str
    progress: float


class Started(msgspec.Struct, frozen=True, tag="started"):
    """Notice: an attempt began on a worker."""

    attempt: int
    worker: str


NumberedEvent = Tokens | Vectors | Reset | End
Notice = Queued | Loading | Started
StreamEvent = NumberedEvent | Notice

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[NumberedEvent] = msgspec.json.Decoder(NumberedEvent)
_ANY_DECODER: msgspec.json.Decoder[StreamEvent] = msgspec.json.Decoder(StreamEvent)


def encode_event(event: StreamEvent) -> bytes:
    return _ENCODER.encode(event)


def decode_numbered(payload: bytes) -> NumberedEvent:
    return _DECODER.decode(payload)


def decode_event(payload: bytes) -> StreamEvent:
    return _ANY_DECODER.decode(payload)
