"""Refuse a grammar that can't be compiled before its job is admitted.

Grammars come from clients and are compiled by native code, so each new one is tried in a process that may die of it
(`app.grammar_trial`). What came out is remembered: clients send the same schema over and over, and those who send it
while it is tried share the trial. That the machine was too busy to find out is not remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from app.errors import FormatNotTried
from app.grammar_trial import CPU_S, MEMORY_BYTES, Verdict
from tasks.errors import InvalidRequest
from tasks.generation import AnswerFormat, GenerationRequest

WALL_S = 30.0  # CPU time is what bounds a grammar; this bounds how long a busy machine may keep a client waiting
START_S = 30.0
PROCESSES = 2  # at once: one client's slow grammars hold up nobody else's
COMMAND = (sys.executable, "-m", "app.grammar_trial")
_REMEMBERED = 4096

_LIMITS = f"can't be compiled within {CPU_S} s and {MEMORY_BYTES >> 20} MiB"


@dataclass(slots=True)
class _Trial:
    """Of formats that several requests may wait for."""

    task: asyncio.Task[Verdict]
    num_waiting: int = 0


class GrammarCheck:
    """One per application, used by one event loop. Processes start when they are first needed."""

    def __init__(self, command: Sequence[str] = COMMAND, *, wall_s: float = WALL_S, start_s: float = START_S) -> None:
        self._command = command
        self._wall_s = wall_s
        self._start_s = start_s
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._trials: dict[bytes, _Trial] = {}
        self._idle: list[asyncio.subprocess.Process] = []
        self._places = asyncio.Semaphore(PROCESSES)

    async def check(self, request: GenerationRequest) -> None:
        """All formats of a request at once, since a runner compiles them into one grammar.

        Raises InvalidRequest for what can't be used, FormatNotTried when that could not be found out."""
        formats, params = [], []
        if request.answer_format is not None:
            formats.append(request.answer_format)
            params.append("grammar" if request.answer_format.kind == "gbnf" else "response_format")
        for index, tool in enumerate(request.tools):
            formats.append(AnswerFormat(kind="json_schema", text=tool.parameters))
            params.append(f"tools[{index}].function.parameters")
        if not formats:
            return
        verdict = await self._verdict(formats)
        if verdict.problem:
            param = "tools" if verdict.index is None else params[verdict.index]
            raise InvalidRequest(f"{param}: {verdict.problem.rstrip('.')}.", param=param)

    async def _verdict(self, formats: list[AnswerFormat]) -> Verdict:
        line = msgspec.json.encode(formats)
        digest = hashlib.sha256(line).digest()
        if digest in self._verdicts:
            self._verdicts.move_to_end(digest)
            return self._verdicts[digest]
        if digest not in self._trials:
            self._trials[digest] = _Trial(asyncio.create_task(self._try_new(line, digest, len(formats))))
        trial = self._trials[digest]
        trial.num_waiting += 1
        try:
            return await asyncio.shield(trial.task)  # who leaves takes nothing from the others
        finally:
            trial.num_waiting -= 1
            if trial.num_waiting == 0:
                del self._trials[digest]
                trial.task.cancel()  # if it has not ended: nobody wants to know any more

    async def _try_new(self, line: bytes, digest: bytes, num_formats: int) -> Verdict:
        verdict = await self._try(line) or _deadly(num_formats)
        self._verdicts[digest] = verdict
        if len(self._verdicts) > _REMEMBERED:
            self._verdicts.popitem(last=False)
        return verdict

    async def close(self) -> None:
        for process in self._idle:
            await _end(process)
        self._idle.clear()

    async def _try(self, line: bytes) -> Verdict | None:
        """None: the process died of it. Raises FormatNotTried, after which nothing is known of these formats."""
        async with self._places:
            process = await self._process()
            verdict = None
            try:
                async with asyncio.timeout(self._wall_s):
                    verdict = await _ask(process, line)
            except TimeoutError:
                raise FormatNotTried(f"The requested format was not tried within {self._wall_s:g} s") from None
            finally:
                if verdict is None:
                    await _end(process)
                else:
                    self._idle.append(process)
            return verdict

    async def _process(self) -> asyncio.subprocess.Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await self._start()

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        is_ready = False
        try:
            async with asyncio.timeout(self._start_s):
                assert process.stdout is not None
                is_ready = bool(await process.stdout.readline())
        except TimeoutError:
            pass
        finally:
            if not is_ready:
                await _end(process)
        if not is_ready:
            reason = f"The process that tries requested formats was not ready within {self._start_s:g} s"
            raise FormatNotTried(reason)
        return process


def _deadly(num_formats: int) -> Verdict:
    if num_formats == 1:
        return Verdict(f"it {_LIMITS}, or is nested too deeply", 0)
    return Verdict(f"these formats together {_LIMITS}, or one is nested too deeply", None)


async def _ask(process: asyncio.subprocess.Process, line: bytes) -> Verdict | None:
    """None when the process died of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + b"\n")
    answer = await process.stdout.readline()
    return msgspec.json.decode(answer, type=Verdict) if answer else None


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
