"""A chat answer that may call tools, in OpenAI's JSON. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from app.following import Transcript
from app.logprob_forms import chat_logprobs
from app.openai_forms import ChatForm
from app.tool_calls import Arguments, CallBegins, Content, Delta, ToolCallReader
from tasks.generation import GenerationRequest, JsonObject, TokenLogprob
from tasks.jobs import Job, JobId
from tasks.stream_events import End, Tokens

_encode = msgspec.json.Encoder().encode


def call_id(job_id: JobId, choice: int, call: int) -> str:
    """The same in every reading of a stream; nine letters and digits, as Mistral's templates demand."""
    return hashlib.sha256(f"{job_id} {choice} {call}".encode()).hexdigest()[:9]


class ToolChatForm(ChatForm):
    """ChatForm whose text is read for tool calls."""

    def __init__(
        self,
        job: Job,
        request: GenerationRequest,
        *,
        include_usage: bool,
        index: int = 0,
        service_tier: str | None = None,
    ) -> None:
        super().__init__(job, include_usage=include_usage, index=index, service_tier=service_tier)
        self._job_id = job.id
        self._must_call = request.must_call_tool
        self._names = frozenset(tool.name for tool in request.tools)
        self._reader = ToolCallReader(self._names)
        self._logprobs: list[TokenLogprob] = []  # of text that is held back

    def first(self) -> bytes:
        content = b"null" if self._must_call else b'""'
        return self._chunk(b'"delta":{"role":"assistant","content":%b},"logprobs":null,"finish_reason":null}' % content)

    def piece(self, event: Tokens) -> bytes:
        self._logprobs += event.logprobs
        return self._deltas(self._reader.feed(event.text))

    def finish(self, end: End) -> bytes:
        rest = self._deltas(self._reader.finish())
        reason = _encode(self._finish_reason(end, self._reader))
        return rest + self._chunk(b'"delta":{},"logprobs":%b,"finish_reason":%b}' % (self._taken_logprobs(), reason))

    def choice(self, transcript: Transcript, end: End) -> JsonObject:
        reader = ToolCallReader(self._names)
        deltas = reader.feed(transcript.text) + reader.finish()
        content = "".join(delta.text for delta in deltas if isinstance(delta, Content))
        calls = [self._call(delta) for delta in deltas if isinstance(delta, CallBegins)]
        for delta in deltas:
            if isinstance(delta, Arguments):
                calls[delta.index]["function"]["arguments"] += delta.text
        message: JsonObject = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        return {
            "index": self._index,
            "message": message,
            "logprobs": chat_logprobs(transcript.logprobs) if transcript.logprobs else None,
            "finish_reason": self._finish_reason(end, reader),
        }

    def _deltas(self, deltas: list[Delta]) -> bytes:
        return b"".join(map(self._delta, deltas))

    def _delta(self, delta: Delta) -> bytes:
        match delta:
            case Content(text):
                body: JsonObject = {"content": text}
            case CallBegins(index):
                body = {"tool_calls": [{"index": index} | self._call(delta)]}
            case Arguments(index, text):
                body = {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return self._chunk(b'"delta":%b,"logprobs":%b,"finish_reason":null}' % (_encode(body), self._taken_logprobs()))

    def _taken_logprobs(self) -> bytes:
        logprobs, self._logprobs = self._logprobs, []
        return _encode(chat_logprobs(logprobs) if logprobs else None)

    def _call(self, call: CallBegins) -> JsonObject:
        return {
            "id": call_id(self._job_id, self._index, call.index),
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }

    @staticmethod
    def _finish_reason(end: End, reader: ToolCallReader) -> str:
        reason = end.finish_reason or "stop"
        return "tool_calls" if reader.num_calls and reason == "stop" else reason
