"""Write GGUF files of real shapes with random weights: for benchmarks, which need sizes and speeds but no sense.

    python -m tools.make_random_gguf --list
    python -m tools.make_random_gguf llama-110m-q8_0 llama-1b-q4_0 --out ~/models
    python -m tools.make_random_gguf family --out ~/models     # twelve models of 41 M to 1 B parameters

The same name and seed give the same bytes. The tokenizer and the chat template are the demo model's; its tokens are
padded to the vocabulary of the shape with filler words, which the model says and no prompt contains. Control tokens get
logits near zero, far below the best of the others: a greedy answer practically never ends by itself. Ask for it with
`ignore_eos` all the same.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tools.random_gguf.shapes import FAMILY, MODELS
from tools.random_gguf.writing import write_random_gguf


def main() -> None:
    """Write the models that are asked for; one that is there already stays."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of models, or `family`, or `all`")
    parser.add_argument("--list", action="store_true", help="print names and sizes")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder to write to (default: this one)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    groups = {"family": list(FAMILY), "all": list(MODELS)}
    names = list(dict.fromkeys(name for asked in options.names for name in groups.get(asked, [asked])))
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"there is no {', '.join(unknown)}; --list names what there is")
    if options.list or not names:
        for name, model in MODELS.items():
            print(f"{name:18} {model.num_parameters / 1e6:7.0f} M parameters {model.num_bytes / 1e6:7.0f} MB")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    paths = {name: options.out / f"{name}.gguf" for name in names}
    columns = (TextColumn("{task.description:18}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        for name, path in paths.items():
            task = progress.add_task(name, total=MODELS[name].num_bytes)
            if path.exists():
                progress.update(task, completed=MODELS[name].num_bytes, description=f"{name} (is there)")
                continue
            advance = functools.partial(progress.advance, task)
            write_random_gguf(path, name, MODELS[name], seed=options.seed, advance=advance)


if __name__ == "__main__":
    main()
