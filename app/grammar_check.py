"""Refuse a grammar that can't be compiled before its job is admitted.

Grammars come from clients and are compiled by native code, so each new one is tried in a process that may die of it
(`app.grammar_trial`). What came out is remembered: clients send the same schema over and over.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from app.grammar_trial import CPU_S, MEMORY_BYTES
from tasks.errors import InvalidRequest
from tasks.generation import AnswerFormat, GenerationRequest

WALL_S = 10.0  # a grammar has 2 s of CPU time; a machine may be busy
START_S = 30.0
PROCESSES = 2  # at once: one client's slow grammars hold up nobody else's
COMMAND = (sys.executable, "-m", "app.grammar_trial")
_REMEMBERED = 4096

_TOO_HARD = f"it can't be compiled within {CPU_S} s and {MEMORY_BYTES >> 20} MiB, or is nested too deeply"


class GrammarCheck:
    """One per application, used by one event loop. Processes start when they are first needed."""

    def __init__(self, command: Sequence[str] = COMMAND, *, wall_s: float = WALL_S) -> None:
        self._command = command
        self._wall_s = wall_s
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()
        self._idle: list[asyncio.subprocess.Process] = []
        self._places = asyncio.Semaphore(PROCESSES)

    async def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for a format that can't be used."""
        if request.answer_format is not None:
            param = "grammar" if request.answer_format.kind == "gbnf" else "response_format"
            await self._check(request.answer_format, param)
        for index, tool in enumerate(request.tools):
            schema = AnswerFormat(kind="json_schema", text=tool.parameters)
            await self._check(schema, f"tools[{index}].function.parameters")

    async def _check(self, answer_format: AnswerFormat, param: str) -> None:
        line = msgspec.json.encode(answer_format)
        digest = hashlib.sha256(line).digest()
        problem = self._verdicts.get(digest)
        if problem is None:
            problem = self._verdicts[digest] = await self._try(line)
            if len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(digest)
        if problem:
            raise InvalidRequest(f"{param}: {problem.rstrip('.')}.", param=param)

    async def close(self) -> None:
        for process in self._idle:
            await _end(process)
        self._idle.clear()

    async def _try(self, line: bytes) -> str:
        async with self._places:
            process = self._idle.pop() if self._idle else await self._start()
            problem = None
            try:
                async with asyncio.timeout(self._wall_s):
                    problem = await _ask(process, line)
            except TimeoutError:
                pass
            finally:
                if problem is None:
                    await _end(process)
                else:
                    self._idle.append(process)
            return _TOO_HARD if problem is None else problem

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        async with asyncio.timeout(START_S):
            assert process.stdout is not None
            await process.stdout.readline()
        return process


async def _ask(process: asyncio.subprocess.Process, line: bytes) -> str | None:
    """None when the process died of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + b"\n")
    answer = await process.stdout.readline()
    return msgspec.json.decode(answer, type=str) if answer else None


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
