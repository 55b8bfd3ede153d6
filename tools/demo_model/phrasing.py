"""Many wordings from one line: a tiny grammar of alternatives. Knows nothing of any topic.

`[a|b|]` chooses one alternative (they nest, and may be empty); `{name}` is filled from a slot afterwards.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tools.demo_model.texts import Topic

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")


class Exchange(NamedTuple):
    """One question and the answer that the model should learn."""

    user: str
    assistant: str


Maker = Callable[[random.Random], Exchange]


def say(rng: random.Random, pattern: str, **slots: object) -> str:
    """One wording of `pattern`, its slots filled, its spaces tidied."""
    while "[" in pattern:
        pattern = _INNERMOST.sub(lambda match: rng.choice(match[1].split("|")), pattern)
    return re.sub(r" {2,}", " ", pattern.format(**slots)).strip()


def ask(rng: random.Random, topic: Topic) -> Exchange:
    """One wording of one question of `topic`, with one of its answers."""
    return Exchange(say(rng, rng.choice(topic.questions)), say(rng, rng.choice(topic.answers)))


def capital(text: str) -> str:
    """`text` with an upper-case first letter, the rest untouched."""
    return text[:1].upper() + text[1:]


def article(noun: str) -> str:
    """`noun` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def join_list(items: Sequence[str]) -> str:
    """`red, green and blue`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
