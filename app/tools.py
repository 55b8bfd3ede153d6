"""The tools of a request, and the calls in its conversation, as jobs carry them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from app.errors import NotSupportedYet
from app.formats import schema_format
from app.schemas.openai import ChatFields, FunctionDefinition, Message, NamedToolChoice
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
    return chosen_tools(
        [tool.function for tool in body.tools or ()],
        choice.function.name if isinstance(choice, NamedToolChoice) else choice,
        limits,
        has_grammar=body.grammar is not None,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        param_of="tools[{}].function.parameters",
    )


def chosen_tools(
    functions: Sequence[FunctionDefinition],
    choice: str,
    limits: ApiSettings,
    *,
    has_grammar: bool,
    parallel_tool_calls: bool,
    param_of: str,
) -> ToolUse:
    """`choice`: none, auto, required, or the name of a tool. `param_of`: where the schema of tool {} stands in the
    request. Raises InvalidRequest."""
    if not functions:
        if choice not in ("auto", "none"):
            raise InvalidRequest("tool_choice: asks for a call, but there are no tools.", param="tool_choice")
        return NO_TOOLS
    if len(functions) > limits.max_tools:
        raise InvalidRequest(f"tools: at most {limits.max_tools}, not {len(functions)}.", param="tools")
    tools = tuple(_tool(function, limits, param_of.format(index)) for index, function in enumerate(functions))
    size = sum(len(tool.parameters.encode()) for tool in tools)
    if size > limits.max_tools_bytes:
        message = f"tools: their parameters have {size} bytes together; at most {limits.max_tools_bytes}."
        raise InvalidRequest(message, param="tools")
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequest("tools: two have the same name.", param="tools")
    if choice == "none":
        return NO_TOOLS
    if has_grammar:
        raise InvalidRequest("grammar: can't be combined with tools.", param="grammar")
    only_tool = None if choice in ("auto", "required") else choice
    if only_tool is not None and only_tool not in names:
        raise InvalidRequest(f"tool_choice: there is no tool {only_tool!r}.", param="tool_choice")
    return ToolUse(tools, choice != "auto", only_tool, parallel_tool_calls and only_tool is None)


def tool_calls(index: int, message: Message) -> tuple[ToolCall, ...]:
    """The calls of an assistant's turn. Raises InvalidRequest."""
    calls = []
    for position, call in enumerate(message.tool_calls or ()):
        param = f"messages[{index}].tool_calls[{position}].function.arguments"
        calls.append(ToolCall(call.id, call.function.name, call_arguments(call.function.arguments, param)))
    return tuple(calls)


def call_arguments(text: str, param: str) -> str:
    """A JSON object as text. Raises InvalidRequest, which blames `param`."""
    text = text or "{}"
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{param}: must be a JSON object, as text.", param=param)
    return text


def _tool(function: FunctionDefinition, limits: ApiSettings, param: str) -> Tool:
    parameters = function.parameters or _NO_ARGUMENTS
    if parameters.setdefault("type", "object") != "object":
        raise InvalidRequest(f"{param}: must describe an object.", param=param)
    # Tools of agents use keywords that nobody enforces; OpenAI's API too is exact only where strict says so.
    schema = schema_format(parameters, limits, param=param, is_lenient=not function.strict)
    shown = {"name": function.name, "description": function.description or "", "parameters": parameters}
    return Tool(name=function.name, definition=json.dumps(shown, ensure_ascii=False), parameters=schema.text)
