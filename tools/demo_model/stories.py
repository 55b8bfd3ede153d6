"""Short stories and small poems, put together from sentences with many wordings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from tools.demo_model import texts
from tools.demo_model.phrasing import Exchange, article, capital, say
from tools.demo_model.words import ANIMALS, NAMES, THINGS

_PLOTS = [lines for name, lines in texts.sections("stories").items() if name.startswith("plot: ")]
_POEMS = [lines for name, lines in texts.sections("stories").items() if name.startswith("poem: ")]
_PEOPLE = texts.pairs("stories", "people")
_CREATURES = ANIMALS + texts.entries("stories", "creatures")
_OBJECTS = texts.entries("stories", "objects")
_TRAITS = texts.entries("stories", "traits")
_WEATHER = ["night", "sea", "rain", "snow", "sun", "moon", "wind"]
_FORMS = {"it": ("it", "its"), "he": ("him", "his"), "she": ("her", "her")}


class Hero(NamedTuple):
    """Whom a story is about: `full` has the article and perhaps a trait, `noun` is bare, `they` is the pronoun."""

    full: str
    noun: str
    they: str
    name: str


def story(rng: random.Random) -> Exchange:
    """A request for a story, and the story, which takes up what the request says of its hero."""
    hero = _hero(rng, trait_share=0.6)
    request = rng.choice(texts.lines("stories", "requests"))
    asked_for = f"{hero.full} [named|called] {hero.name}" if rng.random() < 0.15 else hero.full
    asked = say(rng, request.replace("{x}", asked_for))
    if "{x}" not in request or (hero.full == article(hero.noun) and rng.random() < 0.5):
        hero = hero._replace(full=article(f"{rng.choice(_TRAITS)} {hero.noun}"))
    return Exchange(capital(asked), _tell(rng, hero))


def long_story(rng: random.Random) -> Exchange:
    """A request for a very long story, and three adventures of one hero."""
    hero = _hero(rng, trait_share=1)
    asked = say(rng, rng.choice(texts.lines("stories", "long requests")), x=hero.full)
    return Exchange(asked, "\n\n".join([_tell(rng, hero), _adventure(rng, hero), _adventure(rng, hero)]))


def plain_story(rng: random.Random) -> str:
    """A story with no request, for plain completion."""
    return _tell(rng, _hero(rng, trait_share=1))


def poem(rng: random.Random) -> Exchange:
    """A request for a poem, and four rhymed lines."""
    noun = rng.choice((*_CREATURES, *_OBJECTS, *THINGS, *_WEATHER))
    slots = {"x": article(noun), "n": noun}
    asked = say(rng, rng.choice(texts.lines("stories", "poem requests")), **slots)
    return Exchange(asked, "\n".join(say(rng, line, **slots) for line in rng.choice(_POEMS)))


def _hero(rng: random.Random, *, trait_share: float) -> Hero:
    nouns: list[tuple[str, str]] = rng.choices(
        (
            [(noun, "it") for noun in _CREATURES],
            _PEOPLE,
            [(noun, "it") for noun in _OBJECTS],
            [(noun, "it") for noun in THINGS],
        ),
        (62, 22, 8, 8),
    )[0]
    noun, they = rng.choice(nouns)
    trait = rng.choice(_TRAITS) + " " if rng.random() < trait_share else ""
    return Hero(article(trait + noun), noun, they, rng.choice(NAMES))


def _tell(rng: random.Random, hero: Hero) -> str:
    ending = rng.choice(texts.lines("stories", "endings")) if rng.random() < 0.5 else ""
    return " ".join([_worded(rng, hero, texts.lines("stories", "openings"), rng.choice(_PLOTS)), ending]).strip()


def _adventure(rng: random.Random, hero: Hero) -> str:
    return _worded(rng, hero, texts.lines("stories", "next openings"), rng.choice(_PLOTS))


def _worded(rng: random.Random, hero: Hero, openings: Sequence[str], plot: Sequence[str]) -> str:
    friend = rng.choice([each for each in texts.entries("stories", "friends") if each != hero.noun])
    treasure = rng.choice(texts.entries("stories", "treasures"))
    them, their = _FORMS[hero.they]
    return say(
        rng,
        " ".join([rng.choice(openings), *plot]),
        a_hero=hero.full,
        noun=hero.noun,
        name=hero.name,
        place=rng.choice(texts.entries("stories", "places")),
        they=hero.they,
        They=capital(hero.they),
        them=them,
        their=their,
        friend=friend,
        a_friend=article(friend),
        A_friend=capital(article(friend)),
        treasure=treasure,
        a_treasure=article(treasure),
    )
