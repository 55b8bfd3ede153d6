"""The tools of a request, and the calls in its conversation, as jobs carry them. Pure."""

from __future__ import annotations

import json
from typing import NamedTuple

from app.errors import NotSupportedYet
from app.formats import schema_format
from app.schemas.openai import ChatFields, Message, NamedToolChoice, ToolDefinition
from app.settings import ApiSettings
from tasks.errors import InvalidRequest
from tasks.generation import Tool, ToolCall

_NO_ARGUMENTS = {"type": "object", "properties": {}}


class ToolUse(NamedTuple):
    """Fields of a GenerationRequest."""

    tools: tuple[Tool, ...]
    must_call_tool: bool
    only_tool: str | None
    parallel_tool_calls: bool


NO_TOOLS = ToolUse((), False, None, True)


def tool_use(body: ChatFields, limits: ApiSettings) -> ToolUse:
    """With tool_choice none the model isn't told of its tools. Raises InvalidRequest."""
    if body.functions or body.function_call:
        raise NotSupportedYet("functions", "send tools and tool_choice, which took their place.")
    choice = body.tool_choice or "auto"
    if not body.tools:
        if choice not in ("auto", "none"):
            raise InvalidRequest("tool_choice: asks for a call, but there are no tools.", param="tool_choice")
        return NO_TOOLS
    if len(body.tools) > limits.max_tools:
        raise InvalidRequest(f"tools: at most {limits.max_tools}, not {len(body.tools)}.", param="tools")
    tools = tuple(_tool(index, tool, limits) for index, tool in enumerate(body.tools))
    size = sum(len(tool.parameters.encode()) for tool in tools)
    if size > limits.max_tools_bytes:
        message = f"tools: their parameters have {size} bytes together; at most {limits.max_tools_bytes}."
        raise InvalidRequest(message, param="tools")
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequest("tools: two have the same name.", param="tools")
    if choice == "none":
        return NO_TOOLS
    if body.grammar is not None:
        raise InvalidRequest("grammar: can't be combined with tools.", param="grammar")
    only_tool = choice.function.name if isinstance(choice, NamedToolChoice) else None
    if only_tool is not None and only_tool not in names:
        raise InvalidRequest(f"tool_choice: there is no tool {only_tool!r}.", param="tool_choice")
    parallel = body.parallel_tool_calls is not False and only_tool is None
    return ToolUse(tools, choice != "auto", only_tool, parallel)


def tool_calls(index: int, message: Message) -> tuple[ToolCall, ...]:
    """The calls of an assistant's turn. Raises InvalidRequest."""
    calls = []
    for position, call in enumerate(message.tool_calls or ()):
        text = call.function.arguments or "{}"
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            param = f"messages[{index}].tool_calls[{position}].function.arguments"
            raise InvalidRequest(f"{param}: must be a JSON object, as text.", param=param)
        calls.append(ToolCall(call.id, call.function.name, text))
    return tuple(calls)


def _tool(index: int, tool: ToolDefinition, limits: ApiSettings) -> Tool:
    function = tool.function
    param = f"tools[{index}].function.parameters"
    parameters = function.parameters or _NO_ARGUMENTS
    if parameters.setdefault("type", "object") != "object":
        raise InvalidRequest(f"{param}: must describe an object.", param=param)
    # Tools of agents use keywords that nobody enforces; OpenAI's API too is exact only where strict says so.
    schema = schema_format(parameters, limits, param=param, is_lenient=not function.strict)
    shown = {"name": function.name, "description": function.description or "", "parameters": parameters}
    return Tool(name=function.name, definition=json.dumps(shown, ensure_ascii=False), parameters=schema.text)
