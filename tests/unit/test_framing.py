"""Frames survive any cutting of the byte stream; garbage is refused."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.generation import GenerationRequest, SamplingParams, TokenLogprob
from tasks.jobs import JobError
from workers.framing import BrokenFrame, FrameDecoder, FrameReader, FrameWriter, RequestDecoder, encode_frame
from workers.messages import (
    Cancel,
    Done,
    Fatal,
    Generate,
    LoadFailed,
    LoadProgress,
    Ready,
    Rejected,
    Shutdown,
    Step,
    TokenOut,
)

REQUESTS = [
    Generate(
        key=7,
        request=GenerationRequest(model="m", prompt="ü🙂", sampling=SamplingParams(logit_bias={"1": 2.0}), stop=("x",)),
        forced_ids=(1, 2, 3),
        emitted_text="abc",
    ),
    Cancel(7),
    Shutdown(),
]
REPORTS = [
    LoadProgress(0.5),
    Ready(context_length=1, slots=2, load_ms=3, weight_bytes=4, kv_bytes=5, compute_bytes=6),
    LoadFailed("why"),
    Rejected(7, JobError(code="c", message="m")),
    Step(1, ()),
    Step(
        2,
        (
            TokenOut(7, "ü", (195, 188), (TokenLogprob("ü", -0.5, (TokenLogprob("a", -1.0, (), b"\xc3"),)),)),
            Done(key=7, finish_reason="stop", prompt_tokens=1, completion_tokens=2),
        ),
    ),
    Fatal("why"),
]


@given(st.lists(st.integers(1, 40)))
def test_messages_survive_any_cut(cuts):
    stream = b"".join(encode_frame(message) for message in REPORTS)
    decoder, received, at = FrameDecoder(), [], 0
    for cut in cuts:
        received += decoder.feed(stream[at : at + cut])
        at += cut
    assert received + decoder.feed(stream[at:]) == REPORTS


def test_every_request_survives():
    assert RequestDecoder().feed(b"".join(map(encode_frame, REQUESTS))) == REQUESTS


def test_reader_hands_over_all_that_has_arrived():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"".join(map(encode_frame, REPORTS)))
        assert FrameReader(theirs, FrameDecoder()).read_available() == REPORTS


def test_reader_ends_with_the_connection():
    ours, theirs = socket.socketpair()
    with theirs:
        FrameWriter(ours).send(REPORTS[0])
        ours.close()
        assert list(FrameReader(theirs, FrameDecoder())) == REPORTS[:1]


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", encode_frame(REQUESTS[0]), b"\x00\x00\x00\x00"],
    ids=["huge length", "no msgpack", "message of the other direction", "empty frame"],
)
def test_garbage_is_refused(garbage):
    with pytest.raises(BrokenFrame):
        FrameDecoder().feed(garbage)
