"""Tools for models whose chat template knows none: described in plain words, called in a form of ours. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tasks.generation import ChatMessage, GenerationRequest, ToolCall

_MAY = "To use tools, answer with nothing but"
_MUST = "Use tools now: answer with nothing but"
_EXAMPLE = '{"tool_calls": [{"name": "<name of the tool>", "arguments": {<its arguments>}}]}'


def plain_messages(request: GenerationRequest, *, has_system_role: bool) -> tuple[ChatMessage, ...]:
    """The conversation without tool roles and calls, and with a description of the tools that may be called."""
    conversation = request.messages or ()
    if not request.tools and not any(message.role == "tool" or message.tool_calls for message in conversation):
        return conversation
    messages = list(_merged(map(_plain, conversation)))
    if request.tools:
        rule = f"{_MUST if request.must_call_tool else _MAY} {_EXAMPLE}"
        lines = ["You have these tools:", *(tool.definition for tool in request.tools), rule]
        _prepend(messages, "\n".join(lines), "system" if has_system_role else "user")
    return tuple(messages)


def _plain(message: ChatMessage) -> ChatMessage:
    if message.role == "tool":
        result = json.dumps({"tool_call_id": message.tool_call_id, "content": message.content}, ensure_ascii=False)
        return ChatMessage(role="user", content=f'{{"tool_result": {result}}}')
    if message.tool_calls:
        calls = ", ".join(map(_call, message.tool_calls))
        text = f'{{"tool_calls": [{calls}]}}'
        return ChatMessage(role=message.role, content=f"{message.content}\n{text}" if message.content else text)
    return message


def _call(call: ToolCall) -> str:
    return f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}'


def _merged(messages: Iterable[ChatMessage]) -> Iterator[ChatMessage]:
    """Turns of the same user in a row as one: many templates insist on alternation."""
    previous: ChatMessage | None = None
    for message in messages:
        if previous is not None and previous.role == message.role == "user":
            previous = ChatMessage(role="user", content=f"{previous.content}\n{message.content}", name=previous.name)
            continue
        if previous is not None:
            yield previous
        previous = message
    if previous is not None:
        yield previous


def _prepend(messages: list[ChatMessage], text: str, role: str) -> None:
    first = messages[0] if messages else None
    if first is not None and (first.role == role or {first.role, role} == {"system", "developer"}):
        messages[0] = ChatMessage(role=first.role, content=f"{text}\n\n{first.content}".rstrip(), name=first.name)
    else:
        messages.insert(0, ChatMessage(role=role, content=text))
