"""What the short and the long chaos runs have in common: their clusters and their requests."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.chaos.cluster import Cluster, write_model_files
from tests.chaos.run import Body

FAKE_MODELS = ("alpha", "beta", "gamma")
DEMO_MODEL = "keepwarm-demo-q8_0"
DEMO_PROMPTS = ("Once upon a time", "The queue was long and", "A token", "One, two, three,", "The worker said:")
DEMO_LENGTHS = (30, 150, 400)
DEADLINE_S = 240  # generous for a job, but well within the skew of the clocks

# Chaos breaks far more attempts of one job than life does; what counts is that none of them is lost.
PATIENCE = {"KEEPWARM_MAX_ATTEMPTS": "100", "KEEPWARM_QUARANTINE_S": "0", "KEEPWARM_DRAIN_S": "1"}


def fake_cluster(folder: Path, seed: int, *, lease_s: float = 2.0, step_ms: float = 12.0) -> Cluster:
    """Two workers, two controllers, two APIs; three models of which two fit into a worker at once."""
    return Cluster(
        folder / "home",
        random.Random(seed),
        write_model_files(folder / "models", FAKE_MODELS),
        settings={
            "KEEPWARM_ENGINE": "fake",
            "KEEPWARM_FAKE": json.dumps({"step_ms": step_ms, "load_s": 0.2}),
            "KEEPWARM_LEASE_S": str(lease_s),
            "KEEPWARM_MEMORY_BUDGET": "200MiB",
            **PATIENCE,
        },
    )


def demo_cluster(folder: Path, seed: int, *, lease_s: float = 2.0) -> Cluster:
    """The same with llama.cpp and the demo model."""
    return Cluster(folder / "home", random.Random(seed), settings={"KEEPWARM_LEASE_S": str(lease_s), **PATIENCE})


def fake_body(rng: random.Random) -> Body:
    """Prompts of any length up to two prefill chunks, greedy and sampled, some with a deadline."""
    body = _body(rng, rng.choice(FAKE_MODELS), rng.randint(5, 120))
    body["prompt"] = "".join(rng.choices("abcdefgh ", k=rng.randint(1, 700)))
    body["ignore_eos"] = rng.random() < 0.8
    if rng.random() < 0.3:
        body["temperature"] = 1.0
    return body


def demo_body(rng: random.Random) -> Body:
    """Greedy, and one of a few requests, so that each has its reference."""
    return {**_body(rng, DEMO_MODEL, rng.choice(DEMO_LENGTHS)), "prompt": rng.choice(DEMO_PROMPTS)}


def _body(rng: random.Random, model: str, max_tokens: int) -> Body:
    body: Body = {
        "model": model,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "seed": rng.randrange(2**31),
        "priority": rng.choice(("interactive", "default", "batch")),
    }
    if rng.random() < 0.3:
        body["deadline"] = DEADLINE_S
    return body
