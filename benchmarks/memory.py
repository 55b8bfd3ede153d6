"""Memory of a runner: estimated by formula and by dry run, measured when it is ready and after work in every slot."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.machine import description
from benchmarks.system import bare_starter
from tasks.encoding import EncodingRequest
from tasks.fleet import ModelKind
from tasks.generation import GenerationRequest
from tasks.job_request import JobRequest
from tasks.jobs import Priority, new_job_id
from tasks.ports import Attempt, Finished, Outcome
from workers.devices import CpuDevice, ModelMapping
from workers.dry_runs import dry_run
from workers.engine.kv_types import STEADY
from workers.model_files import ModelFile
from workers.model_folder import FolderScanner
from workers.needs import formula_need, overhead_bytes
from workers.runner import Runner
from workers.spare_runner import SpareRunner

MIB = 1024**2
PROMPT_WORDS = 100
SETTINGS = ((1024, 1, STEADY), (4096, 8, STEADY), (4096, 8, "q8_0"))  # context length, slots, KV type


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Bytes."""

    model: str
    context_length: int
    slots: int
    kv_type: str
    formula: int
    dry_run: int | None
    ready: int
    worked: int

    def error(self, estimate: int | None) -> float | None:
        return None if estimate is None else estimate / self.worked - 1


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks memory", description=__doc__)
    parser.add_argument("folder", type=Path, help="GGUF files to load, one after the other")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args(arguments)
    console = Console()
    findings: list[Finding] = []
    for model in FolderScanner(options.folder, default_slots=8).scan().models:
        for context_length, slots, kv_type in SETTINGS:
            length = min(context_length, model.trained_context_length or context_length)
            findings.append(examine(replace(model, context_length=length, slots=slots, kv_type=kv_type)))
    console.print(_table(findings))
    if options.out:
        document = {"machine": description(), "findings": [asdict(each) for each in findings]}
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def examine(model: ModelFile) -> Finding:
    device = CpuDevice()
    with TemporaryDirectory() as logs:
        source = SpareRunner("llama_cpp", keeps=False)
        starter = bare_starter(source, log_dir=Path(logs), threads=1, limit_s=600)
        dry = dry_run(starter.config_for(model).engine)
        runner = starter(model, need_bytes=0, on_change=lambda: None)
        try:
            loaded = runner.wait_loaded()
            runner.open()
            mapping = ModelMapping(
                paths=(model.path,),
                weight_bytes=loaded.weight_bytes,
                copied_bytes=loaded.copied_weight_bytes,
                untouched=loaded.untouched,
            )
            ready = device.runner_bytes(runner.pid, mapping)
            _work_in_every_slot(runner, model)
            worked = device.runner_bytes(runner.pid, mapping)
        finally:
            runner.stop(10)
            runner.wait_gone(10)
    assert ready is not None, "the system tells nothing about the runner"
    assert worked is not None
    return Finding(
        model=model.id,
        context_length=model.context_length,
        slots=model.slots,
        kv_type=model.kv_type,
        formula=formula_need(model, device).total_bytes,
        dry_run=None if dry is None else overhead_bytes(device, model.shape) + sum(msgspec.structs.astuple(dry)),
        ready=ready,
        worked=worked,
    )


def _work_in_every_slot(runner: Runner, model: ModelFile) -> None:
    """A prompt that fills most of a step, so that the largest batch is computed."""
    with ThreadPoolExecutor(model.slots) as threads:
        for outcome in threads.map(lambda number: _work(runner, model, number), range(model.slots)):
            assert isinstance(outcome, Finished), outcome


def _work(runner: Runner, model: ModelFile, number: int) -> Outcome:
    text = " ".join(["word"] * min(PROMPT_WORDS, model.context_length // 8))
    request: JobRequest
    match model.kind:
        case ModelKind.GENERATE:
            request = GenerationRequest(model=model.id, prompt=f"{number} {text}", max_tokens=16, ignore_eos=True)
        case ModelKind.EMBED:
            request = EncodingRequest(model=model.id, texts=(text,))
        case ModelKind.RERANK:
            request = EncodingRequest(model=model.id, texts=(text,), query="word")
    slot = runner.take_slot(Priority.DEFAULT)
    assert slot is not None, "no slot is free"
    return slot.run(
        Attempt(
            job_id=new_job_id(),
            number=1,
            model=model.id,
            request=request,
            last_seq=0,
            forced_ids=(),
            emitted_text="",
            deadline_ms=None,
        )
    )


def _table(findings: Sequence[Finding]) -> Table:
    table = Table("MODEL", "CONTEXT", "SLOTS", "KV", "FORMULA", "ERROR", "DRY RUN", "ERROR", "READY", "WORKED")
    for each in findings:
        table.add_row(
            each.model,
            str(each.context_length),
            str(each.slots),
            each.kv_type,
            _mib(each.formula),
            _percent(each.error(each.formula)),
            _mib(each.dry_run),
            _percent(each.error(each.dry_run)),
            _mib(each.ready),
            _mib(each.worked),
        )
    return table


def _mib(count: int | None) -> str:
    return "–" if count is None else f"{count / MIB:.1f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:+.1%}"
