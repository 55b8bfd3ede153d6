"""Generations that come, and are cancelled, at any step of a loop; made by Hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from tasks.jobs import Priority


@dataclass(frozen=True)
class Arrival:
    step: int
    prompt: str
    priority: Priority
    max_tokens: int
    seed: int
    cancel_after: int | None  # steps
    adapter: str


def arrivals(
    prompts: Sequence[str], *, max_tokens: int, max_size: int, adapters: Sequence[str] = ("",)
) -> st.SearchStrategy[list[Arrival]]:
    return st.lists(
        st.builds(
            Arrival,
            step=st.integers(0, 30),
            prompt=st.sampled_from(prompts),
            priority=st.sampled_from(Priority),
            max_tokens=st.integers(1, max_tokens),
            seed=st.integers(0, 2),
            cancel_after=st.none() | st.none() | st.integers(0, 20),
            adapter=st.sampled_from(adapters),
        ),
        min_size=1,
        max_size=max_size,
    )
