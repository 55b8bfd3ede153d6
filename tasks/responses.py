"""What is kept of a response (`/v1/responses`) beside its job: the client's own words, and how it ended. Pure.

A response is one job; their ids differ in the prefix only, so any front finds the one by the other.
"""

from __future__ import annotations

import re

import msgspec

from tasks.generation import JsonObject
from tasks.jobs import JobError, JobId, JobResult, JobState

_ID = re.compile(r"resp_([0-9a-f]{30})")


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for a response, in the words of its answer."""

    model: str  # as admitted; another one may answer in its place
    echo: JsonObject = {}  # members of the response object that repeat the request; not read with a conversation
    items: tuple[JsonObject, ...]  # the input in OpenAI's form, each item with an id; without earlier turns
    tools: tuple[str, ...] = ()  # names that are a call where the answer's text calls them
    previous: JobId | None = None  # the response whose conversation goes on
    is_background: bool = False
    has_logprobs: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How the job ended, kept for longer than the job."""

    state: JobState
    model: str  # the one that answered
    created_ms: int
    finished_ms: int
    result: JobResult | None = None
    error: JobError | None = None


class ResponseFigures(msgspec.Struct, frozen=True, kw_only=True):
    kept: int
    bytes: int  # of these, with what the store needs to keep them
    evicted: int  # that made room before their time was over


def response_id(job_id: JobId) -> str:
    return "resp_" + job_id.removeprefix("job_")


def job_of(response: str) -> JobId | None:
    """None for what is no response's id."""
    match = _ID.fullmatch(response)
    return JobId("job_" + match[1]) if match else None
