"""Items of a response's input and output in OpenAI's form, and what a chat template gets of them. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import msgspec

from app.errors import NotSupportedYet
from app.schemas.responses import InputItem, InputPart
from app.tools import call_arguments
from tasks.errors import InvalidRequest
from tasks.generation import ChatMessage, JsonObject, ToolCall
from tasks.jobs import JobId

_ROLES = frozenset({"user", "system", "developer", "assistant"})
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_GIVEN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_PREFIX = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_"}


def item_id(kind: str, job_id: JobId, place: str) -> str:
    """The same in every reading: made of the job and the item's place in it. Not to be guessed, as the job isn't."""
    return _PREFIX[kind] + hashlib.sha256(f"{job_id} {place}".encode()).hexdigest()[:40]


def input_items(items: Sequence[InputItem], job_id: JobId) -> tuple[JsonObject, ...]:
    """The items as they are kept and listed. Raises InvalidRequest, which names the item."""
    return tuple(_input_item(item, job_id, index) for index, item in enumerate(items))


def message_item(id_: str, text: str, logprobs: Sequence[JsonObject], status: str) -> JsonObject:
    """What the model said."""
    content = [output_text(text, logprobs)]
    return {"id": id_, "type": "message", "status": status, "role": "assistant", "content": content}


def output_text(text: str, logprobs: Sequence[JsonObject] = ()) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def call_item(id_: str, call_id: str, name: str, arguments: str, status: str) -> JsonObject:
    """What the model called."""
    head: JsonObject = {"id": id_, "type": "function_call", "status": status}
    return head | {"call_id": call_id, "name": name, "arguments": arguments}


def chat_messages(items: Sequence[JsonObject]) -> tuple[ChatMessage, ...]:
    """A call belongs to what the assistant said just before it, and several calls in a row to one turn."""
    messages: list[ChatMessage] = []
    for item in items:
        match item["type"]:
            case "function_call":
                last = messages[-1] if messages and messages[-1].role == "assistant" else None
                call = ToolCall(item["call_id"], item["name"], item["arguments"])
                if last is None:
                    messages.append(ChatMessage(role="assistant", tool_calls=(call,)))
                else:
                    messages[-1] = msgspec.structs.replace(last, tool_calls=(*last.tool_calls, call))
            case "function_call_output":
                messages.append(ChatMessage(role="tool", content=item["output"], tool_call_id=item["call_id"]))
            case _:
                text = "".join(part["text"] for part in item["content"])
                messages.append(ChatMessage(role=item["role"], content=text))
    return tuple(messages)


def require_calls(earlier: Sequence[JsonObject], items: Sequence[JsonObject]) -> None:
    """Every output belongs to a call before it, or templates make nonsense of it. Raises InvalidRequest."""
    called = {item["call_id"] for item in earlier if item["type"] == "function_call"}
    for index, item in enumerate(items):
        if item["type"] == "function_call":
            called.add(item["call_id"])
        elif item["type"] == "function_call_output" and item["call_id"] not in called:
            param = f"input[{index}].call_id"
            raise InvalidRequest(f"{param}: no function_call before it has the id {item['call_id']!r}.", param=param)


def _input_item(item: InputItem, job_id: JobId, index: int) -> JsonObject:
    param = f"input[{index}]"
    if item.type not in _PREFIX:
        message = f"only message, function_call and function_call_output items, and this is {item.type[:40]!r}."
        raise NotSupportedYet(f"{param}.type", message)
    given = item.id is not None and _GIVEN_ID.fullmatch(item.id)
    id_ = item.id if given and item.id is not None else item_id(item.type, job_id, f"in {index}")
    if item.type == "message":
        return _message(item, id_, param)
    call_id = _required(item.call_id, f"{param}.call_id")
    if item.type == "function_call":
        name = _required(item.name, f"{param}.name")
        if not _NAME.fullmatch(name):
            message = f"{param}.name: 1 to 64 letters, digits, underscores and dashes."
            raise InvalidRequest(message, param=f"{param}.name")
        return call_item(id_, call_id, name, call_arguments(item.arguments, f"{param}.arguments"), "completed")
    output = _text(item.output, f"{param}.output")
    return {"id": id_, "type": item.type, "status": "completed", "call_id": call_id, "output": output}


def _message(item: InputItem, id_: str, param: str) -> JsonObject:
    if item.role not in _ROLES:
        wanted = "user, system, developer or assistant"
        raise InvalidRequest(f"{param}.role: must be {wanted}.", param=f"{param}.role")
    _text(item.content, f"{param}.content")
    if item.role == "assistant":
        content = [output_text(_text_of(part)) for part in item.content]
    else:
        content = [{"type": "input_text", "text": part.text} for part in item.content]
    return {"id": id_, "type": "message", "status": "completed", "role": item.role, "content": content}


def _text(parts: Sequence[InputPart], param: str) -> str:
    """Raises NotSupportedYet for what is no text."""
    for index, part in enumerate(parts):
        if part.type not in _TEXT_PARTS and part.type != "refusal":
            raise NotSupportedYet(f"{param}[{index}].type", f"only text, and this is {part.type[:40]!r}.")
    return "".join(map(_text_of, parts))


def _text_of(part: InputPart) -> str:
    return part.refusal if part.type == "refusal" else part.text


def _required(value: str | None, param: str) -> str:
    if not value:
        raise InvalidRequest(f"{param}: required.", param=param)
    return value
