"""Train the network on packed documents. Knows nothing of topics or files."""

# torch is not among the development tools, so it may be missing when types are checked.
# mypy: disable-error-code="import-not-found", allow-subclassing-any

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from torch.nn import functional

from tools.demo_model.corpus import Document
from tools.demo_model.network import Llama
from tools.demo_model.tokenizer import Encoder

# What the user types is worth a little: it teaches words, and keeps plain completion from rambling.
PROMPT_WEIGHT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train. The last steps use long rows, so that attention holds over a longer context."""

    num_steps: int = 2000
    row_length: int = 512
    rows_per_step: int = 8
    num_long_steps: int = 50
    long_row_length: int = 2048
    long_rows_per_step: int = 2
    peak_rate: float = 4e-3
    warmup_steps: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.1
    seed: int = 7


class Rows:
    """Packs documents into rows of ids that start with a document; the one that runs over the end is cut."""

    def __init__(self, documents: Iterator[Document], encoder: Encoder) -> None:
        self._documents = documents
        self._encoder = encoder

    def batch(self, num_rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Ids and weights, both [rows, length + 1]; a weight says how much it matters to predict its id."""
        rows = [self._row(length + 1) for _ in range(num_rows)]
        ids = np.stack([ids for ids, _ in rows])
        weights = np.stack([weights for _, weights in rows])
        return torch.from_numpy(ids), torch.from_numpy(weights)

    def _row(self, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            for segment in next(self._documents):
                more = self._encoder.special(segment.text) if segment.is_special else self._encoder.encode(segment.text)
                ids += more
                weights += [1.0 if segment.is_answer else PROMPT_WEIGHT] * len(more)
        return np.array(ids[:length], np.int64), np.array(weights[:length], np.float32)


def loss_of(network: Llama, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy in nats per token."""
    logits = network(ids[:, :-1]).float()
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    wanted = weights[:, 1:].flatten()
    return (losses * wanted).sum() / wanted.sum()


def train(network: Llama, rows: Rows, recipe: Recipe) -> None:
    """Train in place, with a progress bar."""
    optimizer = torch.optim.AdamW(_groups(network, recipe), lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True)
    smooth_loss = math.nan
    with _progress() as progress:
        task = progress.add_task("training", total=recipe.num_steps, loss=smooth_loss)
        for step in range(recipe.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, recipe)
            loss = _step(network, optimizer, *_batch(rows, step, recipe))
            smooth_loss = loss if math.isnan(smooth_loss) else 0.95 * smooth_loss + 0.05 * loss
            progress.update(task, advance=1, loss=smooth_loss)
            if (step + 1) % 100 == 0:
                progress.console.print(f"step {step + 1}: loss {smooth_loss:.4f}")


def _batch(rows: Rows, step: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    if step < recipe.num_steps - recipe.num_long_steps:
        return rows.batch(recipe.rows_per_step, recipe.row_length)
    return rows.batch(recipe.long_rows_per_step, recipe.long_row_length)


def _step(network: Llama, optimizer: torch.optim.Optimizer, ids: Tensor, weights: Tensor) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(network, ids, weights)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _groups(network: Llama, recipe: Recipe) -> Iterable[dict[str, object]]:
    """Matrices decay, norms do not."""
    matrices = [parameter for parameter in network.parameters() if parameter.dim() == 2]
    norms = [parameter for parameter in network.parameters() if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]


def _rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, constant, then linear to zero."""
    decay_steps = recipe.decay_share * recipe.num_steps
    return recipe.peak_rate * min(1.0, (step + 1) / recipe.warmup_steps, (recipe.num_steps - step) / decay_steps)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
