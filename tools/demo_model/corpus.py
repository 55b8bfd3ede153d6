"""The corpus: an endless, seeded stream of conversations and plain texts, all of it made here.

A document is a list of segments; a segment is a special token or a text, and says whether the model is to learn it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tools.demo_model import about_keepwarm, facts, fallback, small_talk, stories, sums, texts
from tools.demo_model.chat_format import BEGIN, END
from tools.demo_model.phrasing import Exchange, Maker

MAKERS: dict[Maker, float] = {
    small_talk.topic: 15,
    small_talk.echo: 7,
    small_talk.introduction: 2,
    small_talk.unknown_name: 0.7,
    about_keepwarm.concept: 13,
    about_keepwarm.topic: 12,
    about_keepwarm.essay: 1,
    facts.exchange: 18,
    sums.exchange: 32,
    stories.story: 7,
    stories.long_story: 0.6,
    stories.poem: 1.5,
    fallback.exchange: 18,
}
# For the second phase: less of the long texts, which take most of the tokens and are learnt first, and more of what
# the first phase got wrong, that is facts and questions that this model must decline.
SECOND_MAKERS: dict[Maker, float] = MAKERS | {
    small_talk.topic: 17,
    small_talk.echo: 4,
    about_keepwarm.concept: 15,
    about_keepwarm.topic: 14,
    about_keepwarm.essay: 0.5,
    facts.exchange: 26,
    stories.story: 3.5,
    stories.long_story: 0.3,
    stories.poem: 1,
    fallback.exchange: 20,
}


class Segment(NamedTuple):
    """A piece of a document; `is_special` names a control token, `is_answer` is what the model must learn to say."""

    text: str
    is_special: bool
    is_answer: bool


Document = list[Segment]


def documents(seed: int, makers: Mapping[Maker, float] = MAKERS) -> Iterator[Document]:
    """Endless documents, `makers` by their weights; the same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        yield _plain(rng) if rng.random() < 0.03 else _conversation(rng, makers)


def _plain(rng: random.Random) -> Document:
    text = stories.plain_story(rng) if rng.random() < 0.8 else about_keepwarm.prose(rng)
    return [Segment(BEGIN, True, False), Segment(text, False, True), Segment(END, True, True)]


def _conversation(rng: random.Random, makers: Mapping[Maker, float]) -> Document:
    document = [Segment(BEGIN, True, False)]
    if rng.random() < 0.3:
        document += _turn("system", _system_prompt(rng))
    for exchange in _exchanges(rng, makers):
        document += _turn("user", _as_typed(rng, exchange.user))
        document += _turn("assistant", exchange.assistant)
    return document


def _turn(role: str, text: str) -> Document:
    is_answer = role == "assistant"
    return [
        Segment(f"<|{role}|>", True, False),
        Segment(text, False, is_answer),
        Segment(END, True, is_answer),
    ]


def _exchanges(rng: random.Random, makers: Mapping[Maker, float]) -> list[Exchange]:
    kind = rng.random()
    if kind < 0.04:
        return about_keepwarm.concept_and_more(rng)
    if kind < 0.08:
        return small_talk.remembered_name(rng, _some(rng, makers, (0, 0, 1, 2)))
    if kind < 0.09:
        return small_talk.remembered_colour(rng, _some(rng, makers, (0, 0, 1, 2)))
    return _some(rng, makers, (1, 1, 1, 1, 1, 2, 2, 3, 4))


def _some(rng: random.Random, makers: Mapping[Maker, float], counts: tuple[int, ...]) -> list[Exchange]:
    return [maker(rng) for maker in rng.choices(list(makers), list(makers.values()), k=rng.choice(counts))]


def _system_prompt(rng: random.Random) -> str:
    """Usually a common one; sometimes any text, so that unknown prompts do no harm."""
    if rng.random() < 0.75:
        return rng.choice(texts.lines("typing", "system prompts"))
    return rng.choice((fallback.unknown, fallback.advice, about_keepwarm.concept))(rng).user


def _as_typed(rng: random.Random, text: str) -> str:
    """The way people type: lower case, no punctuation, a kind word before, a slip of the finger."""
    if rng.random() < 0.12 and text[:1].isupper() and "\n" not in text:
        lead = rng.choice(texts.lines("typing", "leads")) + " "
        text = lead + (text if lead[-2] in "!.:" else text[0].lower() + text[1:])
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.1:
        text = text.rstrip("?.!")
    if rng.random() < 0.03 and len(text) > 6:
        place = rng.randrange(1, len(text) - 1)
        text = text[:place] + text[place + 1 :] if rng.random() < 0.5 else text[:place] + text[place] + text[place:]
    return text
