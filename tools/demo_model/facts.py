"""Simple facts: capitals, colours, animals, days, months, opposites, counting, lists."""

from __future__ import annotations

import random

from tools.demo_model import texts
from tools.demo_model.phrasing import Exchange, Maker, article, ask, capital, join_list, say
from tools.demo_model.words import (
    ANIMALS,
    COLOURS,
    DAYS,
    FRUITS,
    MONTHS,
    NUMBERS,
    PLANETS,
    SEASONS,
    VEGETABLES,
    made_up,
)

TOPICS = texts.topics("facts")
_CAPITALS = texts.pairs("tables", "capitals")
_CALENDAR = (DAYS, MONTHS, PLANETS, SEASONS)
CATEGORIES: dict[str, list[str]] = {
    "animals": ANIMALS,
    "colours": COLOURS,
    "colors": COLOURS,
    "fruits": FRUITS,
    "vegetables": VEGETABLES,
    "days": DAYS,
    "days of the week": DAYS,
    "months": MONTHS,
    "seasons": SEASONS,
    "planets": PLANETS,
    "countries": [country for country, _ in _CAPITALS if not country.startswith("the ")],
    "cities": [city for _, city in _CAPITALS],
    "numbers": NUMBERS[1:11],
} | {
    name.removeprefix("some "): texts.entries("tables", name)
    for name in texts.sections("tables")
    if name.startswith("some ")
}


def topic(rng: random.Random) -> Exchange:
    """Any of the fixed facts."""
    return ask(rng, rng.choice(TOPICS))


def capital_city(rng: random.Random) -> Exchange:
    """A capital, asked for in either direction; that of a made-up country is not known."""
    country, city = rng.choice(_CAPITALS)
    kind = rng.random()
    if kind < 0.2:
        unknown = texts.entries("tables", "unknown countries")
        country = rng.choice(unknown) if rng.random() < 0.5 else capital(made_up(rng, 2, 3))
        answer = "I am sorry, I don't know the capital of that country."
        return Exchange(say(rng, _one_of("capital"), x=country), answer)
    if kind < 0.4:
        return Exchange(say(rng, _one_of("country"), y=city), f"{city} is the capital of {country}.")
    answer = say(rng, "[The capital of {x} is {y}.|{y} is the capital of {x}.]", x=country, y=city)
    return Exchange(say(rng, _one_of("capital"), x=country), answer)


def from_table(rng: random.Random) -> Exchange:
    """What a table says of a thing, an animal or a word."""
    table, answer = rng.choice(_TABLE_ANSWERS)
    left, right = rng.choice(texts.pairs("tables", table))
    slots = {"x": left, "a": article(left), "X": capital(left), "A": capital(article(left))}
    asked = say(rng, _one_of(table), **slots)
    return Exchange(asked, answer.format(y=right, a_y=article(right), **slots))


_TABLE_ANSWERS = (
    ("colours of things", "{X} is {y}."),
    ("sounds", "{A} says {y}."),
    ("legs", "{A} has {y} legs."),
    ("young", "The young of {a} is called {a_y}."),
    ("foods", "{X} eat {y}."),
    ("homes", "{X} live {y}."),
    ("opposites", "The opposite of {x} is {y}."),
)


def next_day(rng: random.Random) -> Exchange:
    """The day or month after or before another."""
    cycle, kind = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    step, word = rng.choice(((1, "after"), (1, "after"), (-1, "before")))
    place = rng.randrange(len(cycle))
    asked = say(rng, _one_of("calendar"), kind=kind, word=word, x=cycle[place])
    return Exchange(asked, f"The {kind} {word} {cycle[place]} is {cycle[(place + step) % len(cycle)]}.")


def counting(rng: random.Random) -> Exchange:
    """Count up or down, in digits."""
    if rng.random() < 0.25:
        high = rng.randint(3, 12)
        return Exchange(say(rng, _one_of("count down"), x=high), _counted(range(high, 0, -1)))
    low = 1 if rng.random() < 0.7 else rng.randint(2, 30)
    high = rng.choice((30, 40, 50, 60, 70, 80, 100)) if low == 1 and rng.random() < 0.08 else low + rng.randint(2, 19)
    shown = NUMBERS[high] if high <= 20 and rng.random() < 0.5 else str(high)
    start = "" if low == 1 and rng.random() < 0.7 else f"from {low} "
    return Exchange(say(rng, _one_of("count up"), start=start, x=shown), _counted(range(low, high + 1)))


def a_list(rng: random.Random) -> Exchange:
    """Name some members of a category, in a sentence or with bullets."""
    category, members = rng.choice(list(CATEGORIES.items()))
    count = rng.randint(2, min(7, len(members)))
    chosen = members[:count] if members in _CALENDAR else rng.sample(members, count)
    style = rng.choice(("sentence", "sentence", "bullets"))
    number = rng.choice((NUMBERS[count], str(count), "some"))
    asked = say(rng, _one_of(f"list in {style}"), number=number, category=category)
    heading = f"Here are {NUMBERS[count]} {category}:"
    if style == "bullets":
        return Exchange(asked, "\n".join([heading, *(f"- {item}" for item in chosen)]))
    return Exchange(asked, f"{heading} {join_list(chosen)}.")


def _one_of(section: str) -> str:
    """All questions of a section as one pattern."""
    return f"[{'|'.join(texts.lines('fact_questions', section))}]"


def _counted(numbers: range) -> str:
    return ", ".join(str(number) for number in numbers) + "."


_MAKERS: tuple[Maker, ...] = (topic, capital_city, from_table, next_day, counting, a_list)
_WEIGHTS = (2, 1.3, 4, 1, 1, 2)


def exchange(rng: random.Random) -> Exchange:
    """Any simple fact."""
    return rng.choices(_MAKERS, _WEIGHTS)[0](rng)
