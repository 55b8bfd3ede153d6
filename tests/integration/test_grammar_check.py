"""The process that tries grammars: it may die of one, and nobody else notices."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest

from app.errors import FormatNotTried
from app.grammar_check import GrammarCheck
from tasks.errors import InvalidRequest
from tasks.generation import AnswerFormat, GenerationRequest, Tool
from tasks.grammars import json_schema_format

pytestmark = pytest.mark.integration

FINE = json_schema_format({"type": "object"}, is_lenient=False)
BAD = json_schema_format({"not": {}}, is_lenient=False)
# Thousands of rules that lead to the next one overflow the stack of the compiler.
DEADLY = AnswerFormat(
    kind="gbnf", text="\n".join(["root ::= a0", *(f"a{i} ::= a{i + 1}" for i in range(3000)), 'a3000 ::= "x"'])
)
# Says that it is ready, and then does something for every line.
SCRIPT = "import os, sys, time\nprint('ready', flush=True)\nfor line in sys.stdin:\n    {}\n"


def asking(answer_format: AnswerFormat) -> GenerationRequest:
    return GenerationRequest(model="m", prompt="?", answer_format=answer_format)


def scripted(on_line: str, **options) -> GrammarCheck:
    return GrammarCheck((sys.executable, "-c", SCRIPT.format(on_line)), **options)


@pytest.fixture
async def check() -> AsyncIterator[GrammarCheck]:
    check = GrammarCheck()
    yield check
    await check.close()


async def test_grammar_that_kills_its_compiler_is_a_bad_request_and_the_next_one_passes(check):
    with pytest.raises(InvalidRequest, match=r"^grammar: it can't be compiled within 2 s and 1024 MiB") as caught:
        await check.check(asking(DEADLY))
    assert caught.value.param == "grammar"
    await check.check(asking(FINE))
    with pytest.raises(InvalidRequest, match=r'^response_format: Unimplemented keys: \["not"\]; leave them out'):
        await check.check(asking(BAD))


async def test_request_without_a_format_starts_nothing():
    broken = GrammarCheck(("/nowhere",))
    await broken.check(GenerationRequest(model="m", prompt="?"))
    await broken.close()


async def test_process_serves_many_grammars_and_each_is_tried_once(tmp_path):
    log = tmp_path / "log"
    check = scripted(f"open({str(log)!r}, 'a').write('x'); print('{{}}', flush=True)")
    for _ in range(3):
        await check.check(asking(FINE))
        await check.check(asking(BAD))
    await check.close()
    assert log.read_text() == "xx"


async def test_busy_machine_is_no_verdict_and_the_next_try_is_asked_again(tmp_path):
    log = tmp_path / "log"
    check = scripted(
        f"open({str(log)!r}, 'a').write('x'); len(open({str(log)!r}).read()) > 1 or time.sleep(60); "
        "print('{}', flush=True)",
        wall_s=1.0,
    )
    with pytest.raises(FormatNotTried, match=r"not tried within 1 s: this machine is busy\. Retry in about 5 s"):
        await check.check(asking(FINE))
    await check.check(asking(FINE))
    await check.close()


@pytest.mark.parametrize("script", ["import time; time.sleep(60)", ""], ids=["slow", "dead"])
async def test_process_that_does_not_start_is_ended_and_blames_no_format(script: str, monkeypatch):
    started = []
    spawn = asyncio.create_subprocess_exec

    async def watched(*command, **options):
        started.append(await spawn(*command, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)
    check = GrammarCheck((sys.executable, "-c", script), start_s=0.5)
    for _ in range(2):
        with pytest.raises(FormatNotTried, match=r"not ready within 0\.5 s"):
            await check.check(asking(FINE))
    assert [process.returncode is None for process in started] == [False, False]
    await check.close()


async def test_tools_that_pass_alone_are_refused_when_they_are_too_much_together(check):
    def tool(number: int) -> Tool:
        properties = {f"p{number}_{index}": {"type": "string"} for index in range(800)}
        schema = {"type": "object", "properties": properties, "required": [*properties]}
        parameters = json_schema_format(schema, is_lenient=False).text
        return Tool(name=f"t{number}", definition="{}", parameters=parameters)

    tools = [tool(number) for number in range(120)]
    await check.check(GenerationRequest(model="m", prompt="?", tools=tuple(tools[:1])))
    with pytest.raises(InvalidRequest, match=r"^tools: these formats together can't be compiled within 2 s") as caught:
        await check.check(GenerationRequest(model="m", prompt="?", tools=tuple(tools)))
    assert caught.value.param == "tools"


async def test_one_bad_tool_among_several_is_named(check):
    tools = [Tool(name=f"t{number}", definition="{}", parameters=each.text) for number, each in enumerate([FINE, BAD])]
    with pytest.raises(InvalidRequest, match=r'^tools\[1\]\.function\.parameters: Unimplemented keys: \["not"\]'):
        await check.check(GenerationRequest(model="m", prompt="?", tools=tuple(tools)))
