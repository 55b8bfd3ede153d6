"""Room on the stack for a tokeniser that recurses.

llama.cpp cuts a text into words with regular expressions, for many vocabularies those of libstdc++, which call
themselves for each character of a match (`std::regex`, `_Executor::_M_dfs`). A long run of one class, such as letters
or blanks, would overflow the stack of a thread and end the process. So long texts get a thread that has room for them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TypeVar

from tasks.errors import InvalidRequest

Result = TypeVar("Result")

ANYWHERE = 2_000  # characters that any thread has room for
LONGEST_RUN = 256 * 1024  # characters: as many tokens as few contexts hold, and 120 MB of stack
_DEEPEST = 2 * LONGEST_RUN  # a word may be one run and another one behind it: signs and the line breaks after them
_BASE_BYTES = 8 * 1024**2
_BYTES_PER_CHARACTER = 512  # up to 470 were measured over llama.cpp's expressions
# What a match is made of, in the widest sense: no blanks; only blanks; line breaks and slashes (tekken, behind signs);
# words with blanks between them (exaone-moe). A character on which Python and llama.cpp differ, such as a wide blank,
# is in both of the first two.
_RUNS = tuple(map(re.compile, (r"[^ \t-\r]+", r"\s+", r"[\r\n/]+", r"[A-Za-z \x80-\U0010ffff]+")))
_sizing = threading.Lock()  # the size of the next thread's stack is the whole process's


def with_room_for(text: str, work: Callable[[], Result]) -> Result:
    """`work`, which recurses over the text, in a thread whose stack is deep enough. Stack that isn't used takes no
    memory. Raises InvalidRequest for a text with a run that is too long, and what `work` raises."""
    if len(text) <= ANYWHERE:
        return work()
    if len(text) > _DEEPEST:
        _check_runs(text)
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again where it was asked for
            errors.append(error)

    thread = threading.Thread(target=run, name="tokenise")
    _start(thread, _BASE_BYTES + _BYTES_PER_CHARACTER * min(len(text), _DEEPEST))
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _start(thread: threading.Thread, stack_bytes: int) -> None:
    with _sizing:
        usual = threading.stack_size(stack_bytes)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)


def _check_runs(text: str) -> None:
    longest = max(len(match[0]) for run in _RUNS for match in run.finditer(text))
    if longest > LONGEST_RUN:
        raise InvalidRequest(
            f"The text has {longest} characters in a row without a break, such as one word, blanks, or words without "
            f"line breaks and punctuation; at most {LONGEST_RUN} can be split into tokens. Break it up."
        )
