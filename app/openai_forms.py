"""OpenAI's JSON for chat and text completions, whole and in chunks. Pure.

A stream repeats the same bytes around every piece of text, so those are built once per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from app.following import Transcript
from tasks.generation import JsonObject, TokenLogprob
from tasks.jobs import Job, Usage
from tasks.stream_events import End, Tokens

DONE = b"data: [DONE]\n\n"
_MIN_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON lacks
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
        """finish_reason, the usage if asked for, and the terminator."""
        ...


class _Form:
    """What both forms share. `_around` are the bytes before and after a chunk's choices."""

    def __init__(self, job: Job, *, id_prefix: str, kind: str, chunk_kind: str, include_usage: bool) -> None:
        self._head: JsonObject = {
            "id": id_prefix + job.id.removeprefix("job_"),
            "object": kind,
            "created": job.created_ms // 1000,
            "model": job.model,
        }
        self._include_usage = include_usage
        self._before = b"data: " + _encode(self._head | {"object": chunk_kind})[:-1] + b',"choices":['
        self._after = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def _chunk(self, choice: bytes) -> bytes:
        return self._before + choice + self._after

    def _closing(self, end: End) -> bytes:
        if not self._include_usage:
            return DONE
        return self._before + b'],"usage":' + _encode(usage_object(end.usage)) + b"}\n\n" + DONE

    def _whole(self, choice: JsonObject, end: End) -> JsonObject:
        return self._head | {"choices": [{"index": 0, **choice}], "usage": usage_object(end.usage)}


class ChatForm(_Form):
    """chat.completion and chat.completion.chunk"""

    def __init__(self, job: Job, *, include_usage: bool) -> None:
        super().__init__(
            job,
            id_prefix="chatcmpl-",
            kind="chat.completion",
            chunk_kind="chat.completion.chunk",
            include_usage=include_usage,
        )
        self._before_text = self._before + b'{"index":0,"delta":{"content":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}' + self._after

    def first(self) -> bytes:
        return self._chunk(
            b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        )

    def piece(self, event: Tokens) -> bytes:
        if event.logprobs:
            logprobs = _encode(chat_logprobs(event.logprobs))
            return self._chunk(
                b'{"index":0,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}'
                % (_encode(event.text), logprobs)
            )
        return self._before_text + _encode(event.text) + self._after_text if event.text else b""

    def last(self, end: End) -> bytes:
        reason = _encode(end.finish_reason or "stop")
        final = self._chunk(b'{"index":0,"delta":{},"logprobs":null,"finish_reason":%b}' % reason)
        return final + self._closing(end)

    def whole(self, transcript: Transcript, end: End) -> JsonObject:
        message = {"role": "assistant", "content": transcript.text, "refusal": None}
        logprobs = chat_logprobs(transcript.logprobs) if transcript.logprobs else None
        return self._whole(
            {"message": message, "logprobs": logprobs, "finish_reason": end.finish_reason or "stop"}, end
        )


class TextForm(_Form):
    """text_completion, whose chunks are of the same kind"""

    def __init__(self, job: Job, *, include_usage: bool) -> None:
        kind = "text_completion"
        super().__init__(job, id_prefix="cmpl-", kind=kind, chunk_kind=kind, include_usage=include_usage)
        self._before_text = self._before + b'{"index":0,"text":'
        self._after_text = b',"logprobs":null,"finish_reason":null}' + self._after
        self._offset = 0  # characters sent, for text_offset

    def first(self) -> bytes:
        return b""

    def piece(self, event: Tokens) -> bytes:
        if event.logprobs:
            logprobs = _encode(text_logprobs(event.logprobs, self._offset))
            self._offset += len(event.text)
            return self._chunk(
                b'{"index":0,"text":%b,"logprobs":%b,"finish_reason":null}' % (_encode(event.text), logprobs)
            )
        return self._before_text + _encode(event.text) + self._after_text if event.text else b""

    def last(self, end: End) -> bytes:
        reason = _encode(end.finish_reason or "stop")
        final = self._chunk(b'{"index":0,"text":"","logprobs":null,"finish_reason":%b}' % reason)
        return final + self._closing(end)

    def whole(self, transcript: Transcript, end: End) -> JsonObject:
        logprobs = text_logprobs(transcript.logprobs, 0) if transcript.logprobs else None
        return self._whole(
            {"text": transcript.text, "logprobs": logprobs, "finish_reason": end.finish_reason or "stop"}, end
        )


def usage_object(usage: Usage | None) -> JsonObject | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> JsonObject:
    def entry(text: str, logprob: float) -> JsonObject:
        return {"token": text, "logprob": max(logprob, _MIN_LOGPROB), "bytes": list(text.encode())}

    content = [
        entry(token.text, token.logprob) | {"top_logprobs": [entry(*rival) for rival in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> JsonObject:
    """`offset`: characters of the answer before these tokens."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [max(token.logprob, _MIN_LOGPROB) for token in tokens],
        "top_logprobs": [
            {text: max(logprob, _MIN_LOGPROB) for text, logprob in token.top} if token.top else None for token in tokens
        ],
        "text_offset": offsets,
    }
