"""The models of the soak: the shapes of `tools.make_random_gguf family`, with as many seeds as it takes."""

from __future__ import annotations

from itertools import islice, product
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tools.random_gguf.shapes import FAMILY
from tools.random_gguf.writing import write_random_gguf


def ensure_family(folder: Path, count: int, console: Console) -> list[Path]:
    """`count` files in the folder; what is missing is written, which takes seconds per gigabyte."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        (folder / f"{name}-{seed}.gguf", name, seed)
        for seed, name in islice(product(range(count), FAMILY), count)  # all shapes before a second of any
    ]
    missing = [each for each in wanted if not each[0].exists()]
    columns = (TextColumn("{task.description:28}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    if missing:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=sum(FAMILY[name].num_bytes for _, name, _ in missing))
            for path, name, seed in missing:
                progress.update(task, description=f"writing {path.stem}")
                write_random_gguf(
                    path,
                    path.stem,
                    FAMILY[name],
                    seed=seed,
                    advance=lambda num_bytes: progress.advance(task, num_bytes),
                )
    return [path for path, _, _ in wanted]
