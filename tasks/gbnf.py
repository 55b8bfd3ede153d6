"""llama.cpp's grammar notation GBNF (grammars/README.md there) → the Lark dialect of llguidance. Pure.

GBNF has no lexer: every character is a symbol. llguidance has one, and a lexeme is greedy: `[a-z]* "b"` as two lexemes
could never match. So a grammar without recursion becomes one regular expression, and in any other one every character
is a lexeme of its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

MAX_NESTING = 64  # parentheses in each other; llama.cpp's own parser overflows its stack at some thousands
MAX_REGEX_CHARS = 100_000  # beyond it a grammar without recursion is not written out as one expression
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^", "/": "/"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_NAME = re.compile(r"[A-Za-z0-9_-]+")
MAX_REPETITIONS = 100_000
_COUNTS = re.compile(r"\{\s*(\d{1,12})\s*(?:(,)\s*(\d{1,12})?\s*)?\}")


class InvalidGrammar(ValueError):
    """The text is not GBNF; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Literal:
    text: str


@dataclass(frozen=True, slots=True)
class CharClass:
    regex: str


@dataclass(frozen=True, slots=True)
class Reference:
    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    part: Node
    least: int
    most: int | None


Node = Literal | CharClass | Reference | Chain | Choice | Repeated


def gbnf_to_lark(text: str) -> str:
    """Raises InvalidGrammar."""
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise InvalidGrammar("it has no rule named root")
    names = {name: "start" if name == "root" else f"r{number}" for number, name in enumerate(rules)}
    for name, node in rules.items():
        for unknown in _references(node) - rules.keys():
            raise InvalidGrammar(f"the rule {name!r} mentions {unknown!r}, which is not defined")
    regex = _Expansion(rules).regex_of("root")
    if regex is not None:
        return f"start: /{regex}/"
    return "\n".join(f"{names[name]}: {_lark(node, names)}" for name, node in rules.items())


def _references(node: Node) -> set[str]:
    match node:
        case Reference(name):
            return {name}
        case Chain(parts) | Choice(parts):
            return set().union(*map(_references, parts))
        case Repeated(part):
            return _references(part)
        case _:
            return set()


def _lark(node: Node, names: dict[str, str]) -> str:
    match node:
        case Literal(text):
            return " ".join(json.dumps(char, ensure_ascii=False) for char in text) or '""'
        case CharClass(regex):
            return f"/{regex}/"
        case Reference(name):
            return names[name]
        case Chain(parts):
            return " ".join(_lark(part, names) for part in parts) or '""'
        case Choice(options):
            return "(" + " | ".join(_lark(option, names) for option in options) + ")"
        case Repeated(part, least, most):
            return f"({_lark(part, names)}){_counts(least, most)}"


def _counts(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


class _Expansion:
    """Writes rules out as one regular expression, as long as that is possible and short."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules = rules
        self._under_way: list[str] = []
        self._done: dict[str, str | None] = {}

    def regex_of(self, name: str) -> str | None:
        """None for a rule that leads back to itself, or becomes too long."""
        if name in self._done:
            return self._done[name]
        if name in self._under_way or len(self._under_way) > MAX_NESTING:
            return None
        self._under_way.append(name)
        regex = self._regex(self._rules[name])
        self._under_way.pop()
        self._done[name] = regex
        return regex

    def _regex(self, node: Node) -> str | None:
        match node:
            case Literal(text):
                return "".join(f"\\x{{{ord(char):X}}}" for char in text)
            case CharClass(regex):
                return regex
            case Reference(name):
                return self.regex_of(name)
            case Chain(parts):
                return self._joined(parts, "")
            case Choice(options):
                joined = self._joined(options, "|")
                return None if joined is None else f"(?:{joined})"
            case Repeated(part, least, most):
                inner = self._regex(part)
                return None if inner is None else f"(?:{inner}){_counts(least, most)}"

    def _joined(self, nodes: tuple[Node, ...], separator: str) -> str | None:
        written: list[str] = []
        size = 0
        for node in nodes:
            regex = self._regex(node)
            size += len(regex or "")
            if regex is None or size > MAX_REGEX_CHARS:
                return None
            written.append(regex)
        return separator.join(written)


class _Parser:
    """Recursive descent over one grammar; its depth is that of the parentheses, which is bounded."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip(newlines=True)
        while self._at < len(self._text):
            name = self._name()
            self._skip()
            if not self._text.startswith("::=", self._at):
                raise self._error("expected ::=")
            self._at += 3
            self._skip(newlines=True)
            found[name] = self._choice()
            if self._here() and self._here() not in "\r\n":
                raise self._error("expected the end of the rule")
            self._skip(newlines=True)
        return found

    def _choice(self) -> Node:
        options = [self._chain()]
        while self._here() == "|":
            self._at += 1
            self._skip(newlines=True)
            options.append(self._chain())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _chain(self) -> Node:
        parts: list[Node] = []
        while (part := self._item()) is not None:
            self._skip(newlines=self._depth > 0)
            parts.append(self._repeated(part))
            self._skip(newlines=self._depth > 0)
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def _item(self) -> Node | None:
        here = self._here()
        if here == '"':
            return self._literal()
        if here == "[":
            return self._char_class()
        if here == ".":
            self._at += 1
            return CharClass("(?s:.)")
        if here == "(":
            return self._group()
        if here and _NAME.match(here):
            return Reference(self._name())
        if here in {"<", "!"}:
            raise self._error("tokens in a grammar are not supported")
        return None

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._error(f"at most {MAX_NESTING} parentheses in each other")
        self._at += 1
        self._skip(newlines=True)
        inner = self._choice()
        if self._here() != ")":
            raise self._error("expected )")
        self._at += 1
        self._depth -= 1
        return inner

    def _repeated(self, part: Node) -> Node:
        bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._here())
        if bounds is not None:
            self._at += 1
            return Repeated(part, *bounds)
        if self._here() != "{":
            return part
        counts = _COUNTS.match(self._text, self._at)
        if counts is None:
            raise self._error("expected {n}, {n,} or {n,m}")
        self._at = counts.end()
        least = int(counts[1])
        most = int(counts[3]) if counts[3] else None if counts[2] else least
        if most is not None and most < least:
            raise self._error("the second count is smaller than the first")
        if max(least, most or 0) > MAX_REPETITIONS:
            raise self._error(f"at most {MAX_REPETITIONS} repetitions")
        return Repeated(part, least, most)

    def _literal(self) -> Node:
        self._at += 1
        chars: list[str] = []
        while self._here() != '"':
            chars.append(self._char())
        self._at += 1
        return Literal("".join(chars))

    def _char_class(self) -> Node:
        self._at += 1
        negated = self._here() == "^"
        self._at += negated
        ranges: list[str] = []
        while self._here() != "]":
            first = last = self._char()
            if self._here() == "-" and self._text[self._at + 1 : self._at + 2] not in {"]", ""}:
                self._at += 1
                last = self._char()
            if last < first:
                raise self._error("a range ends before it starts")
            ranges.append(f"\\x{{{ord(first):X}}}-\\x{{{ord(last):X}}}")
        self._at += 1
        if not ranges:
            raise self._error("an empty class")
        return CharClass(f"[{'^' if negated else ''}{''.join(ranges)}]")

    def _char(self) -> str:
        here = self._here()
        self._at += 1
        if here in {"", "\n", "\r"}:
            raise self._error("a text or class without its end")
        if here != "\\":
            return here
        kind = self._here()
        self._at += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        digits = self._text[self._at : self._at + _HEX_DIGITS.get(kind, 0)]
        self._at += len(digits)
        try:
            char = chr(int(digits, 16))
            char.encode()
        except (ValueError, OverflowError):
            raise self._error(f"a bad escape \\{kind}{digits}") from None
        return char

    def _name(self) -> str:
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise self._error("expected a name")
        self._at = name.end()
        return name[0]

    def _skip(self, *, newlines: bool = False) -> None:
        """Blanks and comments."""
        while self._here():
            if self._here() == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif self._here() in " \t" or (newlines and self._here() in "\r\n"):
                self._at += 1
            else:
                return

    def _here(self) -> str:
        return self._text[self._at : self._at + 1]

    def _error(self, what: str) -> InvalidGrammar:
        line = self._text.count("\n", 0, self._at) + 1
        return InvalidGrammar(f"{what} in line {line}, at {self._text[self._at : self._at + 20]!r}")
