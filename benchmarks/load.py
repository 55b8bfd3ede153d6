"""What is asked of both sides of a comparison, and what one run of it gave. Pure.

A load is a set of clients; each sends its prompts one after another, the next one as soon as the answer before is
complete. Both sides answer greedily with the same number of tokens.
"""

from __future__ import annotations

import msgspec

_THINGS = ("fox", "boat", "lamp", "river", "stone", "bird", "garden", "clock", "star", "bridge", "cat", "train")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    prompts: tuple[tuple[str, ...], ...]  # per client
    num_tokens: int  # of every answer; with a schema at most
    system: str | None = None  # the same system message in front of every prompt
    schema: dict[str, object] | None = None  # JSON schema that every answer keeps to; a full answer ends by itself

    @property
    def total_tokens(self) -> int:
        return self.num_tokens * sum(map(len, self.prompts))


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one load. Seconds."""

    wall_s: float
    first_token_s: tuple[tuple[float, ...], ...]  # per client and prompt, from the sending of the request
    cpu_s: dict[str, float]  # process → CPU time that it used
    prompt_tokens: int  # of all prompts
    completion_tokens: int


def make_load(*, clients: int, requests: int, num_tokens: int, number: int) -> Load:
    """`number` makes the prompts of one run differ from those of all others, so that no cache knows them."""
    return Load(
        prompts=tuple(
            tuple(_prompt(number, client * requests + request) for request in range(requests))
            for client in range(clients)
        ),
        num_tokens=num_tokens,
    )


def _prompt(number: int, index: int) -> str:
    return f"{number}.{index}: tell me a story about a {_THINGS[(7 * number + index) % len(_THINGS)]}."


def story(number: int, sentences: int) -> str:
    """A long text; its first words tell it from those of other numbers."""
    things = (_THINGS[(number + 5 * index) % len(_THINGS)] for index in range(sentences))
    told = (f"Then a {thing} came along, and it was day {index}." for index, thing in enumerate(things))
    return f"{number}: " + " ".join(told)
