"""Choosing the next token of one sequence from its logits, in numpy. Pure.

The filters are llama.cpp's (src/llama-sampler.cpp), in llama-server's order: bias, penalties, top-k, typical,
top-p, min-p, temperature, draw. Candidates are kept in order of their ids, so that rounding in the last bit moves a
boundary of the draw by as much and never swaps two tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as Ids

import numpy as np
import numpy.typing as npt

from tasks.errors import GrammarFailed, InvalidRequest
from tasks.generation import GenerationRequest, TokenLogprob
from workers.engine.constraint import Constraint
from workers.engine.vocabulary import Vocabulary

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Candidates = tuple[Indices, Doubles]  # ids and their logits

_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_REDRAW = 0x5851F42D4C957F2D  # turns a seed into that of the second draws
_ROWS = 64  # of the matrix that `largest` folds a large vocabulary into
_NUCLEUS_GUESS = 1024  # top-p nearly always ends within so many tokens
MAX_LOGPROBS = 20


class Sampler:
    """The sampling settings of one request, checked and ready. Stateless: token n depends on ids, logits and n only."""

    __slots__ = (
        "_bias_ids",
        "_bias_values",
        "_masked_ids",
        "_params",
        "_penalises",
        "_vocabulary",
        "is_argmax",
        "logprobs",
        "masked",
    )

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary) -> None:
        """Raises InvalidRequest for a bias on a token that the model doesn't have."""
        params = request.sampling
        self._params = params
        self._vocabulary = vocabulary
        self._bias_ids, self._bias_values = _parsed_bias(params.logit_bias, len(vocabulary))
        self.masked = vocabulary.eog_ids if request.ignore_eos else frozenset()
        self._masked_ids = np.array(sorted(self.masked), dtype=np.intp)
        self._penalises = params.repeat_last_n != 0 and (
            params.repeat_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        )
        self.logprobs = None if request.logprobs is None else min(request.logprobs, MAX_LOGPROBS)
        # The engine serves these from one argmax over the whole batch, unless that hits a masked token.
        changes_logits = self._penalises or self._bias_ids.size > 0
        self.is_argmax = params.temperature <= 0 and not changes_logits and self.logprobs is None

    def pick(self, logits: Floats, tokens: Ids[int], n: int, constraint: Constraint | None = None) -> int:
        """The next token after `tokens` (prompt and completion); it is number `n` of the completion, from 0.

        A constraint is asked about the token that was drawn, which is cheap; only when it says no, its mask of the
        whole vocabulary is made and a second draw follows. That one has a random number of its own: the first number
        is no longer uniform once it led to a token that was refused. Raises GrammarFailed when no token is left."""
        logits = self._adjusted(logits, tokens)
        token = self._draw(logits, self._params.seed, n)
        if constraint is None or constraint.allows(token):
            return token
        logits = np.where(constraint.mask(), logits, np.float32(-np.inf))
        if np.isneginf(logits.max()):
            raise GrammarFailed("the model has no token that could come next.")
        return self._draw(logits, self._params.seed ^ _REDRAW, n)

    def _draw(self, logits: Floats, seed: int, n: int) -> int:
        if self._params.temperature <= 0:
            return int(logits.argmax())
        ids, values = self._filtered(logits)
        by_id = ids.argsort()
        totals = np.exp((values[by_id] - values.max()) / self._params.temperature).cumsum()
        at = int(totals.searchsorted(uniform(seed, n) * totals[-1], side="right"))
        return int(ids[by_id[min(at, len(ids) - 1)]])

    def logprob_of(self, logits: Floats, token: int) -> TokenLogprob:
        """Of the model's own distribution, before any filter."""
        peak = float(logits.max())
        norm = peak + float(np.log(np.exp(logits - peak).sum()))
        top = largest(logits, self.logprobs) if self.logprobs else ()
        entry = self._vocabulary.logprob
        rivals = tuple(entry(int(rival), float(logits[rival]) - norm) for rival in top)
        return entry(token, float(logits[token]) - norm, rivals)

    def _adjusted(self, logits: Floats, tokens: Ids[int]) -> Floats:
        if not (self._penalises or self._bias_ids.size or self._masked_ids.size):
            return logits
        logits = logits.copy()  # the original belongs to the engine
        logits[self._bias_ids] += self._bias_values
        if self._penalises:
            self._penalise(logits, tokens)
        logits[self._masked_ids] = -np.inf
        return logits

    def _penalise(self, logits: Floats, tokens: Ids[int]) -> None:
        params = self._params
        window = tokens if params.repeat_last_n < 0 else tokens[-params.repeat_last_n :]
        counts = Counter(window)
        ids = np.fromiter(counts.keys(), dtype=np.intp, count=len(counts))
        times = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
        values = logits[ids]
        repeated = np.where(values <= 0, values * params.repeat_penalty, values / params.repeat_penalty)
        logits[ids] = repeated - times * params.frequency_penalty - params.presence_penalty

    def _filtered(self, logits: Floats) -> Candidates:
        """The tokens that may be drawn, and their logits."""
        params = self._params
        has_top_k = 0 < params.top_k < len(logits)
        if not has_top_k and params.typical_p >= 1:
            return self._filtered_vocabulary(logits)
        ids = largest(logits, params.top_k if has_top_k else len(logits))
        values = logits[ids].astype(np.float64)
        if params.typical_p < 1:
            ids, values = _typical(ids, values, params.typical_p)
        # Both keep the head of the ranking.
        keep = len(ids)
        if params.top_p < 1:
            totals = np.exp(values - values[0]).cumsum()
            keep = _nucleus_size(totals, params.top_p * totals[-1])
        if params.min_p > 0:
            keep = min(keep, int((-values).searchsorted(-values[0] - math.log(params.min_p), side="right")))
        return ids[:keep], values[:keep]

    def _filtered_vocabulary(self, logits: Floats) -> Candidates:
        """The same without top-k and typical, and without ranking 128 k tokens."""
        params = self._params
        ids = np.arange(len(logits))
        if params.top_p < 1:
            weights = np.exp(logits - logits.max())
            goal = params.top_p * float(weights.sum(dtype=np.float64))
            for count in (_NUCLEUS_GUESS, len(logits)):
                ids = largest(logits, count)
                totals = weights[ids].cumsum(dtype=np.float64)
                if totals[-1] >= goal:
                    break
            ids = ids[: _nucleus_size(totals, goal)]
        values = logits[ids].astype(np.float64)
        if params.min_p > 0:
            kept = values >= values.max() + math.log(params.min_p)
            ids, values = ids[kept], values[kept]
        return ids, values


def uniform(seed: int, n: int) -> float:
    """Number n of the random stream `seed`, in [0, 1): a resumed attempt draws what the first would have drawn.

    SplitMix64 (Steele, Lea, Flood 2014) entered at position n, with the seed mixed once so that neighbouring
    seeds don't share a stream.
    """
    return (_mix64(_mix64(seed) + (n + 1) * _GOLDEN) >> 11) * 2.0**-53


def _mix64(z: int) -> int:
    z &= _MASK64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK64
    return z ^ (z >> 31)


def largest(logits: Floats, count: int) -> Indices:
    """Ids of the `count` largest logits, largest first, equal ones by id.

    In a large vocabulary, the maximum of every 64 logits is cheap (SIMD), and the count-th largest of these maxima is
    a lower bound of the count-th largest logit: few reach it, and only they are sorted.
    """
    if count >= len(logits):
        return (-logits).argsort(kind="stable")
    columns = len(logits) // _ROWS
    sample = logits[: _ROWS * columns].reshape(_ROWS, columns).max(axis=0) if count < columns else logits
    floor = np.partition(sample, len(sample) - count)[len(sample) - count]
    candidates = (logits >= floor).nonzero()[0]
    ranked: Indices = candidates[(-logits[candidates]).argsort(kind="stable")]
    return ranked[:count]


def _nucleus_size(totals: Doubles, goal: float) -> int:
    """How many of the likeliest tokens it takes to reach a sum of weights (top-p, Holtzman et al. 2019)."""
    return int(totals.searchsorted(goal)) + 1


def _typical(ids: Indices, values: Doubles, mass: float) -> Candidates:
    """The tokens whose surprise is nearest to the expected one, up to `mass` (Meister et al. 2022), still ranked."""
    weights = np.exp(values - values[0])
    p = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(p)
        entropy = float(np.nansum(p * surprise))
    order = np.abs(surprise - entropy).argsort(kind="stable")
    reached = int(p[order].cumsum().searchsorted(mass, side="right")) + 1
    kept = np.sort(order[:reached])
    return ids[kept], values[kept]


def _parsed_bias(bias: dict[str, float], vocabulary_size: int) -> tuple[Indices, Floats]:
    ids = []
    for name in bias:
        if not (name.isascii() and name.isdigit() and int(name) < vocabulary_size):
            raise InvalidRequest(
                f"logit_bias names token {name[:20]!r}, but this model's token ids are 0 to {vocabulary_size - 1}.",
                param="logit_bias",
            )
        ids.append(int(name))
    return np.array(ids, dtype=np.intp), np.array(list(bias.values()), dtype=np.float32)
