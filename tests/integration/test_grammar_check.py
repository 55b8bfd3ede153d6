"""The process that tries grammars: it may die of one, and nobody else notices."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import pytest

from app.grammar_check import GrammarCheck
from tasks.errors import InvalidRequest
from tasks.generation import AnswerFormat, GenerationRequest
from tasks.grammars import json_schema_format

pytestmark = pytest.mark.integration

FINE = json_schema_format({"type": "object"}, is_lenient=False)
BAD = json_schema_format({"not": {}}, is_lenient=False)
# Thousands of rules that lead to the next one overflow the stack of the compiler.
DEADLY = AnswerFormat(
    kind="gbnf", text="\n".join(["root ::= a0", *(f"a{i} ::= a{i + 1}" for i in range(3000)), 'a3000 ::= "x"'])
)
# Says that it is ready, and then does something for every line.
SCRIPT = "import os, sys, time\nprint('\"\"', flush=True)\nfor line in sys.stdin:\n    {}\n"


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
    with pytest.raises(InvalidRequest, match=r'^response_format: Unimplemented keys: \["not"\]\.$'):
        await check.check(asking(BAD))


async def test_request_without_a_format_starts_nothing():
    broken = GrammarCheck(("/nowhere",))
    await broken.check(GenerationRequest(model="m", prompt="?"))
    await broken.close()


async def test_process_serves_many_grammars_and_each_is_tried_once(tmp_path):
    log = tmp_path / "log"
    check = scripted(f"open({str(log)!r}, 'a').write('x'); print('\"\"', flush=True)")
    for _ in range(3):
        await check.check(asking(FINE))
        await check.check(asking(BAD))
    await check.close()
    assert log.read_text() == "xx"


async def test_compiler_that_hangs_is_ended():
    check = scripted("time.sleep(60)", wall_s=0.2)
    with pytest.raises(InvalidRequest, match="can't be compiled"):
        await check.check(asking(FINE))
    await check.close()
