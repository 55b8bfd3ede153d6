"""Compile grammars of clients where nobody is harmed: a process of its own, `python -m app.grammar_trial`.

One line of JSON in is a list of formats, to be compiled as one grammar when there are several; one line out says what
is wrong with them, see Verdict. The process may die of a grammar: of memory, of CPU time, or of an overflowing stack.
`app.grammar_check` then starts another.
"""

from __future__ import annotations

import resource
import sys
import threading

import msgspec

from tasks.generation import AnswerFormat
from tasks.grammars import problem_among, problem_of

MEMORY_BYTES = 1024**3  # of address space, 200 MiB of which Python and its libraries have
STACK_BYTES = 2 * 1024**2  # a quarter of what a runner's threads have: what passes here has room there
CPU_S = 2  # per line; the ten largest schemas of JSONSchemaBench take 0.1 to 1 s by its authors' figures


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong (empty: nothing), and with which of the formats; None when only all together are."""

    problem: str = ""
    index: int | None = None


def try_formats(formats: list[AnswerFormat]) -> Verdict:
    """May take long, take much memory, or crash the process."""
    if len(formats) == 1:
        return Verdict(problem_of(formats[0]), 0)
    index, problem = problem_among(formats)
    return Verdict(problem, index)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    threading.stack_size(STACK_BYTES)
    compiler = threading.Thread(target=_compile_lines)
    compiler.start()
    compiler.join()


def _compile_lines() -> None:
    decode = msgspec.json.Decoder(list[AnswerFormat]).decode
    _answer(Verdict())  # ready
    for line in sys.stdin.buffer:
        _grant_cpu_time()
        _answer(try_formats(decode(line)))


def _grant_cpu_time() -> None:
    """From now on; the kernel ends the process (SIGXCPU) when it is used up."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


def _answer(verdict: Verdict) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
