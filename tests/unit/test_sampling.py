"""The sampler against a slow reference written from llama.cpp's definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import GrammarFailed, InvalidRequest
from tasks.generation import GenerationRequest, SamplingParams
from workers.engine.sampling import Sampler, largest, uniform
from workers.engine.vocabulary import Vocabulary

SIZE = 40


def vocabulary(size: int = SIZE) -> Vocabulary:
    return Vocabulary(pieces=tuple(f"<{token}>".encode() for token in range(size)), eog_ids=frozenset({size - 1}))


def sampler(size: int = SIZE, *, ignore_eos: bool = False, logprobs: int | None = None, **params) -> Sampler:
    request = GenerationRequest(
        model="m", prompt="", sampling=SamplingParams(**params), ignore_eos=ignore_eos, logprobs=logprobs
    )
    return Sampler(request, vocabulary(size))


def logits_from(seed: int, size: int = SIZE) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * 3).astype(np.float32)


def reference(logits: np.ndarray, tokens: list[int], n: int, params: SamplingParams) -> int:
    # Bias and penalties in single precision like the sampler's own: rounding must not decide a near tie.
    singles = dict(enumerate(logits))
    for name, bias in params.logit_bias.items():
        singles[int(name)] += np.float32(bias)
    window = tokens if params.repeat_last_n < 0 else tokens[len(tokens) - params.repeat_last_n :]
    for token in set(window):
        value, factor = singles[token], np.float32(params.repeat_penalty)
        value = value * factor if value <= 0 else value / factor
        times = np.float32(window.count(token))
        singles[token] = value - times * np.float32(params.frequency_penalty) - np.float32(params.presence_penalty)
    values = {token: float(value) for token, value in singles.items()}

    kept = sorted(values, key=lambda token: (-values[token], token))
    if params.top_k > 0:
        kept = kept[: params.top_k]

    def probabilities() -> dict[int, float]:
        weights = {token: math.exp(values[token] - values[kept[0]]) for token in kept}
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}

    def until(order: list[int], p: dict[int, float], enough) -> list[int]:
        total, chosen = 0.0, []
        for token in order:
            chosen.append(token)
            total += p[token]
            if enough(total):
                break
        return chosen

    if params.typical_p < 1:
        p = probabilities()
        entropy = -sum(each * math.log(each) for each in p.values() if each > 0)
        order = sorted(kept, key=lambda token: abs(-math.log(p[token]) - entropy))
        chosen = until(order, p, lambda total: total > params.typical_p)
        kept = [token for token in kept if token in chosen]
    if params.top_p < 1:
        kept = until(kept, probabilities(), lambda total: total >= params.top_p)
    if params.min_p > 0:
        kept = [token for token in kept if values[token] >= values[kept[0]] + math.log(params.min_p)]
    weights = {token: math.exp((values[token] - values[kept[0]]) / params.temperature) for token in sorted(kept)}
    goal, total = uniform(params.seed, n) * sum(weights.values()), 0.0
    for token, weight in weights.items():
        total += weight
        if total > goal:
            return token
    return max(kept)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**63 - 1),
    n=st.integers(0, 10_000),
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 100]),
    top_p=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    typical_p=st.sampled_from([0.2, 0.9, 1.0]),
    repeat=st.sampled_from([1.0, 1.3]),
    last_n=st.sampled_from([-1, 0, 3, 64]),
    presence=st.sampled_from([0.0, 0.7]),
    frequency=st.sampled_from([0.0, 0.4]),
    tokens=st.lists(st.integers(0, SIZE - 1), max_size=12),
)
def test_draw_equals_the_reference(
    seed, n, temperature, top_k, top_p, min_p, typical_p, repeat, last_n, presence, frequency, tokens
):
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repeat_penalty=repeat,
        repeat_last_n=last_n,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias={"3": 2.0, "7": -4.0},
        seed=seed,
    )
    logits = logits_from(seed % 1000)
    subject = Sampler(GenerationRequest(model="m", prompt="", sampling=params), vocabulary())
    if last_n == 0:
        tokens = []
    assert subject.pick(logits, tokens, n) == reference(logits, tokens, n, params)


def test_logits_of_the_engine_are_never_changed():
    logits = logits_from(1)
    before = logits.copy()
    sampler(repeat_penalty=1.5, logit_bias={"1": 5.0}, ignore_eos=True).pick(logits, [1, 2, 2], 0)
    assert (logits == before).all()


def test_greedy_with_penalty_avoids_what_was_just_said():
    logits = np.zeros(SIZE, dtype=np.float32)
    logits[4], logits[5] = 2.0, 1.9
    assert sampler(temperature=0).pick(logits, [4], 0) == 4
    assert sampler(temperature=0, repeat_penalty=1.5).pick(logits, [4], 0) == 5


def test_plain_greedy_is_left_to_the_batch_wide_argmax():
    assert sampler(temperature=0).is_argmax
    assert not sampler(temperature=0, logprobs=0).is_argmax
    assert not sampler(temperature=0, logit_bias={"1": 1.0}).is_argmax
    assert not sampler(temperature=0.1).is_argmax


@given(st.integers(0, 2**32), st.sampled_from([0.0, 1.0]))
def test_ignored_end_tokens_are_never_drawn(seed, temperature):
    logits = np.full(SIZE, -5.0, dtype=np.float32)
    logits[SIZE - 1] = 30.0
    assert sampler(temperature=temperature, seed=seed, ignore_eos=True).pick(logits, [], 0) != SIZE - 1


@pytest.mark.parametrize("name", ["40", "-1", "x", "1.0", "²", "99999999999999999999"])
def test_bias_on_an_unknown_token_is_refused(name):
    with pytest.raises(InvalidRequest, match="token ids are 0 to 39"):
        sampler(logit_bias={name: 1.0})


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 3000), st.booleans())
def test_largest_equals_a_full_sort(seed, count, size, coarse):
    logits = logits_from(seed, size)
    if coarse:  # many equal values
        logits = logits.round()
    expected = np.lexsort((np.arange(size), -logits))[:count]
    assert largest(logits, count).tolist() == expected.tolist()


def test_uniform_is_a_pure_function_spread_over_the_unit_interval():
    numbers = np.array([uniform(12345, n) for n in range(20_000)])
    assert uniform(12345, 777) == numbers[777]
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert (abs(counts - 1000) < 5 * math.sqrt(1000)).all()
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


def test_neighbouring_seeds_are_unrelated():
    ours, theirs = ([uniform(seed, n) for n in range(5000)] for seed in (1, 2))
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 0.05


def test_logprobs_are_the_log_softmax_of_the_raw_logits():
    logits = logits_from(3)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    entry = sampler(logprobs=3, temperature=0.1, logit_bias={"0": 100.0}).logprob_of(logits, 5)
    assert entry.text == "<5>"
    assert entry.logprob == pytest.approx(exact[5], abs=1e-5)
    likeliest = np.argsort(-logits)[:3]
    assert [rival.text for rival in entry.top] == [f"<{token}>" for token in likeliest]
    assert [rival.logprob for rival in entry.top] == pytest.approx(exact[likeliest].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=9),
        SamplingParams(seed=9, typical_p=0.5),
        SamplingParams(seed=9, top_k=0, top_p=0.5),
        SamplingParams(seed=9, temperature=1e-6),
    ],
)
def test_flat_and_extreme_logits_do_not_break_the_draw(params: SamplingParams):
    subject = Sampler(GenerationRequest(model="m", prompt="", sampling=params), vocabulary())
    for logits in (np.zeros(SIZE), np.full(SIZE, -1e30), np.full(SIZE, 1e30), np.linspace(-1e4, 1e4, SIZE)):
        assert 0 <= subject.pick(logits.astype(np.float32), [], 0) < SIZE


class Only:
    """A constraint that allows some tokens, and counts how often it had to make its mask."""

    def __init__(self, *tokens: int) -> None:
        self.tokens, self.num_masks = tokens, 0

    def allows(self, token: int) -> bool:
        return token in self.tokens

    def mask(self) -> np.ndarray:
        self.num_masks += 1
        return np.isin(np.arange(SIZE), self.tokens)

    def take(self, token: int) -> bool:
        return False


def test_constrained_draw_has_the_distribution_of_the_allowed_tokens():
    subject = sampler(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    logits = np.full(SIZE, -1.0, dtype=np.float32)
    logits[[2, 3, 9]] = [2.0, 1.0, 4.0]
    allowed = Only(2, 3, 20)
    times, weights = 4000, np.exp(logits[[2, 3, 20]].astype(np.float64))
    drawn = [subject.pick(logits, [], n, allowed) for n in range(times)]
    expected = times * weights / weights.sum()
    counts = np.array([drawn.count(token) for token in allowed.tokens])
    assert counts.sum() == times
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi square, 2 degrees of freedom, 0.1 %
    assert 0 < allowed.num_masks < times


def test_token_that_is_allowed_is_drawn_as_without_a_constraint():
    subject, logits, allowed = sampler(seed=3), logits_from(8), Only(*range(SIZE))
    assert all(subject.pick(logits, [], n, allowed) == subject.pick(logits, [], n) for n in range(50))
    assert allowed.num_masks == 0


@pytest.mark.parametrize("params", [{"temperature": 0}, {"top_k": 1}, {"typical_p": 0.5}, {"min_p": 1.0, "top_k": 0}])
def test_filters_never_leave_the_allowed_tokens(params: dict):
    subject = sampler(seed=3, **params)
    assert {subject.pick(logits_from(n), [], n, Only(30, 31)) for n in range(50)} <= {30, 31}


def test_no_allowed_token_is_an_error_and_not_a_token():
    with pytest.raises(GrammarFailed, match="no token"):
        sampler(ignore_eos=True).pick(logits_from(1), [], 0, Only(SIZE - 1))
