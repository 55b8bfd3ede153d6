"""Honest answers to what a tiny model cannot do: code, translation, advice, nonsense, anything unknown."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence

from tools.demo_model import texts
from tools.demo_model.phrasing import Exchange, Maker, article, capital, say
from tools.demo_model.stories import plain_story
from tools.demo_model.words import (
    ANIMALS,
    COLOURS,
    FRUITS,
    IDEAS,
    NAMES,
    NUMBERS,
    THINGS,
    VEGETABLES,
    VERBS,
    made_up,
)

_SCRIPTS = (0x1F600, 0x4E00, 0x400, 0xC0, 0x3040)  # emoji, Chinese, Cyrillic, accented Latin, Japanese


def unknown(rng: random.Random) -> Exchange:
    """A sensible question that this model cannot answer."""
    return _from(rng, "unknown")


def translation(rng: random.Random) -> Exchange:
    """A request to translate."""
    return _from(rng, "translation")


def foreign(rng: random.Random) -> Exchange:
    """A sentence in another language."""
    return _from(rng, "foreign")


def advice(rng: random.Random) -> Exchange:
    """A question for a doctor, a lawyer or a bank."""
    return _from(rng, "advice")


def code(rng: random.Random) -> Exchange:
    """A request for code, a piece of code to complete, or both."""
    asked, stub = _filled(rng, "code"), rng.choice(_stubs(rng))
    question = rng.choice((asked, asked, stub, stub, f"{asked}\n\n{stub}"))
    return Exchange(question, _answer(rng, "code"))


def long_text(rng: random.Random) -> Exchange:
    """Work on a text that the user pastes before or after the order."""
    order = _filled(rng, "text work")
    text = plain_story(rng) if rng.random() < 0.6 else " ".join(_filled(rng, "unknown") for _ in range(5))
    asked = f"{order}\n\n{text}" if rng.random() < 0.7 else f"{text}\n\n{order.rstrip(':')}"
    return Exchange(asked, _answer(rng, "text work"))


def unclear(rng: random.Random) -> Exchange:
    """Nonsense: random letters, word salad, signs, other scripts, made-up words."""
    match rng.randrange(5):
        case 0:
            text = _joined(rng, string.ascii_lowercase + "  ", 3, 60)
        case 1:
            pool = (
                *THINGS,
                *ANIMALS,
                *FRUITS,
                *COLOURS,
                *VERBS,
                *NUMBERS,
                "the",
                "of",
                "and",
                "is",
                "to",
                "in",
            )
            text = " ".join(rng.choices(pool, k=rng.choice((2, 4, 8, 20))))
        case 2:
            text = _joined(rng, string.punctuation + string.digits + " ", 1, 30)
        case 3:
            text = _joined(rng, [chr(start + offset) for start in _SCRIPTS for offset in range(64)], 1, 8)
        case _:
            text = " ".join(made_up(rng, 1, 2, 3) for _ in range(rng.randint(1, 12)))
    return Exchange(text.strip() or "?", _answer(rng, "unclear"))


def as_json(rng: random.Random) -> Exchange:
    """A small JSON object, so that answers under a schema look sensible."""
    values: dict[str, object] = {
        "name": rng.choice(NAMES),
        "animal": rng.choice(ANIMALS),
        "colour": rng.choice(COLOURS),
        "color": rng.choice(COLOURS),
        "age": rng.randint(1, 90),
        "count": rng.randint(1, 20),
        "fruit": rng.choice(FRUITS),
        "vegetable": rng.choice(VEGETABLES),
        "answer": rng.choice(("yes", "no")),
        "city": rng.choice([city for _, city in texts.pairs("tables", "capitals")]),
        "ok": True,
        "title": capital(article(rng.choice(ANIMALS))),
        "tags": rng.sample(COLOURS, 2),
    }
    keys = rng.sample(list(values), rng.randint(1, 4))
    asked = say(rng, rng.choice(texts.lines("fallback", "json")), keys=" and ".join(keys))
    return Exchange(asked, json.dumps({key: values[key] for key in keys}))


def _from(rng: random.Random, section: str) -> Exchange:
    return Exchange(_filled(rng, section), _answer(rng, section))


def _answer(rng: random.Random, section: str) -> str:
    return rng.choice(texts.lines("fallback", f"{section} answers"))


def _filled(rng: random.Random, section: str) -> str:
    thing = rng.choice(THINGS)
    text = say(
        rng,
        rng.choice(texts.lines("fallback", section)),
        verb=rng.choice(VERBS),
        thing=thing,
        a_thing=article(thing),
        a_thing2=article(rng.choice(THINGS)),
        idea=rng.choice(IDEAS),
        word=capital(made_up(rng, 2, 3)),
        name=rng.choice(NAMES),
        year=rng.randint(1500, 2030),
        colour=rng.choice(COLOURS),
        animal=rng.choice(ANIMALS),
        phrase=say(rng, rng.choice(texts.lines("fallback", "phrases")), t=thing, c=rng.choice(COLOURS)),
        language=rng.choice(texts.entries("fallback", "languages")),
        task=rng.choice(texts.entries("fallback", "tasks")),
        function=rng.choice(texts.entries("fallback", "functions")),
    )
    return capital(text)


def _stubs(rng: random.Random) -> list[str]:
    name, number = rng.choice(texts.entries("fallback", "functions")), rng.randint(0, 99)
    a, b = rng.choice("abxyn"), rng.choice("cdpqz")
    return [
        f"def {name}({a}, {b}):\n    ",
        f'def {name}({a}: int) -> int:\n    """Return the result."""\n',
        f"def {name}({a}):\n    for {b} in {a}:\n        print({b})",
        f"import os\n\ndef {name}():\n    return {number}\n",
        f"function {name}({a}) {{\n  return {a} + {number};\n}}",
        f"int {name}(int {a}) {{",
        f"class {capital(name)}:\n    def __init__(self):\n        self.{a} = {number}\n",
        f"SELECT {a} FROM {name} WHERE {b} = {number};",
        f"for {a} in range({number}):\n    print({a})",
        f'from typing import List\n\n\ndef {name}({a}: List[int]) -> bool:\n    """Check {name}.\n'
        f'    >>> {name}([1, 2])\n    True\n    """\n',
        f"const {a} = {name}({number});",
        f'print("{name}")',
        f"```python\ndef {name}({a}):\n    pass\n```",
        f"#include <stdio.h>\nint main() {{ return {number}; }}",
        f"$ ls -l | grep {name}",
    ]


def _joined(rng: random.Random, characters: Sequence[str], least: int, most: int) -> str:
    return "".join(rng.choices(characters, k=rng.randint(least, most)))


_MAKERS: tuple[Maker, ...] = (unknown, code, translation, foreign, advice, long_text, unclear, as_json)
_WEIGHTS = (5, 2, 1, 1, 1, 1, 2, 1.2)


def exchange(rng: random.Random) -> Exchange:
    """Any of them."""
    return rng.choices(_MAKERS, _WEIGHTS)[0](rng)
