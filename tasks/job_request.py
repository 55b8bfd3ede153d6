"""What a job record can ask for, as stored JSON. Pure."""

from __future__ import annotations

import msgspec

from tasks.encoding import EncodingRequest
from tasks.generation import GenerationRequest

JobRequest = GenerationRequest | EncodingRequest


def decode_request(payload: bytes) -> JobRequest:
    """Raises msgspec.ValidationError on a record from another version."""
    return _DECODER.decode(payload)


def encode_request(request: JobRequest) -> bytes:
    return _ENCODER.encode(request)


_DECODER: msgspec.json.Decoder[JobRequest] = msgspec.json.Decoder(JobRequest)
_ENCODER = msgspec.json.Encoder()
