"""How the families of models word tool calls, and the grammar of an answer that may or must call tools. Pure.

A family is told by its chat template. Models whose template knows no tools are told about them in plain words and
answer in a form of ours, like llama-server's generic handler. `app.tool_calls` reads all of these forms.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tasks.errors import GrammarFailed
from tasks.generation import GenerationRequest, Tool
from tasks.grammars import NO_FORCING

MAX_CALLS = 16  # in one answer
# Some vocabularies have these as control tokens, which are no text otherwise.
TOOL_MARKERS = frozenset({b"<tool_call>", b"</tool_call>", b"[TOOL_CALLS]", b"<|python_tag|>"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """Texts around calls. One call is `{"name": "…", "<arguments>": {…}}`."""

    trigger: str  # where it appears, a call follows; empty: a call is the whole answer
    opening: str  # between the trigger and the first call
    between: str | None  # None: only one call fits into an answer
    closing: str
    arguments: str = "arguments"
    is_native: bool = True  # the template itself takes tools


HERMES = ToolFormat(  # Nous Hermes 2 Pro, Qwen 2.5 and 3
    trigger="<tool_call>", opening="\n", between="\n</tool_call>\n<tool_call>\n", closing="\n</tool_call>"
)
MISTRAL = ToolFormat(trigger="[TOOL_CALLS]", opening="[", between=", ", closing="]")
LLAMA_3 = ToolFormat(trigger="", opening="", between=None, closing="", arguments="parameters")
GENERIC = ToolFormat(trigger="", opening='{"tool_calls": [', between=", ", closing="]}", is_native=False)


def format_of(template: str) -> ToolFormat:
    """By what the template writes. Families whose calls are no JSON (`<function=…>`, `[ARGS]`) get the generic form."""
    if "tools" not in template or "<function=" in template or "[ARGS]" in template:
        return GENERIC
    if "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<|python_tag|>" in template or "ipython" in template:
        return LLAMA_3
    return GENERIC


def grammar_with_tools(request: GenerationRequest, form: ToolFormat) -> str:
    """What may be answered to a request with tools, in llguidance's Lark. Raises GrammarFailed.

    Arguments are enforced also where the model is free to call: from the moment on at which it is certain that it does.
    """
    tools = [tool for tool in request.tools if request.only_tool in (None, tool.name)]
    gap = '" "?' if form.trigger and form.opening.startswith("[") else ""
    more = (
        f"({_quoted(form.between)} call){{0,{MAX_CALLS - 1}}}" if form.between and request.parallel_tool_calls else ""
    )
    rules = [
        f"calls: {gap} first {more} {_quoted(form.closing)}",
        "first: " + " | ".join(f"first_{number}" for number in range(len(tools))),
        "call: " + " | ".join(f"call_{number}" for number in range(len(tools))),
    ]
    for number, tool in enumerate(tools):
        # One lexeme up to the arguments: with its last character it is certain that this is a call.
        rules.append(f'first_{number}: {_quoted(form.opening + _head(tool, form))} args_{number} "}}"')
        rules.append(f'call_{number}: {_quoted(_head(tool, form))} args_{number} "}}"')
        rules.append(f"args_{number}: %json {tool.parameters}")
    if request.must_call_tool:
        rules.append(f"start: {_quoted(form.trigger)} calls")
    elif request.answer_format is not None and not form.trigger:
        raise GrammarFailed("with this model a tool call can't be told from a JSON answer; ask for one of them.")
    elif request.answer_format is not None:
        rules += [f"start: {_quoted(form.trigger)} calls | answer", f"answer: %json {request.answer_format.text}"]
    elif form.trigger:
        # A lazy lexeme ends at the first trigger; what follows must be calls.
        start = "block* TEXT" if request.parallel_tool_calls else "block | TEXT"
        rules += [f"start: {start}", "block: head calls", f"head[lazy]: TEXT {_quoted(form.trigger)}"]
        rules.append(r"TEXT: /(.|\n)*/")
    else:
        begins = "|".join(re.escape(form.opening + _head(tool, form)).replace("/", r"\/") for tool in tools)
        rules += ["start: TEXT | calls", f"TEXT: /(?s:.*)/ & ~/(?:{begins})(?s:.*)/"]
    return NO_FORCING + "\n".join(rules)


def _head(tool: Tool, form: ToolFormat) -> str:
    return f'{{"name": "{tool.name}", "{form.arguments}": '


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""
