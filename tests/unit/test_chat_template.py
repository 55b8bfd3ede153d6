"""Rendering: what Hugging Face's templates need, and what a hostile one may not do."""

from __future__ import annotations

import sys
import time
from datetime import datetime

import pytest

from tasks.errors import InvalidRequest
from tasks.generation import ChatMessage, GenerationRequest
from workers.engine.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)


def chat(*turns: tuple[str, str]) -> GenerationRequest:
    return asking(*(ChatMessage(role=role, content=content) for role, content in turns))


def asking(*messages: ChatMessage, **fields) -> GenerationRequest:
    return GenerationRequest(model="m", messages=messages, **fields)


HELLO = chat(("user", "Hello"))


def render(source: str | None, request: GenerationRequest = HELLO, **options) -> str:
    return ChatTemplate(source, **options).render(request)


def test_chatml_renders_with_blocks_trimmed():
    text = render(CHATML, chat(("system", "Be brief."), ("user", "Hi")))
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_special_tokens_are_available():
    assert render("{{ bos_token }}x{{ eos_token }}", bos_token="<s>", eos_token="</s>") == "<s>x</s>"


def test_missing_template_falls_back_to_plain_turns():
    text = render(None, chat(("system", "Be brief."), ("user", " Hi ")))
    assert text == "System: Be brief.\n\nUser: Hi\n\nAssistant:"


def test_content_is_not_escaped_as_html():
    assert render("{{ messages[0].content }}", chat(("user", "<b>&"))) == "<b>&"


def test_tojson_writes_plain_json():
    assert render("{{ {'a': 'ü<'} | tojson }}") == '{"a": "ü<"}'


def test_strftime_now_follows_the_clock():
    assert render("{{ strftime_now('%Y-%m-%d') }}", now=lambda: datetime(2031, 5, 4)) == "2031-05-04"


def test_generation_blocks_and_loop_controls_are_understood():
    loop = "{% for m in [1,2,3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}"
    source = "{% generation %}" + loop + "{% endgeneration %}"
    assert render(source) == "1"


def test_developer_is_system_where_the_template_does_not_know_it():
    messages = chat(("developer", "x"))
    assert render("{{ messages[0].role }}", messages) == "system"
    assert render("{% if messages[0].role == 'developer' %}known{% endif %}", messages) == "known"


def test_refusal_of_the_template_reaches_the_client():
    with pytest.raises(InvalidRequest, match="Roles must alternate") as raised:
        render("{{ raise_exception('Roles must alternate!') }}")
    assert raised.value.param == "messages"


def test_broken_template_is_reported_when_it_is_used():
    template = ChatTemplate("{% for x in %}")
    with pytest.raises(InvalidRequest, match="can't be used"):
        template.render(HELLO)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% for a in range(1000000000) %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ [0] * 1000000000 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    ],
)
def test_hostile_template_is_stopped(source):
    started = time.monotonic()
    with pytest.raises(InvalidRequest):
        render(source, time_limit_s=0.5)
    assert time.monotonic() - started < 5


def test_silent_endless_loop_is_stopped_in_time():
    source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    with pytest.raises(InvalidRequest, match=r"longer than 0\.05 s"):
        render(source, time_limit_s=0.05)
    assert time.monotonic() - started < 2


def test_tracing_ends_with_the_rendering():
    before = sys.gettrace()
    render(CHATML)
    assert sys.gettrace() is before
