"""What makes two requests equal for the cache of answers, and what is passed on when their job is told anew."""

from __future__ import annotations

import msgspec
import pytest

from app.backend import Batch
from app.errors import StreamReset
from app.passed_on import PassedOn
from tasks.answer_cache import answer_key, as_cached
from tasks.encoding import EncodingRequest
from tasks.fleet import CachePolicy, ModelOffer
from tasks.generation import AnswerFormat, ChatMessage, GenerationRequest, SamplingParams, TokenLogprob, Tool
from tasks.jobs import JobState, Usage
from tasks.stream_events import End, Reset, Tokens, Vectors

OFFER = ModelOffer(
    id="m",
    context_length=64,
    slots=1,
    bytes=1,
    load_ms=1,
    fingerprint="f1",
    cache=CachePolicy(ttl_s=60, max_bytes=2000),
)
GREEDY = GenerationRequest(model="m", prompt="Once", sampling=SamplingParams(temperature=0))
SEEDED = GenerationRequest(model="m", prompt="Once", sampling=SamplingParams(seed=1))


def digest(request, offer: ModelOffer = OFFER, *, has_seed: bool = True) -> str:
    key = answer_key(request, offer, has_seed=has_seed)
    assert key is not None
    return key.digest


def sampled(request: GenerationRequest, **changes) -> GenerationRequest:
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, **changes))


def test_only_requests_whose_text_is_fixed_have_a_key() -> None:
    assert answer_key(GREEDY, OFFER, has_seed=False) is not None
    assert answer_key(SEEDED, OFFER, has_seed=True) is not None
    assert answer_key(SEEDED, OFFER, has_seed=False) is None
    assert answer_key(EncodingRequest(model="m", texts=("a",)), OFFER, has_seed=False) is not None


def test_a_model_without_cache_or_fingerprint_has_no_key() -> None:
    for change in ({"cache": None}, {"fingerprint": ""}):
        assert answer_key(GREEDY, msgspec.structs.replace(OFFER, **change), has_seed=False) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"prompt": "Twice"},
        {"prompt": None, "messages": (ChatMessage(role="user", content="Once"),)},
        {"max_tokens": 5},
        {"stop": ("x",)},
        {"ignore_eos": True},
        {"logprobs": 0},
        {"answer_format": AnswerFormat(kind="gbnf", text="root ::= 'a'")},
        {"tools": (Tool(name="t", definition="{}", parameters="{}"),)},
        {"must_call_tool": True},
        {"only_tool": "t"},
        {"parallel_tool_calls": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_request_counts(change: dict) -> None:
    assert digest(msgspec.structs.replace(GREEDY, **change)) != digest(GREEDY)


def test_every_part_of_a_generation_request_is_tried_above() -> None:
    assert set(GenerationRequest.__struct_fields__) == {
        *("model", "messages", "prompt", "sampling", "max_tokens", "stop", "ignore_eos", "logprobs", "answer_format"),
        *("tools", "must_call_tool", "only_tool", "parallel_tool_calls"),
    }


@pytest.mark.parametrize("name", SamplingParams.__struct_fields__)
def test_every_sampling_parameter_counts_unless_temperature_zero_ignores_it(name: str) -> None:
    ignored = {"top_k", "top_p", "min_p", "typical_p", "seed"}
    change = {name: {"5": 1.0} if name == "logit_bias" else 3}
    assert digest(sampled(SEEDED, **change)) != digest(SEEDED)
    if name != "temperature":
        assert (digest(sampled(GREEDY, **change)) == digest(GREEDY)) == (name in ignored)


def test_order_of_a_bias_does_not_count() -> None:
    one, other = ({"5": 1.0, "6": 2.0}, {"6": 2.0, "5": 1.0})
    assert digest(sampled(GREEDY, logit_bias=one)) == digest(sampled(GREEDY, logit_bias=other))


def test_a_replaced_file_has_other_keys_and_other_limits_have_not() -> None:
    assert digest(GREEDY, msgspec.structs.replace(OFFER, fingerprint="f2")) != digest(GREEDY)
    longer = msgspec.structs.replace(OFFER, cache=CachePolicy(ttl_s=9, max_bytes=5000))
    assert digest(GREEDY, longer) == digest(GREEDY)


def test_the_prompt_of_a_cached_answer_counts_as_read_from_a_cache() -> None:
    usage = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)
    end = as_cached((Tokens("a", (1, 2)), End(state=JobState.SUCCEEDED, usage=usage)))[-1]
    assert isinstance(end, End)
    assert end.usage == Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=7)


def test_what_was_passed_on_is_not_passed_on_again() -> None:
    passed_on = PassedOn()
    first: Batch = [(1, Tokens("Hel", (1, 2))), (2, Tokens("lo", (3,)))]
    assert passed_on.news(first) == first
    passed_on.begin_again()
    assert passed_on.news([(1, Tokens("Hell", (1, 2))), (2, Tokens("o wor", (3, 4)))]) == [(2, Tokens(" wor", (3, 4)))]
    assert passed_on.news([(3, Tokens("ld", (5,)))]) == [(3, Tokens("ld", (5,)))]


def test_log_probabilities_and_rows_are_not_passed_on_again() -> None:
    passed_on = PassedOn()
    a, b, c = (TokenLogprob(text, -1.0) for text in "abc")
    passed_on.news([(1, Tokens("ab", (1, 2), (a, b))), (2, Vectors((b"1", b"2")))])
    passed_on.begin_again()
    assert passed_on.news([(1, Tokens("a", (1,), (a,))), (2, Tokens("bc", (2, 3), (b, c)))]) == [
        (2, Tokens("c", (2, 3), (c,)))
    ]
    assert passed_on.news([(3, Vectors((b"1",))), (4, Vectors((b"2", b"3")))]) == [(4, Vectors((b"3",)))]


def test_an_answer_that_goes_another_way_is_no_continuation() -> None:
    passed_on = PassedOn()
    passed_on.news([(1, Tokens("Hello", (1,)))])
    passed_on.begin_again()
    with pytest.raises(StreamReset):
        passed_on.news([(1, Tokens("Help", (2,)))])


def test_a_reset_voids_what_was_passed_on() -> None:
    passed_on = PassedOn()
    passed_on.news([(1, Tokens("Hello", (1,)))])
    again: Batch = [(2, Reset(2, "another file")), (3, Tokens("Help", (2,)))]
    assert passed_on.news(again) == again
