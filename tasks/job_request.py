"""What a job record can ask for, as stored JSON. Pure."""

from __future__ import annotations

import msgspec

from tasks.encoding import EncodingRequest
from tasks.generation import GenerationRequest

JobRequest = GenerationRequest | EncodingRequest


def decode_request(payload: bytes) -> JobRequest:
    """Raises msgspec.DecodeError on a record that this version can't read."""
    try:
        return _DECODER.decode(payload)
    except msgspec.ValidationError:
        if "type" in _FIELDS.decode(payload):
            raise
        return _UNTAGGED.decode(payload)


def encode_request(request: JobRequest) -> bytes:
    return _ENCODER.encode(request)


_DECODER: msgspec.json.Decoder[JobRequest] = msgspec.json.Decoder(JobRequest)
_ENCODER = msgspec.json.Encoder()
# Records had no tag when there was only text to generate; jobs of such a version may wait over an upgrade.
_UNTAGGED = msgspec.json.Decoder(GenerationRequest)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
