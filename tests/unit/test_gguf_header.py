"""The GGUF header reader: what it finds, and what it refuses."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.gguf_bytes import LLAMA, ONE_TENSOR, gguf_bytes, string
from workers.gguf_header import MAX_KEPT_ARRAY, VOCABULARY, BrokenModelFile, GgufHeader, read_header


@pytest.fixture
def parse(tmp_path: Path):
    def write_and_read(content: bytes) -> GgufHeader:
        path = tmp_path / "m.gguf"
        path.write_bytes(content)
        return read_header(path)

    return write_and_read


def test_metadata_and_sizes_are_read(parse) -> None:
    header = parse(gguf_bytes())
    assert (header.architecture, header.text("general.name"), header.file_type) == ("llama", "tiny", "F32")
    assert header.model_number("context_length", 0) == 2048
    assert header.vocabulary_size == 3
    assert (header.tensor_count, header.tensor_bytes, header.parameters) == (1, 768, 192)


def test_all_value_types_are_read(parse) -> None:
    header = parse(
        gguf_bytes(
            {
                "u8": struct.pack("<IB", 0, 200),
                "i16": struct.pack("<Ih", 3, -5),
                "i64": struct.pack("<Iq", 11, -(2**40)),
                "f64": struct.pack("<Id", 12, 0.5),
                "yes": True,
                "list": [1, 2, 3],
            }
        )
    )
    values = {key: header.metadata[key] for key in ("u8", "i16", "i64", "f64", "yes", "list")}
    assert values == {"u8": 200, "i16": -5, "i64": -(2**40), "f64": 0.5, "yes": True, "list": (1, 2, 3)}


def test_quantised_tensors_count_whole_blocks(parse) -> None:
    header = parse(gguf_bytes(tensors=(("w", (256, 2), 8), ("v", (256,), 12)), data=b"\0" * 4096))
    assert header.tensor_bytes == 512 // 32 * 34 + 144


def test_long_arrays_are_stepped_over_but_counted(parse) -> None:
    words = [f"token{number}" for number in range(MAX_KEPT_ARRAY + 1)]
    header = parse(gguf_bytes({**LLAMA, "tokenizer.ggml.tokens": words}))
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert header.vocabulary_size == len(words)


def test_figure_per_layer_or_once(parse) -> None:
    header = parse(gguf_bytes({**LLAMA, "llama.attention.head_count_kv": [2, 0]}))
    assert header.per_layer("attention.head_count_kv", 4, 2) == (2, 0)
    assert header.per_layer("feed_forward_length", 1, 2) == (128, 128)
    assert header.per_layer("expert_count", 9, 2) == (9, 9)


def test_file_of_the_gguf_package_is_read_alike(tmp_path: Path) -> None:
    from tests.support.tiny_model import CONTEXT_LENGTH, LAYERS, write_tiny_model

    header = read_header(write_tiny_model(tmp_path / "tiny.gguf"))
    assert header.model_number("context_length", 0) == CONTEXT_LENGTH
    assert header.model_number("block_count", 0) == LAYERS
    assert header.tensor_bytes == header.parameters * 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "magic bytes"),
        (b"GG", "magic bytes"),
        (gguf_bytes(magic=b"GGML"), "magic bytes"),
        (gguf_bytes(version=1), "version 1"),
        (gguf_bytes(version=3 << 24), "big-endian"),
        (gguf_bytes(tensor_count=2**63), "claims 9223372036854775808 tensors"),
        (gguf_bytes(metadata_count=2**40), "claims 1099511627776 metadata entries"),
        (gguf_bytes(metadata_count=60_000), "metadata entries"),
        (gguf_bytes({"k": struct.pack("<IQ", 8, 2**62)}), "claims 4611686018427387904 bytes"),
        (gguf_bytes({"k": struct.pack("<IIQ", 9, 4, 2**61)}), "elements of 'k'"),
        (gguf_bytes({"k": struct.pack("<IIQ", 9, 9, 1)}), "unknown type 9"),
        (gguf_bytes({"k": struct.pack("<I", 77)}), "unknown type 77"),
        (gguf_bytes({"k": 1}, metadata_count=1)[:40], "cut off in its header|more than"),
        (gguf_bytes(tensors=(("w", (1,) * 5, 0),)), "5 dimensions"),
        (gguf_bytes(tensors=(("w", (2**40, 2**40), 0),), data=b""), "claims 1208925819614629174706176 elements"),
        (gguf_bytes(tensors=(("w", (32,), 99),)), "unknown type 99"),
        (gguf_bytes(tensors=(("w", (33,), 8),)), "whole blocks of 32"),
        (gguf_bytes(data=b"\0" * 100), "cut off: its tensors end"),
        (gguf_bytes({**LLAMA, "general.alignment": 0}), "general.alignment"),
        (gguf_bytes({**LLAMA, VOCABULARY: ["a", "", "", "b", "a"]}), "the token b'a' twice, the second time as 4"),
        (gguf_bytes({**LLAMA, VOCABULARY: [f"t{n % 2000}" for n in range(2001)]}), "the second time as 2000"),
    ],
)
def test_broken_file_is_refused_with_a_reason(parse, content: bytes, reason: str) -> None:
    with pytest.raises(BrokenModelFile, match=reason):
        parse(content)


def test_key_that_occurs_twice_is_refused(parse) -> None:
    twice = string("k") + struct.pack("<II", 4, 1)
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + twice + twice
    with pytest.raises(BrokenModelFile, match="twice"):
        parse(content)


def test_every_truncation_is_refused(parse) -> None:
    content = gguf_bytes()
    for length in range(0, len(content), 7):
        with pytest.raises(BrokenModelFile):
            parse(content[:length])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(4, 420), value=st.binary(min_size=1, max_size=8))
def test_damaged_header_is_read_or_refused_but_never_breaks_the_reader(parse, position: int, value: bytes) -> None:
    content = bytearray(gguf_bytes(tensors=ONE_TENSOR))
    content[position : position + len(value)] = value
    with contextlib.suppress(BrokenModelFile):
        parse(bytes(content))
