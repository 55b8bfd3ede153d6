"""Greetings, thanks, questions about the model itself, echoes, names and colours to remember."""

from __future__ import annotations

import random

from tools.demo_model import texts
from tools.demo_model.phrasing import Exchange, ask, capital, say
from tools.demo_model.words import ANIMALS, COLOURS, FRUITS, NAMES, THINGS, made_up

TOPICS = texts.topics("small_talk")
WORDS_TO_SAY = (*COLOURS, *FRUITS, "yes", "no", "banana", "keepwarm", "warm", "queue", "good morning")


def topic(rng: random.Random) -> Exchange:
    """Any of the fixed topics."""
    return ask(rng, rng.choice(TOPICS))


def echo(rng: random.Random) -> Exchange:
    """Repeat a word, a name or many words. Copying is what a small network learns last, so it gets drills."""
    match rng.randrange(5):
        case 0:
            phrase = rng.choice(WORDS_TO_SAY)
        case 1:
            phrase = rng.choice(NAMES)
        case 2:
            phrase = " ".join(made_up(rng, 2, 3) for _ in range(rng.choice((1, 1, 2, 3))))
        case _:
            pool = (*THINGS, *ANIMALS, *COLOURS, made_up(rng, 2, 3), made_up(rng, 2, 3), str(rng.randint(2, 99)))
            phrase = " ".join(rng.choices(pool, k=rng.randint(2, 20)))
    question = say(
        rng,
        "[Say|Repeat|Please say|Repeat after me:|Say the word|Write|Just say|Please repeat|Reply with|"
        "Answer with|Say only|Reply with the word] [{x}|{x}.|'{x}'|\"{x}\"|{x}[!|]]",
        x=phrase,
    )
    return Exchange(question, f"{capital(phrase)}.")


def introduction(rng: random.Random) -> Exchange:
    """The user gives a name; the model greets with it."""
    return _introduce(rng, _name(rng))


def remembered_name(rng: random.Random, between: list[Exchange]) -> list[Exchange]:
    """A name is given, other things are said, and the name is asked for."""
    name = _name(rng)
    question = say(
        rng,
        "[What is my name|What's my name|Do you remember my name|Who am I|Do you know my name|Tell me my name|"
        "What did I say my name was|And what is my name][?|]",
    )
    return [_introduce(rng, name), *between, Exchange(question, f"Your name is {name}.")]


def unknown_name(rng: random.Random) -> Exchange:
    """Asked for a name that nobody gave."""
    question = "[What is my name|Who am I|Do you know my name|Do you know who I am|Tell me my name]?"
    return Exchange(say(rng, question), "You have not told me your name yet.")


def remembered_colour(rng: random.Random, between: list[Exchange]) -> list[Exchange]:
    """A favourite colour is given and asked for later."""
    colour = rng.choice(COLOURS)
    told = say(rng, "My favourite [colour|color] is {c}[.|!|]", c=colour)
    asked = say(rng, "[What is|What's|Do you remember|Tell me] my favourite [colour|color][?|]")
    return [
        Exchange(told, f"{capital(colour)} is a lovely colour."),
        *between,
        Exchange(asked, f"Your favourite colour is {colour}."),
    ]


def _name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.4 else capital(made_up(rng, 2, 2, 3))


def _introduce(rng: random.Random, name: str) -> Exchange:
    question = say(
        rng,
        "[|Hi, |Hello! |Hello, |Hey, |Hi! |Good morning, ]"
        "[my name is|I am|I'm|call me|this is|people call me] {name}"
        "[.|!||. Who are you?|. Nice to meet you.|. How are you?]",
        name=name,
    )
    answer = say(rng, "[Hello, {name}!|Hi {name}!] [Nice to meet you.|It is nice to meet you.]", name=name)
    if "Who are" in question:
        answer += " I am the Keepwarm demo model."
    elif "How are" in question:
        answer += " I am fine, thank you."
    return Exchange(capital(question), answer)
