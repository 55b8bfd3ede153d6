"""Write a variant of a GGUF model: deeper without another word, or disturbed. For tests and benchmarks of drafts.

    python -m tools.variant_gguf models/keepwarm-demo-f16.gguf deep.gguf --deeper 8
    python -m tools.variant_gguf models/keepwarm-demo-f16.gguf noisy.gguf --noise 0.2

A block whose output matrices are zero adds nothing to what passes through it. So a model with such blocks behind its
own computes the same logits, only later: a slow model with a small one that always knows what it will say. Noise on
the weights, relative to the spread of each matrix, makes a model that agrees less and less with the original.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_ADDS_TO_THE_STREAM = ("attn_output.weight", "ffn_down.weight")
_FLOATS = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)

Tensor = tuple[str, npt.NDArray[np.generic], gguf.GGMLQuantizationType]


def write_variant(source: Path, target: Path, *, deeper: int = 1, noise: float = 0.0, seed: int = 0) -> Path:
    """`deeper`: times as many blocks. `noise`: standard deviation of what is added to matrices, in theirs; then they
    have to be F16 or F32. Raises ValueError for others."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    blocks = int(reader.fields[f"{architecture}.block_count"].contents())
    unfinished = target.with_name(target.name + ".unfinished")
    writer = gguf.GGUFWriter(unfinished, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = blocks * deeper if name == f"{architecture}.block_count" else field.contents()
        outer, inner = field.types[0], field.types[-1]
        writer.add_key_value(name, value, outer, inner if outer == gguf.GGUFValueType.ARRAY else None)
    random = np.random.default_rng(seed)
    for name, data, kind in _tensors(reader, blocks, deeper):
        writer.add_tensor(name, _disturbed(data, kind, noise, random) if noise else data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, target)
    return target


def _tensors(reader: gguf.GGUFReader, blocks: int, deeper: int) -> Iterator[Tensor]:
    for tensor in reader.tensors:
        yield tensor.name, tensor.data, tensor.tensor_type
        match = _BLOCK.fullmatch(tensor.name)
        if match is None:
            continue
        data = np.zeros_like(tensor.data) if match[2] in _ADDS_TO_THE_STREAM else tensor.data
        for copy in range(1, deeper):
            yield f"blk.{int(match[1]) + copy * blocks}.{match[2]}", data, tensor.tensor_type


def _disturbed(
    data: npt.NDArray[np.generic], kind: gguf.GGMLQuantizationType, noise: float, random: np.random.Generator
) -> npt.NDArray[np.generic]:
    if data.ndim < 2:
        return data
    if kind not in _FLOATS:
        raise ValueError(f"noise needs weights in F16 or F32, and these are {kind.name}")
    added = random.standard_normal(data.shape) * (noise * float(data.astype(np.float32).std()))
    return (data.astype(np.float32) + added).astype(data.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--deeper", type=int, default=1, metavar="TIMES")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_variant(options.source, options.target, deeper=options.deeper, noise=options.noise, seed=options.seed)


if __name__ == "__main__":
    main()
