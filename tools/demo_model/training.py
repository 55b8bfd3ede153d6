"""Train the network on documents, packed or one to a row. Knows nothing of topics or files."""

# torch is not among the development tools, so it may be missing when types are checked.
# mypy: disable-error-code="import-not-found", allow-subclassing-any

from __future__ import annotations

import itertools
import math
import random
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
POOL_SIZE = 1024  # documents that are sorted by length at a time

Batch = tuple[Tensor, Tensor]  # ids and weights, both [rows, time]; a weight says how much its id matters
Row = list[tuple[int, float]]  # token id, weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train. The last steps may use long rows, so that attention holds over a longer context."""

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

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step with rows of the usual length."""
        return self.row_length * self.rows_per_step


FIRST = Recipe()
SECOND = Recipe(num_steps=400, num_long_steps=0, peak_rate=2e-3, warmup_steps=20, decay_share=1.0, seed=8)


class Rows:
    """Packs documents into rows of ids that start with a document; the one that runs over the end is cut."""

    def __init__(self, documents: Iterator[Document], encoder: Encoder) -> None:
        self._documents = documents
        self._encoder = encoder

    def batch(self, num_rows: int, length: int) -> Batch:
        """A batch of `num_rows` by `length + 1`."""
        rows = [self._row(length + 1) for _ in range(num_rows)]
        ids = np.stack([ids for ids, _ in rows])
        weights = np.stack([weights for _, weights in rows])
        return torch.from_numpy(ids), torch.from_numpy(weights)

    def _row(self, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            for number, weight in _row(next(self._documents), self._encoder):
                ids.append(number)
                weights.append(weight)
        return np.array(ids[:length], np.int64), np.array(weights[:length], np.float32)


def packed_batches(documents: Iterator[Document], encoder: Encoder, recipe: Recipe) -> Iterator[Batch]:
    """Endless batches of packed rows, long ones at the end of the recipe."""
    rows = Rows(documents, encoder)
    for step in itertools.count():
        if step < recipe.num_steps - recipe.num_long_steps:
            yield rows.batch(recipe.rows_per_step, recipe.row_length)
        else:
            yield rows.batch(recipe.long_rows_per_step, recipe.long_row_length)


def single_batches(documents: Iterator[Document], encoder: Encoder, recipe: Recipe) -> Iterator[Batch]:
    """Endless batches of documents of like length, one to a row: as in use, a chat starts at position 0, alone."""
    rng = random.Random(recipe.seed)
    while True:
        pool = sorted((_row(next(documents), encoder)[: recipe.long_row_length] for _ in range(POOL_SIZE)), key=len)
        batches = list(_cut(pool, recipe.tokens_per_step))
        rng.shuffle(batches)
        yield from map(_padded, batches)


def _row(document: Document, encoder: Encoder) -> Row:
    row: Row = []
    for segment in document:
        ids = encoder.special(segment.text) if segment.is_special else encoder.encode(segment.text)
        row += [(number, 1.0 if segment.is_answer else PROMPT_WEIGHT) for number in ids]
    return row


def _cut(pool: list[Row], num_tokens: int) -> Iterator[list[Row]]:
    """Neighbours in a sorted pool, as many as fit with their padding."""
    batch: list[Row] = []
    for row in pool:
        if batch and (len(batch) + 1) * len(row) > num_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _padded(rows: list[Row]) -> Batch:
    """Padding has no weight, and being at the end it is seen by nobody."""
    shape = (len(rows), max(map(len, rows)))
    ids, weights = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor([number for number, _ in row])
        weights[place, : len(row)] = torch.tensor([weight for _, weight in row])
    return ids, weights


def loss_of(network: Llama, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy in nats per token."""
    logits = network(ids[:, :-1]).float()
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    wanted = weights[:, 1:].flatten()
    return (losses * wanted).sum() / wanted.sum()


def train(network: Llama, batches: Iterator[Batch], recipe: Recipe) -> None:
    """Train in place, with a progress bar."""
    optimizer = torch.optim.AdamW(_groups(network, recipe), lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True)
    smooth_loss = math.nan
    with _progress() as progress:
        task = progress.add_task("training", total=recipe.num_steps, loss=smooth_loss)
        for step, (ids, weights) in enumerate(itertools.islice(batches, recipe.num_steps)):
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, recipe)
            loss = _step(network, optimizer, ids, weights)
            smooth_loss = loss if math.isnan(smooth_loss) else 0.95 * smooth_loss + 0.05 * loss
            progress.update(task, advance=1, loss=smooth_loss)
            if (step + 1) % 100 == 0:
                progress.console.print(f"step {step + 1}: loss {smooth_loss:.4f}")


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
