"""OpenAI's JSON for chat and text completions, whole and in chunks. Pure.

A stream repeats the same bytes around every piece of text, so those are built once per request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import msgspec

from app.following import Transcript
from app.logprob_forms import TextLogprobs, chat_logprobs
from tasks.generation import JsonObject
from tasks.jobs import Job, Usage
from tasks.stream_events import End, Tokens

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class WholeForm(Protocol):
    """How one route words a complete answer."""

    def whole(self, transcript: Transcript, end: End) -> JsonObject: ...


class AnswerForm(WholeForm, Protocol):
    """How one route words an answer, whole or in pieces."""

    def first(self) -> bytes:
        """What precedes the first text."""
        ...

    def piece(self, event: Tokens) -> bytes:
        """One event's text; nothing while a character is incomplete."""
        ...

    def last(self, end: End) -> bytes:
        """What ends the stream of an only choice: `finish` and `closing`."""
        ...

    def finish(self, end: End) -> bytes:
        """The last chunk of this choice, with its finish_reason."""
        ...

    def closing(self, usage: Usage | None) -> bytes:
        """Behind the last chunk of all choices: the usage if asked for, and the terminator."""
        ...

    def choice(self, transcript: Transcript, end: End) -> JsonObject:
        """This choice of a complete answer."""
        ...

    def body(self, choices: list[JsonObject], usage: Usage | None) -> JsonObject:
        """A complete answer."""
        ...


class _Form(ABC):
    """What both forms share: one choice of an answer, whose id is that of the job."""

    def __init__(
        self,
        job: Job,
        *,
        id_prefix: str,
        kind: str,
        chunk_kind: str,
        include_usage: bool,
        index: int,
        service_tier: str | None,
    ) -> None:
        self._head: JsonObject = {
            "id": id_prefix + job.id.removeprefix("job_"),
            "object": kind,
            "created": job.created_ms // 1000,
            "model": job.model,
        }
        if service_tier is not None:
            self._head["service_tier"] = service_tier
        self._include_usage = include_usage
        self._before = b"data: " + _encode(self._head | {"object": chunk_kind})[:-1] + b',"choices":['
        self._after = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

        self._index = index
        self._before_choice = self._before + b'{"index":%d,' % index

    def last(self, end: End) -> bytes:
        return self.finish(end) + self.closing(end.usage)

    def whole(self, transcript: Transcript, end: End) -> JsonObject:
        return self.body([self.choice(transcript, end)], end.usage)

    def closing(self, usage: Usage | None) -> bytes:
        if not self._include_usage:
            return DONE
        return self._before + b'],"usage":' + _encode(usage_object(usage)) + b"}\n\n" + DONE

    def body(self, choices: list[JsonObject], usage: Usage | None) -> JsonObject:
        return self._head | {"choices": choices, "usage": usage_object(usage)}

    @abstractmethod
    def finish(self, end: End) -> bytes: ...

    @abstractmethod
    def choice(self, transcript: Transcript, end: End) -> JsonObject: ...

    def _chunk(self, choice: bytes) -> bytes:
        """`choice`: its members behind the index."""
        return self._before_choice + choice + self._after


class ChatForm(_Form):
    """chat.completion and chat.completion.chunk"""

    def __init__(self, job: Job, *, include_usage: bool, index: int = 0, service_tier: str | None = None) -> None:
        super().__init__(
            job,
            id_prefix="chatcmpl-",
            kind="chat.completion",
            chunk_kind="chat.completion.chunk",
            include_usage=include_usage,
            index=index,
            service_tier=service_tier,
        )
        self._before_text = self._before_choice + b'"delta":{"content":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}' + self._after

    def first(self) -> bytes:
        return self._chunk(b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}')

    def piece(self, event: Tokens) -> bytes:
        if event.logprobs:
            logprobs = _encode(chat_logprobs(event.logprobs))
            return self._chunk(
                b'"delta":{"content":%b},"logprobs":%b,"finish_reason":null}' % (_encode(event.text), logprobs)
            )
        return self._before_text + _encode(event.text) + self._after_text if event.text else b""

    def finish(self, end: End) -> bytes:
        reason = _encode(end.finish_reason or "stop")
        return self._chunk(b'"delta":{},"logprobs":null,"finish_reason":%b}' % reason)

    def choice(self, transcript: Transcript, end: End) -> JsonObject:
        return {
            "index": self._index,
            "message": {"role": "assistant", "content": transcript.text, "refusal": None},
            "logprobs": chat_logprobs(transcript.logprobs) if transcript.logprobs else None,
            "finish_reason": end.finish_reason or "stop",
        }


class TextForm(_Form):
    """text_completion, whose chunks are of the same kind"""

    def __init__(self, job: Job, *, include_usage: bool, index: int = 0, service_tier: str | None = None) -> None:
        kind = "text_completion"
        super().__init__(
            job,
            id_prefix="cmpl-",
            kind=kind,
            chunk_kind=kind,
            include_usage=include_usage,
            index=index,
            service_tier=service_tier,
        )
        self._before_text = self._before_choice + b'"text":'
        self._after_text = b',"logprobs":null,"finish_reason":null}' + self._after
        self._logprobs = TextLogprobs()

    def first(self) -> bytes:
        return b""

    def piece(self, event: Tokens) -> bytes:
        if event.logprobs:
            logprobs = _encode(self._logprobs.of(event.logprobs))
            return self._chunk(b'"text":%b,"logprobs":%b,"finish_reason":null}' % (_encode(event.text), logprobs))
        return self._before_text + _encode(event.text) + self._after_text if event.text else b""

    def finish(self, end: End) -> bytes:
        reason = _encode(end.finish_reason or "stop")
        return self._chunk(b'"text":"","logprobs":null,"finish_reason":%b}' % reason)

    def choice(self, transcript: Transcript, end: End) -> JsonObject:
        return {
            "index": self._index,
            "text": transcript.text,
            "logprobs": TextLogprobs().of(transcript.logprobs) if transcript.logprobs else None,
            "finish_reason": end.finish_reason or "stop",
        }


def usage_object(usage: Usage | None) -> JsonObject | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
