"""What the fields of a response's request ask of the engine, and how its answer repeats them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import NotSupportedYet
from app.formats import grammar_format, schema_format
from app.schemas.openai import FunctionDefinition
from app.schemas.responses import INCLUDE_LOGPROBS, NamedTool, ResponseBody, ResponseTool, TextFormat, ToolChoiceObject
from app.service_tiers import served_tier
from app.settings import ApiSettings
from app.tools import ToolUse, chosen_tools
from tasks.errors import InvalidRequest
from tasks.generation import AnswerFormat, JsonObject, SamplingParams
from tasks.grammars import json_object_format

# Parts of answers that only tools and models of other kinds have: asking for them adds nothing.
_NEVER_THERE = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
_MOVED = {"max_tokens": "max_output_tokens", "response_format": "text.format"}


def refuse_unsupported(body: ResponseBody) -> None:
    """Raises InvalidRequest for what would change the answer, and that Keepwarm lacks."""
    for name, new_name in _MOVED.items():
        if getattr(body, name) is not None:
            raise InvalidRequest(f"{name}: on this route it is called {new_name}.", param=name)
    if body.n not in (None, 1):
        raise NotSupportedYet("n", "a response has one answer; send several requests.")
    if body.conversation:
        raise NotSupportedYet("conversation", "send previous_response_id, or the items themselves.")
    if body.prompt:
        raise NotSupportedYet("prompt", "no templates are kept here; send instructions and input.")
    if body.context_management:
        raise NotSupportedYet("context_management", "leave out old items yourself.")
    if body.truncation == "auto":
        raise NotSupportedYet("truncation", "an input that is too long is refused; leave out old items yourself.")
    for index, name in enumerate(body.include or ()):
        if name != INCLUDE_LOGPROBS and name not in _NEVER_THERE:
            raise InvalidRequest(f"include[{index}]: there is nothing called {name[:80]!r}.", param=f"include[{index}]")


def is_stored(body: ResponseBody, limits: ApiSettings) -> bool:
    """Raises InvalidRequest."""
    stored = limits.store_responses if body.store is None else body.store
    if body.background and not stored:
        message = "background: needs store to be true, for the answer is fetched later."
        raise InvalidRequest(message, param="background")
    return stored


def response_logprobs(body: ResponseBody) -> int | None:
    """As in GenerationRequest. Raises InvalidRequest."""
    if INCLUDE_LOGPROBS not in (body.include or ()):
        if body.top_logprobs:
            raise InvalidRequest(f"top_logprobs: needs include to have {INCLUDE_LOGPROBS!r}.", param="top_logprobs")
        return None
    if body.tools:
        raise NotSupportedYet("include", "log probabilities are given for answers without tools only.")
    return body.top_logprobs or 0


def response_format(body: ResponseBody, limits: ApiSettings) -> AnswerFormat | None:
    """Raises InvalidRequest."""
    wanted = _format(body)
    if body.grammar is not None:
        if wanted.type != "text":
            raise InvalidRequest("grammar: can't be combined with text.format.", param="grammar")
        return grammar_format(body.grammar, limits)
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return json_object_format()
    for name, value in (("name", wanted.name), ("schema", wanted.definition)):
        if value is None:
            param = f"text.format.{name}"
            raise InvalidRequest(f"{param}: required with type json_schema.", param=param)
    return schema_format(wanted.definition or {}, limits, param="text.format.schema", is_lenient=wanted.strict is False)


def response_tools(body: ResponseBody, limits: ApiSettings) -> ToolUse:
    """Raises InvalidRequest."""
    functions = [_function(index, tool) for index, tool in enumerate(body.tools or ())]
    choice = "auto" if body.tool_choice is None else body.tool_choice
    allowed = {function.name for function in functions}
    if isinstance(choice, ToolChoiceObject) and choice.type == "allowed_tools":
        allowed = _allowed(choice.tools, allowed)
        choice = choice.mode
    use = chosen_tools(
        functions,
        _named(choice, "tool_choice") if isinstance(choice, ToolChoiceObject) else choice,
        limits,
        has_grammar=body.grammar is not None,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        param_of="tools[{}].parameters",
    )
    return use._replace(tools=tuple(tool for tool in use.tools if tool.name in allowed))


def echo(body: ResponseBody, sampling: SamplingParams, *, stored: bool) -> JsonObject:
    """Members of the response object that say what was asked for, defaults included."""
    choice = body.tool_choice
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "service_tier": served_tier(body.service_tier, body.level),
        "store": stored,
        "temperature": sampling.temperature,
        "text": {"format": _format_object(_format(body))},
        "tool_choice": _choice_object(choice) if isinstance(choice, ToolChoiceObject) else choice or "auto",
        "tools": [_tool_object(tool) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _format(body: ResponseBody) -> TextFormat:
    return (body.text and body.text.format) or TextFormat()


def _function(index: int, tool: ResponseTool) -> FunctionDefinition:
    param = f"tools[{index}]"
    if tool.type != "function":
        raise NotSupportedYet(f"{param}.type", f"only tools of type function, and this is {tool.type[:40]!r}.")
    if tool.name is None:
        raise InvalidRequest(f"{param}.name: required.", param=f"{param}.name")
    return FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )


def _allowed(tools: Sequence[NamedTool], known: set[str]) -> set[str]:
    allowed = {_named(tool, f"tool_choice.tools[{index}]") for index, tool in enumerate(tools)}
    unknown = allowed - known
    if unknown or not allowed:
        problem = f"there is no tool {min(unknown)!r}" if unknown else "it allows none"
        raise InvalidRequest(f"tool_choice.tools: {problem}.", param="tool_choice.tools")
    return allowed


def _named(choice: NamedTool, param: str) -> str:
    if choice.type != "function" or choice.name is None:
        raise NotSupportedYet(f"{param}.type", "only a function with its name.")
    return choice.name


def _format_object(wanted: TextFormat) -> JsonObject:
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    head: JsonObject = {"type": wanted.type, "name": wanted.name, "description": wanted.description}
    return head | {"schema": wanted.definition, "strict": wanted.strict}


def _choice_object(choice: ToolChoiceObject) -> JsonObject:
    if choice.type != "allowed_tools":
        return {"type": choice.type, "name": choice.name}
    tools = [{"type": tool.type, "name": tool.name} for tool in choice.tools]
    return {"type": choice.type, "mode": choice.mode, "tools": tools}


def _tool_object(tool: ResponseTool) -> JsonObject:
    return {
        "type": tool.type,
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
