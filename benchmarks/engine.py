"""Keepwarm beside llama-server on the same model: tokens per second, first tokens, stalls, prefixes, JSON, batches.

Both are whole servers, asked over HTTP and read as event streams by the same lean clients. They get the same GGUF file,
threads, slots, context, KV type and flash attention, and llama-server stands on the very libraries of our engine
(`python -m tools.build_llama_peers` builds it). The two answer the same prompts in alternation, one pair after the
other; a ratio is ours over llama-server's, pair by pair. The `batch` workload has no HTTP in it: our engine alone
beside llama-batched-bench, which neither tokenises nor samples.

Results of several calls add up in one file per model and day, so that a call can be as short as one workload:

    python -m benchmarks engine --model ~/models/llama-110m-q8_0.gguf --only clients-1 clients-8
    python -m benchmarks engine --plot docs/img/engine.svg
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import TimeElapsedColumn

from benchmarks import engine_workloads as workloads
from benchmarks import machine
from benchmarks.batched_bench import batch_pairs
from benchmarks.engine_plot import plot
from benchmarks.engine_report import Report, summarise, table
from benchmarks.engine_workloads import TOKENS_PER_S, Figures, Goal, Side, Sizes, Workload
from benchmarks.lean_client import run_clients
from benchmarks.llama_server import BIN, LlamaServer
from benchmarks.load import Load, story
from benchmarks.step_bar import step_bar
from benchmarks.system import System, engine_config, served_model
from tests.support.stack import DEMO_MODELS
from workers.cores import usable_cores

DEFAULT_MODEL = DEMO_MODELS / "keepwarm-demo-q8_0.gguf"
CLIENTS = (1, 4, 8, 16)
NAMES = (*(f"clients-{clients}" for clients in CLIENTS), "long-prompt", "shared-prefix", "json-schema", "batch")
BATCH_GOAL = Goal(figure=TOKENS_PER_S, ratio=0.9)
_PROBE_SENTENCES = 40

Pairs = list[tuple[Figures, Figures]]  # (ours, llama-server's)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # leaves no server behind
    console = Console()
    if options.plot:
        plot(machine.RESULTS, options.plot)
        console.print(f"drawn in {options.plot}")
        return 0
    if not (options.bin / "llama-server").exists():
        console.print(f"There is no llama-server in {options.bin}: run `python -m tools.build_llama_peers` first.")
        return 2
    model = served_model(options.model, options.slots)
    path = machine.result_path(f"engine-{model.id}")
    report = Report.kept_in(path, model)
    with step_bar(console, len(options.only) * (options.pairs + 1), width=14, clock=TimeElapsedColumn()) as advance:
        for workload, goal, pairs in _measured(options, advance, console):
            report = report.with_row(summarise(workload, goal, pairs, arguments, _where(options)))
            report.write(path)
    rows = [row for row in report.rows if row.workload in options.only]
    console.print(table(rows, f"{model.id} ({model.description}), {options.threads} threads, {options.slots} slots"))
    console.print(f"kept in {path}")
    return 0 if all(row.is_met for row in rows) else 1


def _measured(
    options: argparse.Namespace, advance: Callable[[str], None], console: Console
) -> Iterator[tuple[str, Goal, Pairs]]:
    with ExitStack() as running:
        if set(options.only) - {"batch"}:
            home = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="keepwarm-bench-")))
            model = served_model(options.model, options.slots)
            ours = running.enter_context(System(home, model, threads=options.threads, slots=options.slots))
            served = served_model(home / "models" / model.path.name, options.slots)
            config = engine_config(served, options.threads)
            theirs = running.enter_context(
                LlamaServer(options.bin / "llama-server", config, home / "llama-server.log", threads=options.threads)
            )
            for workload in _http_workloads(options, ours):
                if workload.name == "json-schema" and not _knows_schemas(ours):
                    console.print("json-schema is left out: the server does not accept response_format json_schema")
                    continue
                yield workload.name, workload.goal, list(_alternate(workload, ours, theirs, options, advance))
    if "batch" in options.only:
        pairs = []
        config = engine_config(served_model(options.model, options.slots), options.threads)
        numbers = range(options.first_number, options.first_number + options.pairs + 1)
        binary = options.bin / "llama-batched-bench"
        for pair in batch_pairs(binary, config, threads=options.threads, num_tokens=options.tokens, numbers=numbers):
            pairs.append(pair)
            advance("batch")
        yield "batch", BATCH_GOAL, pairs[1:]


def _alternate(
    workload: Workload, ours: Side, theirs: Side, options: argparse.Namespace, advance: Callable[[str], None]
) -> Iterator[tuple[Figures, Figures]]:
    """The first pair only warms both sides up."""
    for number in range(options.pairs + 1):
        seed = options.first_number + number
        if number % 2:
            our, their = workload.run(ours, seed), workload.run(theirs, seed)
        else:
            their, our = workload.run(theirs, seed), workload.run(ours, seed)
        if number:
            yield our, their
        advance(workload.name)


def _http_workloads(options: argparse.Namespace, ours: System) -> Iterator[Workload]:
    per_sentence = _tokens_per_sentence(ours)
    sizes = Sizes(
        requests=options.requests,
        num_tokens=options.tokens,
        long_sentences=round(options.long_tokens / per_sentence),
        prefix_sentences=round(options.prefix_tokens / per_sentence),
    )
    goal_ratio = 0.9 if options.model == DEFAULT_MODEL else 1.0  # of so small a model the server is the larger part
    for clients in CLIENTS:
        if f"clients-{clients}" in options.only:
            yield workloads.throughput(clients, sizes, goal_ratio)
    for make in (workloads.long_prompt, workloads.shared_prefix, workloads.json_schema):
        workload = make(sizes)
        if workload.name in options.only:
            yield workload


def _tokens_per_sentence(ours: System) -> float:
    asked = Load(prompts=((story(0, _PROBE_SENTENCES),),), num_tokens=1)
    return run_clients(ours.port, ours.model, asked).prompt_tokens / _PROBE_SENTENCES


def _knows_schemas(ours: System) -> bool:
    try:
        run_clients(ours.port, ours.model, Load(prompts=(("probe",),), num_tokens=64, schema=workloads.SCHEMA))
    except AssertionError:
        return False
    return True


def _where(options: argparse.Namespace) -> dict[str, object]:
    """What a row needs beside the report's own: the options that shape it."""
    names = ("threads", "slots", "requests", "tokens", "long_tokens", "prefix_tokens", "first_number")
    return {name: getattr(options, name) for name in names}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="GGUF file (default: the demo model)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="WORKLOAD", help=", ".join(NAMES))
    parser.add_argument("--pairs", type=int, default=10, help="of each workload")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of both sides")
    parser.add_argument("--slots", type=int, default=16, help="sequences at once, on both sides")
    parser.add_argument("--requests", type=int, default=2, help="of each client per run")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--long-tokens", type=int, default=3000, help="about so many in the long prompt")
    parser.add_argument("--prefix-tokens", type=int, default=1000, help="about so many in the shared system message")
    parser.add_argument("--first-number", type=int, default=0, help="makes the prompts of this call others")
    parser.add_argument("--bin", type=Path, default=BIN, help=f"where llama-server is (default: {BIN})")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="measure nothing, draw the results that are there")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
