"""Ask demo models a fixed set of questions and print how many answers are right, group by group.

    python -m tools.evaluate_demo_model models/keepwarm-demo-*.gguf
    python -m tools.evaluate_demo_model --show-wrong models/keepwarm-demo-q8_0.gguf

The answers come from llama.cpp at temperature 0 through the chat template of the file, as a user would get them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llama_cpp import Llama
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tools.demo_model import probes

MAX_TOKENS = 160
NUM_CORPUS_DOCUMENTS = 30_000


def main() -> None:
    """Ask every model everything, and print one column for each."""
    options = _options()
    console = Console()
    asked = list(probes.probes())
    sizes = Counter(probe.group for probe in asked)
    table = Table("what", "questions")
    columns = []
    for path in options.models:
        table.add_column(path.stem)
        columns.append(_num_right(path, asked, console if options.show_wrong else None))
    for group, size in sizes.items():
        table.add_row(group, str(size), *(f"{right[group]} ({right[group] / size:.0%})" for right in columns))
    console.print(table)
    if shown := probes.questions_in_corpus(NUM_CORPUS_DOCUMENTS):
        console.print("The corpus makes these questions, so they measure nothing:", *shown, sep="\n  ")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files with the chat template of the demo model")
    parser.add_argument("--show-wrong", action="store_true", help="print each answer that is not right")
    return parser.parse_args()


def _num_right(path: Path, asked: list[probes.Probe], console: Console | None) -> Counter[str]:
    llama = Llama(model_path=str(path), n_ctx=1024, n_threads=1, verbose=False)
    right: Counter[str] = Counter()
    for probe in track(asked, path.stem):
        reply = llama.create_chat_completion(
            [{"role": "user", "content": probe.question}], temperature=0, max_tokens=MAX_TOKENS
        )
        assert not isinstance(reply, Iterator), "no stream was asked for"
        said = reply["choices"][0]["message"]["content"] or ""
        if probe.is_right(said):
            right[probe.group] += 1
        elif console:
            console.print(f"[{probe.group}] {probe.question}\n    {said}", markup=False, highlight=False)
    return right


if __name__ == "__main__":
    main()
