"""The shapes that can be written, by name. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gguf import GGMLQuantizationType as Kind

from tools.random_gguf.blocks import num_bytes

HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomModel:
    """Shape of a llama. Widths in numbers, `kind` of all matrices but the embedding."""

    width: int
    num_layers: int
    num_kv_heads: int
    hidden_width: int
    vocab_size: int = 32_000
    context_length: int = 8192
    rope_base: float = 10_000.0
    kind: Kind = Kind.Q8_0
    embedding_kind: Kind = Kind.Q8_0  # llama.cpp's own quantiser keeps a tied embedding better than the rest

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """(name, rows, columns); the embedding comes first and is the output as well."""
        kv_width = self.num_kv_heads * HEAD_WIDTH
        yield "token_embd", self.vocab_size, self.width
        for layer in range(self.num_layers):
            yield f"blk.{layer}.attn_q", self.width, self.width
            yield f"blk.{layer}.attn_k", kv_width, self.width
            yield f"blk.{layer}.attn_v", kv_width, self.width
            yield f"blk.{layer}.attn_output", self.width, self.width
            yield f"blk.{layer}.ffn_gate", self.hidden_width, self.width
            yield f"blk.{layer}.ffn_up", self.hidden_width, self.width
            yield f"blk.{layer}.ffn_down", self.width, self.hidden_width

    def norms(self) -> Iterator[str]:
        yield "output_norm"
        for layer in range(self.num_layers):
            yield f"blk.{layer}.attn_norm"
            yield f"blk.{layer}.ffn_norm"

    def kind_of(self, matrix: str) -> Kind:
        return self.embedding_kind if matrix == "token_embd" else self.kind

    @property
    def num_parameters(self) -> int:
        return sum(rows * columns for _, rows, columns in self.matrices()) + len(list(self.norms())) * self.width

    @property
    def num_bytes(self) -> int:
        matrices = (num_bytes(self.kind_of(name), rows, columns) for name, rows, columns in self.matrices())
        return sum(matrices) + 4 * len(list(self.norms())) * self.width


def _member(width: int, num_layers: int, num_kv_heads: int, hidden_width: int, kind: Kind) -> tuple[str, RandomModel]:
    embedding_kind = Kind.Q6_K if kind == Kind.Q4_0 else Kind.Q8_0
    model = RandomModel(
        width=width,
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        hidden_width=hidden_width,
        kind=kind,
        embedding_kind=embedding_kind,
    )
    return f"random-{model.num_parameters / 1e6:.0f}m-{kind.name.lower()}", model


FAMILY = dict(
    (
        _member(512, 8, 8, 1408, Kind.Q8_0),
        _member(512, 14, 8, 1408, Kind.Q8_0),
        _member(640, 16, 10, 1728, Kind.Q8_0),
        _member(768, 16, 12, 2048, Kind.Q4_0),
        _member(768, 20, 12, 2048, Kind.Q8_0),
        _member(1024, 16, 8, 2816, Kind.Q4_0),
        _member(1024, 20, 8, 2816, Kind.Q8_0),
        _member(1280, 18, 10, 3584, Kind.Q4_0),
        _member(1280, 24, 10, 3584, Kind.Q4_0),
        _member(1536, 22, 12, 4096, Kind.Q4_0),
        _member(1792, 22, 14, 4864, Kind.Q4_0),
        _member(2048, 20, 8, 5632, Kind.Q4_0),
    )
)
MODELS = {
    "llama-110m-q8_0": RandomModel(width=768, num_layers=12, num_kv_heads=12, hidden_width=2048),
    "llama-1b-q4_0": RandomModel(  # Llama 3.2 1B
        width=2048,
        num_layers=16,
        num_kv_heads=8,
        hidden_width=8192,
        vocab_size=128_256,
        rope_base=500_000.0,
        kind=Kind.Q4_0,
        embedding_kind=Kind.Q6_K,
    ),
    **FAMILY,
}
