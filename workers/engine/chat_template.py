"""Chat messages → prompt text, by the Jinja template that a model file carries. Pure but for the clock.

The template comes from the model file and is untrusted (CVE-2024-34359): it renders in Jinja's immutable sandbox, with
bounds on its time, its output and its cheapest memory bombs. What is left to a hostile template is to exhaust the
runner process of its own model. The names that a template may use are those of Hugging Face's
`apply_chat_template`, because templates are written against it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.errors import InvalidRequest
from tasks.generation import ChatMessage, GenerationRequest, JsonObject, ToolCall
from workers.engine.generic_tools import plain_messages
from workers.engine.tool_formats import format_of

TIME_LIMIT_S = 2.0
MAX_OUTPUT_CHARS = 16 * 1024 * 1024
MAX_SOURCE_CHARS = 1024 * 1024
_MAX_REPEATED = 1_000_000  # elements that a multiplication in a template may make
_MAX_POWER_BITS = 4096
_TEMPLATE_FILE = "<template>"  # how Jinja names code compiled from a string

# For files without a template, mostly base models: plain turns, as they occur in text that such models have read.
FALLBACK = """\
{%- for message in messages %}
{{- message.role | capitalize }}: {{ message.content | trim }}

{% endfor %}
{%- if add_generation_prompt %}{{ "Assistant:" }}{% endif %}"""


class ChatTemplate:
    """One model's template, compiled once. `render` may be called from any thread."""

    def __init__(
        self,
        source: str | None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        now: Callable[[], datetime] = datetime.now,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        """Never raises: a model whose template is broken can still serve raw prompts; `render` tells what is wrong."""
        source = source or FALLBACK
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._time_limit_s = time_limit_s
        # Few templates know OpenAI's newer name for system.
        self._has_system_role = "system" in source and "System role not supported" not in source
        self.tool_format = format_of(source)
        self._developer_role = "developer" if "developer" in source else "system"
        self._problem = ""
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
        try:
            if len(source) > MAX_SOURCE_CHARS:
                raise TemplateError(f"it has {len(source)} characters")
            with _time_limit(time_limit_s):
                self._template = environment.from_string(source)
        except Exception as error:
            self._problem = f"The model's chat template can't be used: {_sentence(error)}"

    def render(self, request: GenerationRequest) -> str:
        """The prompt text of its messages, ending where the assistant is to speak. Raises InvalidRequest."""
        if self._problem:
            raise InvalidRequest(self._problem, param="messages")
        try:
            with _time_limit(self._time_limit_s):
                return self._joined(self._messages(request), self._tools(request))
        except Exception as error:
            raise InvalidRequest(
                f"The model's chat template does not accept these messages: {_sentence(error)}", param="messages"
            ) from None

    def _messages(self, request: GenerationRequest) -> list[JsonObject]:
        if self.tool_format.is_native:
            messages = request.messages or ()
        else:
            messages = plain_messages(request, has_system_role=self._has_system_role)
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        return [self._as_dict(message, names) for message in messages]

    def _tools(self, request: GenerationRequest) -> list[JsonObject] | None:
        if not (request.tools and self.tool_format.is_native):
            return None
        return [{"type": "function", "function": json.loads(tool.definition)} for tool in request.tools]

    def _joined(self, messages: list[JsonObject], tools: list[JsonObject] | None) -> str:
        parts, size = [], 0
        for part in self._template.generate(
            messages=messages, add_generation_prompt=True, tools=tools, documents=None, **self._tokens
        ):
            size += len(part)
            if size > MAX_OUTPUT_CHARS:
                raise TemplateError(f"the prompt grew beyond {MAX_OUTPUT_CHARS} characters")
            parts.append(part)
        return "".join(parts)

    def _as_dict(self, message: ChatMessage, names: Mapping[str, str]) -> JsonObject:
        """Optional members are absent when they are empty, since templates ask whether they are defined. Arguments
        are an object, as Hugging Face passes them. A tool's turn has the name of its tool."""
        role = self._developer_role if message.role == "developer" else message.role
        turn: JsonObject = {"role": role, "content": message.content}
        name = message.name or names.get(message.tool_call_id or "")
        if name is not None:
            turn["name"] = name
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            turn["tool_calls"] = [_call_as_dict(call) for call in message.tool_calls]
        return turn


def _call_as_dict(call: ToolCall) -> JsonObject:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


class _Environment(ImmutableSandboxedEnvironment):
    """Bounds the operators that turn a short expression into gigabytes; intercepted ones aren't folded either."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            if not _is_number(left) or not _is_number(right) or abs(right) * _bits(left) > _MAX_POWER_BITS:
                raise SecurityError("a power in the template is too large")
        elif isinstance(left, str) and re.search(r"\d{5}|\*", left):
            raise SecurityError("a format in the template is too wide")
        return super().call_binop(context, operator, left, right)


def _check_product(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple | bytes) and _is_number(times):
            if len(value) * times > _MAX_REPEATED:
                raise SecurityError("a repetition in the template is too long")
        elif _is_number(value) and _bits(value) > _MAX_POWER_BITS:
            raise SecurityError("a number in the template is too large")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 64


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@contextmanager
def _time_limit(limit_s: float) -> Iterator[None]:
    """Raise TimeoutError in this thread at the first template line after the deadline.

    A trace function is the one way to interrupt a loop that neither calls nor outputs anything. Only frames of
    templates are traced line by line; everything else costs one check per call.
    """
    deadline = time.monotonic() + limit_s

    def on_line(_frame: FrameType, _event: str, _argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise TimeoutError(f"it took longer than {limit_s:g} s")
        return on_line

    def on_call(frame: FrameType, _event: str, _argument: Any) -> Any:
        return on_line if frame.f_code.co_filename == _TEMPLATE_FILE else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """As Hugging Face does it: without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300].rstrip(".") + "."
