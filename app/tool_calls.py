"""Tool calls in the text of an answer, found while it streams. Pure.

The text says itself in which form its calls are (see `workers.engine.tool_formats`): behind `<tool_call>` or
`[TOOL_CALLS]` or `<|python_tag|>`, as the whole answer, or in a list under "tool_calls". What only looks like a call,
or names a tool that the client did not send, stays text. Nothing is passed on that later text could turn into something
else, and text pieces hold whole characters, so no character is ever split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

MARKERS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
_CLOSER = "</tool_call>"


@dataclass(frozen=True, slots=True)
class Content:
    """More of what the assistant says."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """The next call, whose arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, which are a JSON object as text."""

    index: int
    text: str


Delta = Content | CallBegins | Arguments


class _State(Enum):
    TEXT = auto()
    HEAD = auto()  # behind a marker, or between calls: a call has to begin
    ARGUMENTS = auto()
    TAIL = auto()  # the rest of the call's own object
    NEXT = auto()  # between calls, or behind the last


class ToolCallReader:
    """One per answer."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._state = _State.TEXT
        self._buffer = ""  # not yet understood
        self._marker = ""  # what brought us to HEAD, in case that it was text after all
        self._has_content = False
        self._scan = _JsonScan()
        self.num_calls = 0

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        return list(self._read())

    def finish(self) -> list[Delta]:
        """At the end of the answer: what was held back."""
        if self._state not in {_State.TEXT, _State.HEAD}:
            return []
        rest, self._buffer = self._marker + self._buffer, ""
        is_cut_off = self._state is _State.HEAD and self._marker.strip() not in MARKERS  # in a list of calls
        is_blank = self.num_calls > 0 and not rest.strip()
        return [] if is_cut_off or is_blank else list(self._content(rest))

    def _read(self) -> Iterator[Delta]:
        steps: dict[_State, Callable[[], Iterator[Delta] | None]] = {
            _State.TEXT: self._text,
            _State.HEAD: self._head,
            _State.ARGUMENTS: self._arguments,
            _State.TAIL: self._tail,
            _State.NEXT: self._next,
        }
        while self._buffer:
            deltas = steps[self._state]()
            if deltas is None:  # more text is needed
                return
            yield from deltas

    def _text(self) -> Iterator[Delta] | None:
        buffer = self._buffer
        if not self._has_content and not self.num_calls:
            if (found_call := _find(_BARE + _LISTED, buffer, self._names)) is not None:
                return self._begin(*found_call)
            if any(opening.is_possible(buffer) for opening in _BARE + _LISTED):
                return None
        found = min((at for at in map(buffer.find, MARKERS) if at >= 0), default=-1)
        if found >= 0:
            marker = next(marker for marker in MARKERS if buffer.startswith(marker, found))
            before = buffer[:found].rstrip()
            self._marker = buffer[len(before) : found + len(marker)]
            self._buffer = buffer[found + len(marker) :]
            self._state = _State.HEAD
            return self._content(before)
        # Blanks before a call are no content; whether one follows is not known yet.
        certain = len(buffer[: len(buffer) - max(_overlap(buffer, marker) for marker in MARKERS)].rstrip())
        if not certain:
            return None
        self._buffer = buffer[certain:]
        return self._content(buffer[:certain])

    def _head(self) -> Iterator[Delta] | None:
        if (found := _find(_MARKED, self._buffer, self._names)) is not None:
            return self._begin(*found)
        if any(opening.is_possible(self._buffer) for opening in _MARKED):
            return None
        text, self._buffer, self._marker = self._marker + self._buffer, "", ""
        self._state = _State.TEXT
        return self._content(text)

    def _begin(self, name: str, length: int) -> Iterator[Delta]:
        self._buffer, self._marker = self._buffer[length:], ""
        self._state, self._scan = _State.ARGUMENTS, _JsonScan()
        self.num_calls += 1
        yield CallBegins(self.num_calls - 1, name)

    def _arguments(self) -> Iterator[Delta]:
        end = self._scan.end_in(self._buffer)
        text = self._buffer if end is None else self._buffer[:end]
        self._buffer = self._buffer[len(text) :]
        if end is not None:
            self._state, self._scan = _State.TAIL, _JsonScan(depth=1)
        yield Arguments(self.num_calls - 1, text)

    def _tail(self) -> Iterator[Delta]:
        end = self._scan.end_in(self._buffer)
        self._buffer = "" if end is None else self._buffer[end:]
        if end is not None:
            self._state = _State.NEXT
        return iter(())

    def _next(self) -> Iterator[Delta] | None:
        rest = self._buffer.lstrip(" \n\r\t,;]}")
        if rest.startswith(_CLOSER):
            self._buffer = rest[len(_CLOSER) :]
        elif _CLOSER.startswith(rest):
            return None
        elif rest.startswith("{"):
            self._marker = self._buffer[: len(self._buffer) - len(rest)]
            self._buffer, self._state = rest, _State.HEAD
        else:
            self._buffer, self._state = rest, _State.TEXT
        return iter(())

    def _content(self, text: str) -> Iterator[Delta]:
        if text:
            self._has_content = True
            yield Content(text)


class _JsonScan:
    """Finds the end of a JSON object that comes in pieces. `depth`: braces that are open already."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = self._is_escaped = False

    def end_in(self, text: str) -> int | None:
        """Position behind the brace that closes the object."""
        for at, sign in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = sign == "\\"
                self._in_string = sign != '"'
            elif sign == '"':
                self._in_string = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None


class _Opening:
    """A text that begins in one of many spellings: what is needed to recognise it, whole or its start alone."""

    def __init__(self, signs: list[str]) -> None:
        """`signs`: expressions of one sign each, or of a run of signs that may be cut anywhere."""
        self._whole = re.compile("".join(signs) + r"(?=\{)")
        possible = ""
        for sign in reversed(signs):
            possible = f"(?:{sign}{possible})?"
        self._possible = re.compile(possible + r"\Z")

    def name(self, text: str) -> str:
        """The tool that a text with this beginning calls; empty for any other text."""
        match = self._whole.match(text)
        return match["name"] if match else ""

    def length(self, text: str) -> int:
        match = self._whole.match(text)
        return match.end() if match else 0

    def is_possible(self, text: str) -> bool:
        """Whether more text could make this of it."""
        return self._possible.match(text) is not None


_BLANKS = r"\s{0,64}"


def _spelt(*words: str) -> list[str]:
    """Words with blanks before each."""
    return [sign for word in words for sign in (_BLANKS, *map(re.escape, word))]


def _call(arguments: str) -> list[str]:
    name = r"(?P<name>[A-Za-z0-9_-]{1,64})"
    return [*_spelt("{", '"name"', ":", '"'), name, '"', *_spelt(",", f'"{arguments}"', ":"), _BLANKS]


_KEYS = ("arguments", "parameters")
_BARE = [_Opening(_call(key)) for key in _KEYS]
_LISTED = [_Opening([*_spelt("{", '"tool_calls"', ":", "["), *_call(key)]) for key in _KEYS]
_MARKED = [_Opening([_BLANKS, r"\[?", *_call(key)]) for key in _KEYS]


def _find(openings: list[_Opening], text: str, names: frozenset[str]) -> tuple[str, int] | None:
    """Name of the tool and length of the opening that `text` begins with; None where it is another text, or not yet
    long enough."""
    for opening in openings:
        if (name := opening.name(text)) in names:
            return name, opening.length(text)
    return None


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a proper start of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
