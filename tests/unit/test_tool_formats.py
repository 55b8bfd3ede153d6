"""Tools in prompts and answers, for small templates of each family."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from app.tool_calls import Arguments, CallBegins, ToolCallReader
from tasks.errors import GrammarFailed
from tasks.generation import AnswerFormat, ChatMessage, GenerationRequest, Tool, ToolCall
from tasks.grammars import LIMITS, json_object_format, json_schema_format
from workers.engine.chat_template import ChatTemplate
from workers.engine.tool_formats import GENERIC, HERMES, LLAMA_3, MISTRAL, ToolFormat, format_of, grammar_with_tools

HERMES_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nAnswer with <tool_call>{"name": <name>, "arguments": <arguments>}</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
MISTRAL_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and loop.last %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('Tool call ids have length 9') }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (', ' if not loop.last else '') }}
{%- endfor %}
{{- ']' + eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{ ' ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}"""
LLAMA_3_TEMPLATE = """\
{%- for message in messages %}
{%- if message.tool_calls %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
{{- '"parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
{%- elif message.role == 'tool' or message.role == 'ipython' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (message.content | tojson) + '<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if loop.first and tools %}{% for tool in tools %}{{ (tool | tojson) + '\\n' }}{% endfor %}{% endif %}
{{- message.content + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
PLAIN_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<assistant>"
SYSTEM_TEMPLATE = PLAIN_TEMPLATE + "{# knows system #}{% if messages[0].role == 'system' %}{% endif %}"

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOSED = PARAMETERS | {"additionalProperties": False}


def tool(name: str, parameters: dict | None = None) -> Tool:
    shown = {"name": name, "description": f"Does {name}.", "parameters": PARAMETERS}
    schema = json_schema_format(parameters or CLOSED, is_lenient=True)
    return Tool(name=name, definition=json.dumps(shown), parameters=schema.text)


TOOLS = (
    tool("weather"),
    tool("weather_at", {"type": "object", "properties": {"hour": {"type": "integer", "maximum": 9}}}),
)
CONVERSATION = (
    ChatMessage(role="user", content="Is it raining?"),
    ChatMessage(role="assistant", tool_calls=(ToolCall("abcdefghi", "weather", '{"city": "Zürich"}'),)),
    ChatMessage(role="tool", content='{"rain": true}', tool_call_id="abcdefghi"),
)


def request(**fields) -> GenerationRequest:
    return GenerationRequest(model="m", **{"messages": CONVERSATION, "tools": TOOLS} | fields)


def accepts(what: GenerationRequest, form: ToolFormat, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), grammar_with_tools(what, form), limits=LIMITS)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.validate_tokens(data) == len(data) and matcher.consume_tokens(data) and matcher.is_accepting()


# ---- prompts


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (HERMES_TEMPLATE, HERMES),
        (MISTRAL_TEMPLATE, MISTRAL),
        (LLAMA_3_TEMPLATE, LLAMA_3),
        (PLAIN_TEMPLATE, GENERIC),
        ("{{ tools }}<tool_call><function=name>", GENERIC),
        ("{{ tools }}[TOOL_CALLS]name[ARGS]{}", GENERIC),
    ],
)
def test_family_is_told_by_the_template(template: str, form: ToolFormat):
    assert format_of(template) is form


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        (
            HERMES_TEMPLATE,
            ['"Does weather."', '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}', "<tool_response>"],
        ),
        (
            MISTRAL_TEMPLATE,
            [
                '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Zürich"}, "id": "abcdefghi"}]',
                "[TOOL_RESULTS]",
            ],
        ),
        (LLAMA_3_TEMPLATE, ['"Does weather."', '{"name": "weather", "parameters": {"city": "Zürich"}}', "ipython"]),
        (
            SYSTEM_TEMPLATE,
            [
                "<system>You have these tools:",
                '<assistant>{"tool_calls": [{"name": "weather", "arguments": {"city": "Zürich"}}]}</assistant>',
                '<user>{"tool_result": {"tool_call_id": "abcdefghi", "content": "{\\"rain\\": true}"}}</user>',
            ],
        ),
    ],
)
def test_tools_calls_and_results_reach_the_prompt(template: str, parts: list[str]):
    prompt = ChatTemplate(template).render(request())
    assert [part for part in parts if part not in prompt] == []


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, SYSTEM_TEMPLATE + "{# System role not supported #}"])
def test_model_without_a_system_role_is_told_of_tools_by_the_user(template: str):
    prompt = ChatTemplate(template).render(request(must_call_tool=True))
    assert prompt.startswith("<user>You have these tools:")
    assert "Use tools now" in prompt
    assert prompt.count("Is it raining?") == 1


def test_system_message_of_the_client_stays_below_the_description():
    messages = (ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hi"))
    prompt = ChatTemplate(SYSTEM_TEMPLATE).render(request(messages=messages))
    assert prompt.count("<system>") == 1
    assert "\n\nBe brief.</system><user>Hi</user>" in prompt


def test_conversation_without_tools_is_left_as_it_is():
    messages = (ChatMessage(role="user", content="a"), ChatMessage(role="user", content="b"))
    what = request(messages=messages, tools=())
    assert ChatTemplate(PLAIN_TEMPLATE).render(what) == "<user>a</user><user>b</user><assistant>"


# ---- answers


def answer(form: ToolFormat, *calls: tuple[str, str]) -> str:
    bodies = [f'{{"name": "{name}", "{form.arguments}": {arguments}}}' for name, arguments in calls]
    return form.trigger + form.opening + (form.between or "").join(bodies) + form.closing


RAIN, LATE = ("weather", '{"city": "Zür \\"ich\\" 🙂"}'), ("weather_at", '{"hour": 7}')
FORMS = pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA_3, GENERIC])


@FORMS
@pytest.mark.parametrize("must_call_tool", [False, True])
def test_calls_that_the_grammar_lets_through_are_those_that_the_reader_finds(form: ToolFormat, must_call_tool: bool):
    for calls in [(RAIN,), (LATE,)] if form.between is None else [(RAIN,), (RAIN, LATE, RAIN)]:
        text = answer(form, *calls)
        assert accepts(request(must_call_tool=must_call_tool), form, text)
        reader = ToolCallReader(frozenset(each.name for each in TOOLS))
        deltas = reader.feed(text) + reader.finish()
        assert [delta.name for delta in deltas if isinstance(delta, CallBegins)] == [name for name, _ in calls]
        assert "".join(delta.text for delta in deltas if isinstance(delta, Arguments)) == "".join(
            arguments for _, arguments in calls
        )


@FORMS
def test_arguments_keep_to_their_schema_also_where_calling_is_free(form: ToolFormat):
    for what in (request(), request(must_call_tool=True)):
        assert not accepts(what, form, answer(form, ("weather", '{"town": "x"}')))
        assert not accepts(what, form, answer(form, ("weather_at", '{"hour": 10}')))
        assert not accepts(what, form, answer(form, ("weather", '{"city": "x"')))


@FORMS
def test_text_is_free_until_it_calls_and_forbidden_where_a_call_is_demanded(form: ToolFormat):
    for text in ("It rains.", "", '{"rain": true}', "[1, 2]", "a < b"):
        assert accepts(request(), form, text)
        assert not accepts(request(must_call_tool=True), form, text)


@FORMS
def test_only_the_named_tool_may_be_called(form: ToolFormat):
    what = request(must_call_tool=True, only_tool="weather_at", parallel_tool_calls=False)
    assert accepts(what, form, answer(form, LATE))
    assert not accepts(what, form, answer(form, RAIN))


@pytest.mark.parametrize("form", [HERMES, MISTRAL, GENERIC])
@pytest.mark.parametrize("must_call_tool", [False, True])
def test_one_call_only_without_parallel_calls(form: ToolFormat, must_call_tool: bool):
    what = request(must_call_tool=must_call_tool, parallel_tool_calls=False)
    assert accepts(what, form, answer(form, RAIN))
    assert not accepts(what, form, answer(form, RAIN, LATE))


@pytest.mark.parametrize("form", [HERMES, MISTRAL])
def test_free_answer_with_tools_can_be_kept_to_a_schema(form: ToolFormat):
    what = request(answer_format=json_object_format())
    assert accepts(what, form, '{"rain": true}')
    assert accepts(what, form, answer(form, RAIN))
    assert not accepts(what, form, "It rains.")


def test_json_answer_that_could_be_a_call_is_refused():
    with pytest.raises(GrammarFailed, match="can't be told from"):
        grammar_with_tools(request(answer_format=AnswerFormat(kind="json_schema", text="{}")), LLAMA_3)


def test_references_within_a_tools_schema_stay_within_it():
    schema = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"const": 3}}}
    what = request(tools=(tool("f", schema), tool("g", schema)), must_call_tool=True)
    assert accepts(what, HERMES, answer(HERMES, ("g", '{"n": 3}')))
    assert not accepts(what, HERMES, answer(HERMES, ("g", '{"n": 4}')))
