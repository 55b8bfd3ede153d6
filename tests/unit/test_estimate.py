"""The memory formula."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workers.byte_text import format_bytes, format_sum
from workers.engine.base import DRAFT_TOKENS
from workers.estimate import (
    LOAD_BASE_MS,
    EstimatedNeed,
    MeasuredNeed,
    ModelShape,
    estimate_load_ms,
    estimate_need,
    need_of_measured,
    parked_bytes,
)

MIB = 1024**2
GIB = 1024**3
LLAMA_1B = ModelShape(
    weight_bytes=1_300_000_000,
    vocabulary_size=128_256,
    embedding_length=2048,
    feed_forward_length=8192,
    heads=32,
    kv_heads=(8,) * 16,
    key_length=64,
    value_length=64,
)


def need(shape: ModelShape = LLAMA_1B, *, context_length: int = 4096, slots: int = 1, kv_type: str = "f16"):
    return estimate_need(shape, context_length=context_length, slots=slots, kv_type=kv_type, runner_bytes=10)


def test_kv_of_a_known_model() -> None:
    assert need().kv_bytes == 4096 * 16 * 8 * (64 + 64) * 2  # 128 MiB


def test_quantised_kv_takes_its_share() -> None:
    assert need(kv_type="q8_0").kv_bytes * 32 == need().kv_bytes * 17
    assert need(kv_type="q4_0").kv_bytes * 32 == need().kv_bytes * 9


def test_kv_grows_with_context_and_slots() -> None:
    assert need(slots=4).kv_bytes == need(context_length=16384).kv_bytes == 4 * need().kv_bytes


def test_layers_without_attention_have_no_kv() -> None:
    hybrid = replace(LLAMA_1B, kv_heads=(8, 0, 0, 0) * 4)
    assert need(hybrid).kv_bytes * 4 == need().kv_bytes


def test_output_is_one_row_of_logits_per_slot_and_drafted_token() -> None:
    assert need(slots=8).output_bytes == (8 + DRAFT_TOKENS) * 128_256 * 4


def test_compute_holds_activations_and_the_attention_mask() -> None:
    assert need().compute_bytes == 4 * 512 * 8192 * 4 + 4096 * 512 * 2


def test_total_is_the_sum_that_is_explained() -> None:
    example = EstimatedNeed(
        weight_bytes=2 * GIB, kv_bytes=GIB, compute_bytes=GIB // 2, output_bytes=0, runner_bytes=GIB // 4
    )
    assert example.total_bytes == 2 * GIB + GIB + GIB // 2 + GIB // 4
    assert example.explain() == "3.8 GiB = weights 2.0 + KV 1.0 + compute 0.5 + runner 0.2"
    assert MeasuredNeed(total_bytes=GIB).explain() == "1.0 GiB (measured)"


@pytest.mark.parametrize(
    ("context_length", "wished", "parked"),
    [(4096, None, 32 * MIB), (131_072, None, 256 * MIB), (4096, 0, 0), (4096, GIB, GIB)],
)
def test_parked_states_get_a_quarter_of_the_kv_cache_unless_told_otherwise(context_length, wished, parked) -> None:
    found = parked_bytes(LLAMA_1B, context_length=context_length, slots=1, kv_type="f16", wished=wished)
    assert found == parked


def test_parked_states_come_on_top_of_every_need() -> None:
    plain = need()
    roomy = estimate_need(LLAMA_1B, context_length=4096, slots=1, kv_type="f16", runner_bytes=10, parked_bytes=5 * MIB)
    assert roomy.total_bytes == plain.total_bytes + 5 * MIB
    assert need_of_measured(GIB, 5 * MIB).total_bytes == need_of_measured(GIB).total_bytes + 5 * MIB


def test_load_time_grows_with_the_weights() -> None:
    assert estimate_load_ms(0) == LOAD_BASE_MS
    assert estimate_load_ms(4_000_000_000) == LOAD_BASE_MS + 10_000


def test_bytes_are_written_in_a_fitting_unit() -> None:
    assert [format_bytes(count) for count in (0, 1023, 1024, 5 * 1024**2, 3 * GIB, 2048 * GIB)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "2.0 TiB",
    ]
    assert format_sum(2 * 1024, (("a", 1024), ("b", 0), ("c", 1024))) == "2.0 KiB = a 1.0 + c 1.0"
