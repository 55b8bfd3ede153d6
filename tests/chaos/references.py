"""The undisturbed generation of a request on the fake engine, made in this process."""

from __future__ import annotations

from pathlib import Path

from tasks.generation import GenerationRequest, SamplingParams
from tests.chaos.checker import Reference
from tests.support.generating import run_one
from workers.engine.base import EngineConfig
from workers.engine.fake import FakeEngine

CONTEXT_LENGTH = 2048  # of the model files that the cluster's workers find


def fake_reference(body: dict[str, object]) -> Reference:
    """`body` as posted to /v1/jobs: model, prompt, max_tokens, ignore_eos, temperature, seed."""
    fields = dict(body)
    fields.pop("priority", None)
    fields.pop("deadline", None)
    sampling = SamplingParams(**{name: fields.pop(name) for name in ("temperature", "seed") if name in fields})  # type: ignore[arg-type]
    config = EngineConfig(model_path=Path("none"), context_length=CONTEXT_LENGTH, slots=1, threads=1)
    heard = run_one(FakeEngine(config), GenerationRequest(**fields, sampling=sampling))  # type: ignore[arg-type]
    return Reference(text=heard.text, ids=heard.ids, completion_tokens=heard.done.completion_tokens)
