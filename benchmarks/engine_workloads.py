"""What both servers are asked, and which figures come of it. A workload knows a port, and not whose it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from benchmarks.lean_client import run_beside, run_clients
from benchmarks.load import Load, make_load, story
from benchmarks.spread import percentile

Figures = dict[str, float]  # name → value; the unit is the name's last part

TOKENS_PER_S = "tokens/s"
FIRST_P50, FIRST_P95 = "first token p50 ms", "first token p95 ms"
INTER_TOKEN_P99 = "inter-token p99 ms"
IS_BETTER_HIGH = {TOKENS_PER_S}


class Side(Protocol):
    """A server under test."""

    port: int
    model: str

    def cpu_s(self) -> dict[str, float]: ...


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """Bound on the ratio ours / llama-server's of one figure."""

    figure: str
    ratio: float

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.ratio if self.figure in IS_BETTER_HIGH else ratio <= self.ratio

    def worded(self) -> str:
        return f"{'≥' if self.figure in IS_BETTER_HIGH else '≤'} {self.ratio:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`run(side, number)`: prompts of one number are those of no other, so that nothing is cached from before."""

    name: str
    run: Callable[[Side, int], Figures]
    goal: Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is asked, so that a run takes seconds on any model."""

    requests: int  # of each client
    num_tokens: int  # of each answer
    long_sentences: int  # of the long prompt
    prefix_sentences: int  # of the shared system message


def throughput(clients: int, sizes: Sizes, goal_ratio: float) -> Workload:
    def run(side: Side, number: int) -> Figures:
        load = make_load(clients=clients, requests=sizes.requests, num_tokens=sizes.num_tokens, number=number)
        return _figures(side, load)

    return Workload(name=f"clients-{clients}", run=run, goal=Goal(figure=TOKENS_PER_S, ratio=goal_ratio))


def long_prompt(sizes: Sizes, *, streams: int = 4, stream_tokens: int = 160) -> Workload:
    """Streams run, and a long prompt arrives: how long do they stand still, and when is it answered?"""

    def run(side: Side, number: int) -> Figures:
        running = make_load(clients=streams, requests=1, num_tokens=stream_tokens, number=number)
        later = Load(prompts=((story(number, sizes.long_sentences),),), num_tokens=8)
        gaps_s, answers = run_beside(side.port, side.model, running, later)
        if not gaps_s:
            raise AssertionError("The long prompt was read between two tokens: take a larger model or --long-tokens.")
        return {
            INTER_TOKEN_P99: percentile(gaps_s, 99) * 1e3,
            "inter-token p50 ms": percentile(gaps_s, 50) * 1e3,
            "long prompt's first token ms": answers.first_token_s[0][0] * 1e3,
            "long prompt's tokens": answers.prompt_tokens,
        }

    return Workload(name="long-prompt", run=run, goal=Goal(figure=INTER_TOKEN_P99, ratio=0.5))


def shared_prefix(sizes: Sizes, *, clients: int = 8, requests: int = 3) -> Workload:
    """All questions of a run follow the same long system message, which nobody has seen before."""

    def run(side: Side, number: int) -> Figures:
        load = make_load(clients=clients, requests=requests, num_tokens=16, number=number)
        return _figures(side, Load(prompts=load.prompts, num_tokens=16, system=story(number, sizes.prefix_sentences)))

    return Workload(name="shared-prefix", run=run, goal=Goal(figure=FIRST_P50, ratio=1.0))


SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "mood": {"enum": ["glad", "calm", "cross"]},
        "is_new": {"type": "boolean"},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 4},
    },
    "required": ["name", "mood", "is_new", "colours"],
    "additionalProperties": False,
}


def json_schema(sizes: Sizes, *, clients: int = 4) -> Workload:
    def run(side: Side, number: int) -> Figures:
        load = make_load(clients=clients, requests=sizes.requests, num_tokens=128, number=number)
        return _figures(side, Load(prompts=load.prompts, num_tokens=128, schema=SCHEMA))

    return Workload(name="json-schema", run=run, goal=Goal(figure=TOKENS_PER_S, ratio=1.0))


def _figures(side: Side, load: Load) -> Figures:
    before = side.cpu_s()
    answers = run_clients(side.port, side.model, load, keeps_alive=False)  # llama-server ends its connections
    used = {name: after - before[name] for name, after in side.cpu_s().items()}
    first_token_s = sum(answers.first_token_s, ())
    return {
        TOKENS_PER_S: answers.completion_tokens / answers.wall_s,
        FIRST_P50: percentile(first_token_s, 50) * 1e3,
        FIRST_P95: percentile(first_token_s, 95) * 1e3,
        "tokens": answers.completion_tokens,
        **{f"cpu of {name} µs/token": cpu_s * 1e6 / answers.completion_tokens for name, cpu_s in used.items()},
    }
