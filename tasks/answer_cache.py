"""Which requests may be answered by what an equal one was answered before, and what makes two of them equal. Pure.

Only requests whose text is fixed in advance: temperature 0, or a seed that the client chose; and encodings. The key
is a hash over all of the request that a job record holds (model, messages or prompt, sampling, limits, stops, tools,
format, log probabilities), over the version of Keepwarm, and over the model's fingerprint: its file, its adapter and
the settings that it is loaded with. How an answer is delivered (stream, priority, deadline) is in no job's request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import msgspec

from tasks.encoding import EncodingRequest
from tasks.fleet import ModelOffer
from tasks.generation import GenerationRequest, SamplingParams
from tasks.job_request import JobRequest
from tasks.jobs import JobResult
from tasks.stream_events import End, NumberedEvent, Tokens

# Packages whose change may change a text: prompts, sampling and grammars are ours, the numbers are llama.cpp's.
_MAKERS = ("keepwarm", "llama-cpp-python", "llguidance")


class CacheOutcome(StrEnum):
    """What the cache had for a request that it may answer."""

    HIT = "hit"  # an answer
    SHARED = "shared"  # a job that is computing it
    MISS = "miss"


class AnswerKey(msgspec.Struct, frozen=True, kw_only=True):
    """Where the answer to one request is kept, under which file, for how long, and up to which size."""

    digest: str
    fingerprint: str  # of the model as it was offered when the request came
    ttl_ms: int
    max_bytes: int

    @property
    def note(self) -> str:
        """The field `cache` of the job record that computes the answer."""
        return f"{self.digest} {self.fingerprint} {self.ttl_ms} {self.max_bytes}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheWish:
    """What the cache may do for one request."""

    key: AnswerKey
    ends_with_clients: bool  # nobody comes back for the job: it is cancelled when no client waits for it any more
    may_follow: bool = False  # also be answered by a job that another request began


def answer_key(request: JobRequest, offer: ModelOffer, *, has_seed: bool) -> AnswerKey | None:
    """None when this request is not to be cached. `has_seed`: the client chose it."""
    policy = offer.cache
    if policy is None or not offer.fingerprint or not _is_repeatable(request, has_seed):
        return None
    payload = b"\n".join([_makers(), offer.fingerprint.encode(), _ENCODER.encode(canonical(request))])
    return AnswerKey(
        digest=hashlib.sha256(payload).hexdigest(),
        fingerprint=offer.fingerprint,
        ttl_ms=policy.ttl_s * 1000,
        max_bytes=policy.max_bytes,
    )


def canonical(request: JobRequest) -> JobRequest:
    """The same request without what changes nothing: at temperature 0 the seed and the filters."""
    if isinstance(request, EncodingRequest) or request.sampling.temperature > 0:
        return request
    given = request.sampling
    greedy = SamplingParams(
        temperature=0.0,
        repeat_penalty=given.repeat_penalty,
        repeat_last_n=given.repeat_last_n,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        logit_bias=given.logit_bias,
    )
    return msgspec.structs.replace(request, sampling=greedy)


def _is_repeatable(request: JobRequest, has_seed: bool) -> bool:
    return not isinstance(request, GenerationRequest) or has_seed or request.sampling.temperature <= 0


def result_of(answer: Sequence[NumberedEvent]) -> JobResult:
    """What the record of a job with these events would hold."""
    end = answer[-1]
    assert isinstance(end, End)
    text = "".join(event.text for event in answer if isinstance(event, Tokens))
    return JobResult(text=text, finish_reason=end.finish_reason, usage=end.usage)


def as_cached(answer: Sequence[NumberedEvent]) -> tuple[NumberedEvent, ...]:
    """The answer as it is given again: the same tokens, of whose prompt nothing had to be computed."""
    end = answer[-1]
    assert isinstance(end, End)
    if end.usage is None:
        return tuple(answer)
    usage = msgspec.structs.replace(end.usage, cached_tokens=end.usage.prompt_tokens)
    return (*answer[:-1], msgspec.structs.replace(end, usage=usage))


@cache
def _makers() -> bytes:
    return " ".join(f"{package} {_version(package)}" for package in _MAKERS).encode()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


_ENCODER = msgspec.json.Encoder(order="sorted")
