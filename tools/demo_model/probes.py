"""What the model is asked to see how good it is, and what counts as right. Knows nothing of how it is run.

Every question has one check: a word that the answer must contain, the whole sentence of a sum, or the exact items of a
list. All are seeded, so that two sets of weights answer the same questions.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tools.demo_model import corpus, facts, sums, texts
from tools.demo_model.words import NUMBERS

SEED = 1_000_003
WORDINGS = {
    "ordinary questions": "ordinary",
    "unusual wordings, first set": "held_out",
    "unusual wordings, second set": "fresh_wordings",
}
_NUM_SUMS = 150
_NUM_LISTS = 60
_MAX_LIST = 6


class Probe(NamedTuple):
    """A question, and whether an answer to it is right."""

    group: str
    question: str
    is_right: Callable[[str], bool]


def probes() -> Iterator[Probe]:
    """All of them, group by group."""
    for group, name in WORDINGS.items():
        for topic in texts.topics(name):
            yield Probe(group, topic.questions[0], _contains(tuple(topic.answers)))
    yield from _sums()
    yield from _lists()
    yield from _counting()


def questions_in_corpus(num_documents: int) -> list[str]:
    """Questions of the unusual sets that training would show among its first documents; there should be none."""
    names = ("held_out", "fresh_wordings")
    asked = {_bare(topic.questions[0]) for name in names for topic in texts.topics(name)}
    documents = itertools.islice(corpus.documents(seed=7), num_documents)
    shown = {_bare(segment.text) for document in documents for segment in document}
    return sorted(asked & shown)


def _sums() -> Iterator[Probe]:
    rng = random.Random(SEED)
    for group, is_member in _SUM_GROUPS.items():
        members = (drawn for drawn in iter(lambda: _draw(rng), None) if is_member(drawn))
        for drawn in itertools.islice(members, _NUM_SUMS):
            yield Probe(group, sums.question(rng, drawn), _ends_with(sums.answer(drawn).rpartition(", so ")[2]))
    for _ in range(_NUM_SUMS // 3):
        question = f"What is {rng.randint(100, 999)} {rng.choice(('plus', 'minus'))} {rng.randint(100, 999)}?"
        yield Probe("sums of three digits, declined honestly", question, _contains(("too hard",)))


def _draw(rng: random.Random) -> sums.Sum:
    """Its own draw, so that another mixture in training leaves the questions as they are."""
    sign = rng.choice("++--*")
    if sign == "*":
        return sums.Sum(rng.randint(0, 12), "*", rng.randint(0, 12))
    kind = rng.random()
    left = rng.randint(0, 20 if kind < 0.3 else 99)
    right = rng.randint(0, 99 if kind > 0.5 else 12)
    return sums.Sum(left, sign, right) if sign == "+" else sums.Sum(max(left, right), "-", min(left, right))


def _num_digits(a_sum: sums.Sum) -> int:
    return len(str(a_sum.left)) + len(str(a_sum.right))


_SUM_GROUPS: dict[str, Callable[[sums.Sum], bool]] = {
    "sums of single digits (shown in training)": lambda drawn: _num_digits(drawn) == 2,
    "two digits and one, never shown": lambda drawn: drawn.is_held_out and _num_digits(drawn) == 3,
    "two digits + two digits, never shown": lambda drawn: (
        drawn.is_held_out and drawn.sign == "+" and _num_digits(drawn) == 4
    ),
    "two digits - two digits, never shown": lambda drawn: (
        drawn.is_held_out and drawn.sign == "-" and _num_digits(drawn) == 4
    ),
}


def _lists() -> Iterator[Probe]:
    rng = random.Random(SEED)
    for number in range(_NUM_LISTS):
        category, members = rng.choice(list(facts.CATEGORIES.items()))
        count = rng.randint(2, min(_MAX_LIST, len(members)))
        ask = ("Name {n} {c}.", "List {n} {c}", "please give me {n} {c}", "Could you tell me {n} {c}?")[number % 4]
        question = ask.format(n=NUMBERS[count], c=category)
        yield Probe("lists: right number of different members", question, lists_members(members, count))


def _counting() -> Iterator[Probe]:
    group = "counting: every number, and stops"
    for high in range(3, 21):
        yield Probe(group, f"Count to {NUMBERS[high]}.", _counts(range(1, high + 1)))
    for low, high in ((2, 9), (5, 12), (7, 20), (12, 18), (21, 30), (4, 16)):
        yield Probe(group, f"Please count from {low} to {high}.", _counts(range(low, high + 1)))
    for high in (3, 5, 8, 10, 12, 20):
        yield Probe(group, f"count down from {high}", _counts(range(high, 0, -1)))


def _contains(wanted: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda said: any(each in said for each in wanted)


def _ends_with(sentence: str) -> Callable[[str], bool]:
    return lambda said: said.endswith(sentence)


def lists_members(members: list[str], count: int) -> Callable[[str], bool]:
    """Right is an answer with `count` different ones of `members` after its first colon, in a sentence or on lines."""

    def is_right(said: str) -> bool:
        _, _, listed = said.partition(":")
        items = [re.sub(r"^(?:- |\d+\. )", "", each.strip()) for each in re.split(r", | and |\n", listed.strip(" .\n"))]
        return len(items) == count == len(set(items)) and set(items) <= set(members)

    return is_right


def _counts(numbers: range) -> Callable[[str], bool]:
    wanted = ", ".join(map(str, numbers))
    return lambda said: said.rpartition(": ")[2].rstrip(".") == wanted


def _bare(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()
