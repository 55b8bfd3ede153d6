"""Small sums, asked in words, in signs and as little stories. A fixed share of the sums is never shown in training."""

from __future__ import annotations

import random
from typing import NamedTuple

from tools.demo_model import texts
from tools.demo_model.phrasing import Exchange, say
from tools.demo_model.words import FRUITS, NAMES, NUMBERS

HELD_OUT_SHARE = 0.1
_SIGNS = {"+": "plus", "-": "minus", "*": "times"}


class Sum(NamedTuple):
    """`left sign right`, where sign is one of + - *."""

    left: int
    sign: str
    right: int

    @property
    def value(self) -> int:
        """What it makes; never negative for the sums made here."""
        if self.sign == "+":
            return self.left + self.right
        return self.left - self.right if self.sign == "-" else self.left * self.right

    @property
    def is_held_out(self) -> bool:
        """True for a fixed tenth of two-digit sums; both orders of an addition fall on the same side.

        Single-digit facts are a table to learn by heart, so all of them are shown.
        """
        if self.sign == "*" or max(self.left, self.right) < 10:
            return False
        low, high = sorted((self.left, self.right))
        return (low * 7919 + high * 104729 + ord(self.sign) * 31) % 1000 < 1000 * HELD_OUT_SHARE


def draw(rng: random.Random) -> Sum:
    """A small sum, held out or not."""
    kind = rng.random()
    if kind < 0.25:
        return Sum(rng.randint(0, 12), "+", rng.randint(0, 12))
    if kind < 0.58:
        return Sum(rng.randint(0, 99), "+", rng.randint(0, 99))
    if kind < 0.82:
        left = rng.randint(0, 20) if rng.random() < 0.4 else rng.randint(0, 99)
        return Sum(left, "-", rng.randint(0, left))
    return Sum(rng.randint(0, 12), "*", rng.randint(0, 12))


def draw_shown(rng: random.Random) -> Sum:
    """A sum that may be used in training."""
    while (drawn := draw(rng)).is_held_out:
        pass
    return drawn


def draw_held_out(rng: random.Random) -> Sum:
    """A sum that training never shows."""
    while not (drawn := draw(rng)).is_held_out:
        pass
    return drawn


def answer(a_sum: Sum) -> str:
    """The sentence that answers it, always with digits."""
    return f"{a_sum.left} {_SIGNS[a_sum.sign]} {a_sum.right} is {a_sum.value}."


def question(rng: random.Random, a_sum: Sum) -> str:
    """One wording of the question, with digits or, for small numbers, with words."""
    left, right, sign = str(a_sum.left), str(a_sum.right), a_sum.sign
    if max(a_sum.left, a_sum.right) <= 20 and rng.random() < 0.2:
        left, right, sign = NUMBERS[a_sum.left], NUMBERS[a_sum.right], f"{sign} in words"
    if rng.random() < 0.2:
        return say(rng, rng.choice(texts.lines("sums", f"order {a_sum.sign}")), a=left, b=right)
    frame = rng.choice(texts.lines("sums", "frames"))
    return say(rng, frame.replace("{x}", rng.choice(texts.lines("sums", sign))), a=left, b=right)


def exchange(rng: random.Random) -> Exchange:
    """A sum with its answer; now and then one that is too hard, answered honestly."""
    kind = rng.random()
    if kind < 0.06:
        return _too_hard(rng)
    if kind < 0.2:
        return _little_story(rng)
    drawn = draw_shown(rng)
    return Exchange(question(rng, drawn), answer(drawn))


def _too_hard(rng: random.Random) -> Exchange:
    asked = say(
        rng,
        rng.choice(texts.lines("sums", "too hard")),
        a=rng.randint(100, 99999),
        b=rng.randint(2, 9999),
        s=rng.randint(3, 99),
        t=rng.randint(2, 12),
    )
    return Exchange(asked, "That is too hard for me. I can only add, subtract and multiply small numbers.")


def _little_story(rng: random.Random) -> Exchange:
    things = rng.choice((*FRUITS, "books", "coins", "eggs", "cats", "pencils", "stones"))
    sign = rng.choice("+-")
    left = rng.randint(4, 20)
    a_sum = Sum(left, sign, rng.randint(2, 12 if sign == "+" else left - 2))
    if a_sum.is_held_out:
        return _little_story(rng)
    line = rng.choice(texts.lines("sums", f"story {sign}"))
    asked = say(rng, line, n=rng.choice(NAMES), a=a_sum.left, b=a_sum.right, t=things)
    return Exchange(asked, f"{answer(a_sum)[:-1]}, so there are {a_sum.value} {things}.")
