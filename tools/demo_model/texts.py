"""Read the wordings in `texts/`. Knows their format and nothing of what they say.

`# ` starts a comment and `## ` a section. In a section of entries, `;` and the end of a line separate them.
In a file of topics, `?` is a wording of a question, `!` an answer, `=` a noun for a concept's frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).with_name("texts")


class Topic(NamedTuple):
    """Question patterns that all deserve any of the answer patterns; `nouns` is set for a concept only."""

    questions: Sequence[str]
    answers: Sequence[str]
    nouns: str = ""


@cache
def sections(name: str) -> dict[str, list[str]]:
    """The lines of each section of a file; those before the first heading are under the empty name."""
    found: dict[str, list[str]] = {"": []}
    current = found[""]
    for line in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            current = found.setdefault(line[3:], [])
        elif line and not line.startswith("# "):
            current.append(line)
    return found


def lines(name: str, section: str) -> list[str]:
    """The lines of one section."""
    return sections(name)[section]


def entries(name: str, section: str) -> list[str]:
    """The entries of one section."""
    return [entry.strip() for line in lines(name, section) for entry in line.split(";")]


def pairs(name: str, section: str) -> list[tuple[str, str]]:
    """The `left = right` entries of one section."""
    split = (entry.split(" = ") for entry in entries(name, section))
    return [(left, right) for left, right in split]


def topics(name: str) -> list[Topic]:
    """The topics of a file: a new one begins where a question or a noun follows an answer."""
    found: list[tuple[list[str], list[str], list[str]]] = []
    was_answer = True
    for line in lines(name, ""):
        mark, text = line[0], line[2:]
        if was_answer and mark != "!":
            found.append(([], [], []))
        found[-1]["?!=".index(mark)].append(text)
        was_answer = mark == "!"
    return [Topic(questions, answers, "".join(nouns)) for questions, answers, nouns in found]
