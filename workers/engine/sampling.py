"""Choosing the next token of one sequence from its logits, in numpy. Pure.

The filters are llama.cpp's (src/llama-sampler.cpp), in llama-server's order: bias, penalties, top-k, typical,
top-p, min-p, temperature, draw. Candidates are kept in order of their ids, so that rounding in the last bit moves a
boundary of the draw by as much and never swaps two tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Ids

import numpy as np
import numpy.typing as npt

from tasks.errors import InvalidRequest
from tasks.generation import GenerationRequest, TokenLogprob
from workers.engine.vocabulary import Vocabulary

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_BLOCK = 64  # logits per block in `largest`
_NUCLEUS_GUESS = 1024  # top-p nearly always ends within so many tokens
MAX_LOGPROBS = 20


class Sampler:
    """The sampling settings of one request, checked and ready. Stateless: token n depends on ids, logits and n only."""

    __slots__ = ("_bias_ids", "_bias_values", "_eog", "_params", "_penalises", "_vocabulary", "is_argmax", "logprobs")

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary) -> None:
        """Raises InvalidRequest for a bias on a token that the model doesn't have."""
        params = request.sampling
        self._params = params
        self._vocabulary = vocabulary
        self._bias_ids, self._bias_values = _parsed_bias(params.logit_bias, len(vocabulary))
        self._eog = np.array(sorted(vocabulary.eog_ids) if request.ignore_eos else [], dtype=np.intp)
        self._penalises = params.repeat_last_n != 0 and (
            params.repeat_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        )
        self.logprobs = None if request.logprobs is None else min(request.logprobs, MAX_LOGPROBS)
        changes_logits = self._penalises or self._bias_ids.size > 0 or self._eog.size > 0
        # The engine serves these from one argmax over the whole batch.
        self.is_argmax = params.temperature <= 0 and not changes_logits and self.logprobs is None

    def pick(self, logits: Floats, tokens: Ids[int], n: int) -> int:
        """The next token after `tokens` (prompt and completion); it is number `n` of the completion, from 0."""
        logits = self._adjusted(logits, tokens)
        if self._params.temperature <= 0:
            return int(logits.argmax())
        ids = self._filtered(logits)
        weights = np.exp((logits[ids] - logits[ids].max()).astype(np.float64) / self._params.temperature)
        totals = weights.cumsum()
        at = int(totals.searchsorted(uniform(self._params.seed, n) * totals[-1], side="right"))
        return int(ids[min(at, len(ids) - 1)])

    def logprob_of(self, logits: Floats, token: int) -> TokenLogprob:
        """Of the model's own distribution, before any filter."""
        peak = float(logits.max())
        norm = peak + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
        top = largest(logits, self.logprobs) if self.logprobs else ()
        text_of = self._vocabulary.text_of
        return TokenLogprob(
            text_of(token),
            float(logits[token]) - norm,
            tuple((text_of(int(rival)), float(logits[rival]) - norm) for rival in top),
        )

    def _adjusted(self, logits: Floats, tokens: Ids[int]) -> Floats:
        if not (self._penalises or self._bias_ids.size or self._eog.size):
            return logits
        logits = logits.copy()  # the original belongs to the engine
        logits[self._bias_ids] += self._bias_values
        if self._penalises:
            self._penalise(logits, tokens)
        logits[self._eog] = -np.inf
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

    def _filtered(self, logits: Floats) -> Indices:
        """Ids that may be drawn, ascending."""
        params = self._params
        ids = largest(logits, params.top_k) if 0 < params.top_k < len(logits) else None
        if params.typical_p < 1:
            ids = _typical(logits, ids, params.typical_p)
        if params.top_p < 1:
            ids = _nucleus(logits, ids, params.top_p)
        if params.min_p > 0:
            ids = _above_min_p(logits, ids, params.min_p)
        return np.flatnonzero(logits > -np.inf) if ids is None else np.sort(ids)


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

    The maximum of each block is cheap (SIMD), and the count-th largest of these maxima is a lower bound for the
    count-th largest logit: what reaches it is few enough to sort.
    """
    blocks = len(logits) // _BLOCK
    if count >= blocks:
        candidates = np.arange(len(logits))
    else:
        maxima = logits[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        floor = np.partition(maxima, blocks - count)[blocks - count]
        candidates = np.flatnonzero(logits >= floor)
    if len(candidates) > 4 * count:  # a small vocabulary, or a flat one: cut once more before the sort
        values = logits[candidates]
        floor = np.partition(values, len(values) - count)[len(values) - count]
        candidates = candidates[values >= floor]
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]


def _probabilities(values: Floats) -> npt.NDArray[np.float64]:
    weights: npt.NDArray[np.float64] = np.exp((values - values.max()).astype(np.float64))
    weights /= weights.sum()
    return weights


def _typical(logits: Floats, ids: Indices | None, mass: float) -> Indices:
    """The tokens whose surprise is nearest to the expected one, up to `mass` (Meister et al. 2022)."""
    ids = np.arange(len(logits)) if ids is None else ids
    p = _probabilities(logits[ids])
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(p)
        entropy = float(np.nansum(p * surprise))
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    reached = int(np.searchsorted(p[order].cumsum(), mass, side="right")) + 1
    return ids[order[:reached]]


def _nucleus(logits: Floats, ids: Indices | None, mass: float) -> Indices:
    """The likeliest tokens, as few as reach `mass` (Holtzman et al. 2019)."""
    if ids is None:
        return _nucleus_of_all(logits, mass)
    p = _probabilities(logits[ids])
    order = np.argsort(-p, kind="stable")
    return ids[order[: int(np.searchsorted(p[order].cumsum(), mass)) + 1]]


def _nucleus_of_all(logits: Floats, mass: float) -> Indices:
    p = _probabilities(logits)
    for count in (_NUCLEUS_GUESS, len(logits)):
        ids = largest(logits, count)
        reached = p[ids].cumsum()
        if reached[-1] >= mass:
            return ids[: int(np.searchsorted(reached, mass)) + 1]
    return ids


def _above_min_p(logits: Floats, ids: Indices | None, ratio: float) -> Indices:
    """The tokens at least `ratio` times as likely as the likeliest."""
    ids = np.flatnonzero(logits > -np.inf) if ids is None else ids
    values = logits[ids]
    kept: Indices = ids[values >= values.max() + np.log(ratio)]
    return kept


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
