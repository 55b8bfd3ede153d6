"""Word lists that several topics draw on, and words that mean nothing."""

from __future__ import annotations

import random

from tools.demo_model import texts

ANIMALS = texts.entries("words", "animals")
COLOURS = texts.entries("words", "colours")
FRUITS = texts.entries("words", "fruits")
VEGETABLES = texts.entries("words", "vegetables")
DAYS = texts.entries("words", "days")
MONTHS = texts.entries("words", "months")
SEASONS = texts.entries("words", "seasons")
PLANETS = texts.entries("words", "planets")
NUMBERS = texts.entries("words", "numbers")
NAMES = texts.entries("words", "names")
THINGS = texts.entries("words", "things")
IDEAS = texts.entries("words", "ideas")
VERBS = texts.entries("words", "verbs")
_SYLLABLES = texts.entries("words", "syllables")


def made_up(rng: random.Random, *lengths: int) -> str:
    """A pronounceable word that means nothing, of one of these numbers of syllables."""
    return "".join(rng.choices(_SYLLABLES, k=rng.choice(lengths)))
