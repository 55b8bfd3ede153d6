"""The undisturbed generation of a request: by the fake engine in this process, or by a cluster before any fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx2

from tasks.generation import GenerationRequest, SamplingParams
from tasks.settings import StoreSettings
from tests.chaos.checker import Reference, Submission, content
from tests.chaos.run import Body, read_records
from tests.support.generating import run_one
from workers.engine.base import EngineConfig
from workers.engine.fake import FakeEngine

CONTEXT_LENGTH = 2048  # of the model files that the cluster's workers find
REQUEST_LIMIT_S = 60


def fake_reference(body: Body) -> Reference:
    """Of a body without stop strings and penalties."""
    fields: dict[str, Any] = {name: body[name] for name in ("model", "prompt", "max_tokens", "ignore_eos")}
    sampling = SamplingParams(temperature=body["temperature"], seed=body.get("seed", 0))  # type: ignore[arg-type]
    config = EngineConfig(model_path=Path("none"), context_length=CONTEXT_LENGTH, slots=1, threads=1)
    heard = run_one(FakeEngine(config), GenerationRequest(**fields, sampling=sampling))
    return Reference(text=heard.text, ids=heard.ids, completion_tokens=heard.done.completion_tokens)


def generated_references(
    url: str, settings: StoreSettings, model: str, prompts: Iterable[str], lengths: Iterable[int]
) -> Callable[[Body], Reference]:
    """Of greedy requests that ignore the end token; every pair of prompt and length is generated now."""
    wanted = [(prompt, length) for prompt in prompts for length in lengths]
    with httpx2.Client(base_url=url, timeout=REQUEST_LIMIT_S) as http:
        made = {pair: _generate(http, settings, model, *pair) for pair in wanted}
    return lambda body: made[str(body["prompt"]), int(str(body["max_tokens"]))]


def _generate(http: httpx2.Client, settings: StoreSettings, model: str, prompt: str, length: int) -> Reference:
    body = {"model": model, "prompt": prompt, "max_tokens": length, "temperature": 0, "ignore_eos": True}
    job_id = http.post("/v1/jobs", json=body).raise_for_status().json()["id"]
    http.get(f"/v1/jobs/{job_id}", params={"wait": REQUEST_LIMIT_S}).raise_for_status()
    nothing = Reference(text="", ids=(), completion_tokens=0)
    record = read_records(settings, [Submission(job_id=job_id, reference=nothing)])[job_id]
    text, ids = content(record)
    assert record.state == "succeeded" and record.completion_tokens is not None, record
    return Reference(text=text, ids=ids, completion_tokens=record.completion_tokens)
