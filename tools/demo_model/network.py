"""A small llama: RMSNorm, rotary attention with grouped keys, SwiGLU, tied embeddings. Layout as llama.cpp reads it.

Sources: Touvron et al. 2023 (LLaMA); Su et al. 2021 (RoPE); Ainslie et al. 2023 (grouped-query attention).
"""

# torch is not among the development tools, so it may be missing when types are checked.
# mypy: disable-error-code="import-not-found", allow-subclassing-any

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the network. Every row length must be a multiple of 32, the block of q8_0."""

    vocab_size: int = 1024
    num_layers: int = 4
    width: int = 192
    num_heads: int = 6
    num_kv_heads: int = 2
    hidden_width: int = 544
    context_length: int = 4096
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """Components per head."""
        return self.width // self.num_heads


def _rotation(shape: Shape, length: int) -> Tensor:
    """Unit complex numbers [length, head_width / 2]: position times frequency."""
    exponents = torch.arange(0, shape.head_width, 2).float() / shape.head_width
    angles = torch.outer(torch.arange(length).float(), shape.rope_base**-exponents)
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i+1), llama.cpp's NORM layout. Shape [batch, time, heads, head_width]."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation[:, None, :]).flatten(-2).to(heads.dtype)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.num_kv_heads * shape.head_width
        self.q = nn.Linear(shape.width, shape.width, bias=False)
        self.k = nn.Linear(shape.width, kv_width, bias=False)
        self.v = nn.Linear(shape.width, kv_width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        split = (-1, self.shape.head_width)
        q = _rotate(self.q(x).unflatten(-1, split), rotation)
        k = _rotate(self.k(x).unflatten(-1, split), rotation)
        v = self.v(x).unflatten(-1, split)
        repeat = self.shape.num_heads // self.shape.num_kv_heads
        k, v = k.repeat_interleave(repeat, dim=2), v.repeat_interleave(repeat, dim=2)
        mixed = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return out


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.hidden_width, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden_width, bias=False)
        self.down = nn.Linear(shape.hidden_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        out: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.attention = Attention(shape)
        self.feed_forward_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        x = x + self.attention(self.attention_norm(x), rotation)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class Llama(nn.Module):
    """Token ids [batch, time] to logits [batch, time, vocab]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.04 / (2 * shape.num_layers) ** (0.5 if is_residual else 0))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits for the token after each position."""
        x = self.embedding(ids)
        rotation = _rotation(self.shape, ids.shape[1])
        for block in self.blocks:
            x = block(x, rotation)
        return functional.linear(self.norm(x), self.embedding.weight)

    @property
    def num_parameters(self) -> int:
        """Trainable numbers; the tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())
