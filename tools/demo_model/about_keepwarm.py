"""Questions about Keepwarm itself. The answers in `texts/` must agree with ARCHITECTURE.md."""

from __future__ import annotations

import random

from tools.demo_model import texts
from tools.demo_model.phrasing import Exchange, ask, capital, say

CONCEPTS = texts.topics("keepwarm_concepts")
TOPICS = texts.topics("keepwarm_questions")
_FRAMES = texts.lines("keepwarm_concepts", "frames")
_MORE = texts.lines("keepwarm_concepts", "more")
_ESSAYS = texts.lines("keepwarm_concepts", "essays")
_NUM_ESSAY_CONCEPTS = 20  # the first ones, which are about Keepwarm's own parts


def concept(rng: random.Random) -> Exchange:
    """A question about one noun of the project."""
    chosen = rng.choice(CONCEPTS)
    return Exchange(_what_is(rng, chosen), rng.choice(chosen.answers))


def concept_and_more(rng: random.Random) -> list[Exchange]:
    """A concept that has two answers: the second one when the user asks for more."""
    chosen = rng.choice([each for each in CONCEPTS if len(each.answers) > 1])
    first, second = rng.sample(chosen.answers, 2)
    return [Exchange(_what_is(rng, chosen), first), Exchange(say(rng, rng.choice(_MORE)), second)]


def topic(rng: random.Random) -> Exchange:
    """A question about what happens, why, or how."""
    return ask(rng, rng.choice(TOPICS))


def essay(rng: random.Random) -> Exchange:
    """A request for a longer text, and several facts in a row."""
    return Exchange(say(rng, rng.choice(_ESSAYS)), prose(rng))


def prose(rng: random.Random) -> str:
    """A paragraph about Keepwarm that begins with what it is."""
    keepwarm, *others = CONCEPTS[:_NUM_ESSAY_CONCEPTS]
    facts = [rng.choice(each.answers) for each in rng.sample(others, rng.randint(3, 7))]
    return " ".join([rng.choice(keepwarm.answers), *facts])


def _what_is(rng: random.Random, chosen: texts.Topic) -> str:
    return capital(say(rng, rng.choice(_FRAMES).replace("{x}", chosen.nouns)))
