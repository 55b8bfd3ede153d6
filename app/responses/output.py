"""The answer of a model as OpenAI's output items, and the events that tell how they grow. Pure.

Fed with the same pieces of text it makes the same events, so any front can take up a stream after any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from app.logprob_forms import chat_logprobs
from app.responses.items import call_item, item_id, message_item, output_text
from app.tool_calls import Arguments, CallBegins, Content, Delta, ToolCallReader
from app.tool_forms import call_id
from tasks.generation import JsonObject, TokenLogprob
from tasks.jobs import JobId

Event = tuple[str, JsonObject]  # its name, and its members but for type and sequence_number


class Output:
    """Grows item by item; the last one may be open. `names`: of the tools that may be called."""

    def __init__(self, job_id: JobId, names: Sequence[str] = ()) -> None:
        self._job_id = job_id
        self._reader = ToolCallReader(frozenset(names)) if names else None
        self._is_open = False
        self._pieces: list[str] = []  # of the open item
        self._logprobs: list[JsonObject] = []  # of the open message
        self.items: list[JsonObject] = []  # of an open one, what is known of it from the start

    def feed(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Iterator[Event]:
        """The next piece of the answer."""
        if self._reader is not None:
            for delta in self._reader.feed(text):
                yield from self._delta(delta)
        elif text or logprobs:
            yield from self._content(text, chat_logprobs(logprobs)["content"] if logprobs else [])

    def finish(self, *, is_complete: bool) -> Iterator[Event]:
        """At the end of the answer, also of one that was cut short. A complete answer has one item at least."""
        for delta in self._reader.finish() if self._reader else ():
            yield from self._delta(delta)
        if is_complete and not self.items:
            yield from self._open_message()
        yield from self._close("completed" if is_complete else "incomplete")

    def _delta(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case Content(text):
                yield from self._content(text, [])
            case CallBegins(index, name):
                yield from self._close("completed")
                yield from self._open_call(index, name)
            case Arguments(_, text):
                if text:
                    self._pieces.append(text)
                    yield "response.function_call_arguments.delta", self._place() | {"delta": text}

    def _content(self, text: str, logprobs: list[JsonObject]) -> Iterator[Event]:
        if not self._is_open or self.items[-1]["type"] != "message":
            yield from self._close("completed")
            yield from self._open_message()
        self._pieces.append(text)
        self._logprobs += logprobs
        yield "response.output_text.delta", self._part_place() | {"delta": text, "logprobs": logprobs}

    def _open_message(self) -> Iterator[Event]:
        item = message_item(item_id("message", self._job_id, f"out {len(self.items)}"), "", (), "in_progress")
        yield from self._open(item | {"content": []})
        yield "response.content_part.added", self._part_place() | {"part": output_text("")}

    def _open_call(self, index: int, name: str) -> Iterator[Event]:
        id_ = item_id("function_call", self._job_id, f"out {len(self.items)}")
        yield from self._open(call_item(id_, call_id(self._job_id, 0, index), name, "", "in_progress"))

    def _open(self, item: JsonObject) -> Iterator[Event]:
        self.items.append(item)
        self._is_open, self._pieces, self._logprobs = True, [], []
        yield "response.output_item.added", {"output_index": len(self.items) - 1, "item": item}

    def _close(self, status: str) -> Iterator[Event]:
        if not self._is_open:
            return
        self._is_open = False
        item, text = self.items[-1], "".join(self._pieces)
        if item["type"] == "message":
            closed = message_item(item["id"], text, self._logprobs, status)
            place = self._part_place()
            yield "response.output_text.done", place | {"text": text, "logprobs": self._logprobs}
            yield "response.content_part.done", place | {"part": closed["content"][0]}
        else:
            closed = item | {"arguments": text, "status": status}
            done = {"name": item["name"], "arguments": text}
            yield "response.function_call_arguments.done", self._place() | done
        self.items[-1] = closed
        yield "response.output_item.done", {"output_index": len(self.items) - 1, "item": closed}

    def _place(self) -> JsonObject:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _part_place(self) -> JsonObject:
        return self._place() | {"content_index": 0}


def whole_output(
    job_id: JobId, names: Sequence[str], text: str, logprobs: Sequence[TokenLogprob] = (), *, is_complete: bool = True
) -> list[JsonObject]:
    """The items of an answer that is there as a whole."""
    output = Output(job_id, names)
    for _ in (*output.feed(text, logprobs), *output.finish(is_complete=is_complete)):
        pass
    return output.items
