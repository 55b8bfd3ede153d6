"""Read what a GGUF file says about its model without reading its tensors.

Source: the GGUF specification, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
magic `GGUF`, u32 version, u64 tensor count, u64 metadata count, then the metadata, then one record per tensor, then
padding to `general.alignment`, then the tensor data. Everything is little-endian here; a big-endian file is refused.

The file is untrusted: every count and length is checked against the bytes that are left before it is believed, long
arrays are stepped over, and what is broken is refused with a sentence.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from workers.gguf_types import BLOCKS, FILE_TYPES

MAGIC = b"GGUF"
VOCABULARY = "tokenizer.ggml.tokens"
SUPPORTED_VERSIONS = (2, 3)
MAX_HEADER_BYTES = 256 * 1024**2  # a vocabulary of a million long tokens with its merges stays below 64 MiB
MAX_METADATA = 65_536  # real files have below a hundred entries
MAX_TENSORS = 1_000_000
MAX_KEY_BYTES = 65_535  # the specification's own bound
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_KEPT_ARRAY = 1024  # longer arrays (vocabularies) are stepped over; only their length is kept
MAX_VOCABULARY = 4_000_000  # real ones have up to 260 000 tokens
MAX_KEPT_STRING = 65_536  # longer strings (chat templates) are cut
DEFAULT_ALIGNMENT = 32

_STRING = 8
_ARRAY = 9
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32 = _SCALARS[4]
_U64 = _SCALARS[10]

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]


class BrokenModelFile(Exception):
    """The file is no GGUF file that llama.cpp could load; str(error) says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """One file's metadata. Byte figures are of this file only; a split model has several."""

    version: int
    tensor_count: int
    tensor_bytes: int  # stored size of all tensors, without padding
    parameters: int  # elements of all tensors
    metadata: Mapping[str, Value]  # without the long arrays
    array_lengths: Mapping[str, int] = field(default_factory=dict)  # of every array, kept or not
    has_classifier: bool = False  # tensors that turn a pooled row into scores
    matrix_types: frozenset[int] = frozenset()  # of the tensors with several rows, as ggml numbers types

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or "unknown"

    @property
    def file_type(self) -> str:
        """`Q8_0`, `Q4_K_M`, …; `?` when the file doesn't tell."""
        number = self.metadata.get("general.file_type")
        return FILE_TYPES.get(number, "?") if isinstance(number, int) else "?"

    @property
    def vocabulary_size(self) -> int:
        return self.array_lengths.get(VOCABULARY) or self.model_number("vocab_size", 0)

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str, default: int) -> int:
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def model_number(self, name: str, default: int) -> int:
        """A figure of the architecture's own section, e.g. `context_length` for `llama.context_length`."""
        return self.number(f"{self.architecture}.{name}", default)

    def per_layer(self, name: str, default: int, layers: int) -> tuple[int, ...]:
        """A figure that some architectures store once and others per layer."""
        value = self.metadata.get(f"{self.architecture}.{name}")
        if isinstance(value, tuple):
            figures = tuple(each for each in value if isinstance(each, int))
            if len(figures) == layers:
                return figures
        return (self.model_number(name, default),) * layers


def read_header(path: Path) -> GgufHeader:
    """Parse the header of one file. Raises BrokenModelFile, and OSError when the file can't be read."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        return _HeaderReader(file, file_bytes).read()


class _HeaderReader:
    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self._file = file
        self._file_bytes = file_bytes
        self._end = min(file_bytes, MAX_HEADER_BYTES)
        self._at = 0
        self._metadata: dict[str, Value] = {}
        self._array_lengths: dict[str, int] = {}
        self._has_classifier = False
        self._matrix_types: set[int] = set()

    def read(self) -> GgufHeader:
        if self._file_bytes < 4 or self._bytes(4) != MAGIC:
            raise BrokenModelFile("it does not begin with the magic bytes GGUF")
        version = self._u32()
        self._check_version(version)
        tensor_count = self._count("tensors", MAX_TENSORS, smallest=24)
        metadata_count = self._count("metadata entries", MAX_METADATA, smallest=13)
        for _ in range(metadata_count):
            self._read_entry()
        tensor_bytes, parameters = self._read_tensors(tensor_count)
        return GgufHeader(
            version=version,
            tensor_count=tensor_count,
            tensor_bytes=tensor_bytes,
            parameters=parameters,
            metadata=MappingProxyType(self._metadata),
            array_lengths=MappingProxyType(self._array_lengths),
            has_classifier=self._has_classifier,
            matrix_types=frozenset(self._matrix_types),
        )

    @staticmethod
    def _check_version(version: int) -> None:
        if version in SUPPORTED_VERSIONS:
            return
        if version & 0xFFFF == 0:
            raise BrokenModelFile("it is a big-endian GGUF file, which this machine can't load")
        raise BrokenModelFile(f"it has GGUF version {version}; versions 2 and 3 are supported")

    def _read_entry(self) -> None:
        key = self._string(MAX_KEY_BYTES, "a metadata key")
        if key in self._metadata or key in self._array_lengths:
            raise BrokenModelFile(f"the metadata key {key[:80]!r} occurs twice")
        kind = self._u32()
        if kind == _ARRAY:
            self._read_array(key)
        elif kind == _STRING:
            self._metadata[key] = self._string(self._end, f"the value of {key[:80]!r}")[:MAX_KEPT_STRING]
        else:
            self._metadata[key] = self._scalar(kind, key)

    def _read_array(self, key: str) -> None:
        kind = self._u32()
        if kind != _STRING and kind not in _SCALARS:
            raise BrokenModelFile(f"the array {key[:80]!r} has elements of the unknown type {kind}")
        smallest = 8 if kind == _STRING else _SCALARS[kind].size
        length = self._count(f"elements of {key[:80]!r}", self._end, smallest=smallest)
        self._array_lengths[key] = length
        if key == VOCABULARY and kind == _STRING:
            self._read_vocabulary(length)
        elif length <= MAX_KEPT_ARRAY:
            self._metadata[key] = tuple(self._element(kind, key) for _ in range(length))
        elif kind == _STRING:
            for _ in range(length):
                self._skip(self._u64(), key)
        else:
            self._skip(length * smallest, key)

    def _read_vocabulary(self, length: int) -> None:
        """Refuses a token that occurs twice, on which llama.cpp aborts its process; empty ones it tells apart."""
        if length > MAX_VOCABULARY:
            raise BrokenModelFile(f"it claims {length} tokens in its vocabulary; at most {MAX_VOCABULARY}")
        tokens = [self._bytes(self._u64()) for _ in range(length)]
        seen = set()
        for number, token in enumerate(tokens):
            if token in seen:
                raise BrokenModelFile(f"its vocabulary has the token {token[:80]!r} twice, the second time as {number}")
            if token:
                seen.add(token)
        if length <= MAX_KEPT_ARRAY:
            kept = (token.decode("utf-8", errors="replace")[:MAX_KEPT_STRING] for token in tokens)
            self._metadata[VOCABULARY] = tuple(kept)

    def _element(self, kind: int, key: str) -> Scalar:
        if kind == _STRING:
            return self._string(self._end, f"an element of {key[:80]!r}")[:MAX_KEPT_STRING]
        return self._scalar(kind, key)

    def _read_tensors(self, count: int) -> tuple[int, int]:
        """Total stored bytes and elements; checks that the last byte of every tensor is in the file."""
        stored = parameters = data_end = 0
        for _ in range(count):
            name = self._string(MAX_KEY_BYTES, "a tensor name")
            self._has_classifier |= name.startswith("cls.")
            elements, rows = self._elements(name)
            kind = self._u32()
            size = self._stored_bytes(kind, elements, name)
            if rows > 1:
                self._matrix_types.add(kind)
            stored += size
            parameters += elements
            data_end = max(data_end, self._u64() + size)
        alignment = self._metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise BrokenModelFile(f"general.alignment is {alignment!r}, not a multiple of 8")
        needed = -(-self._at // alignment) * alignment + data_end if count else self._at
        if needed > self._file_bytes:
            raise BrokenModelFile(
                f"it is cut off: its tensors end at byte {needed}, the file at byte {self._file_bytes}"
            )
        return stored, parameters

    def _elements(self, name: str) -> tuple[int, int]:
        """How many, and in how many rows."""
        dimensions = self._u32()
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise BrokenModelFile(f"the tensor {name[:80]!r} has {dimensions} dimensions")
        elements = width = self._u64()
        for _ in range(dimensions - 1):
            elements *= self._u64()
        if not 0 < elements <= self._file_bytes * 8:  # no type stores less than a bit per element
            raise BrokenModelFile(f"the tensor {name[:80]!r} claims {elements} elements")
        return elements, elements // width

    @staticmethod
    def _stored_bytes(kind: int, elements: int, name: str) -> int:
        if kind not in BLOCKS:
            raise BrokenModelFile(f"the tensor {name[:80]!r} has the unknown type {kind}")
        per_block, block_bytes = BLOCKS[kind]
        if elements % per_block:
            raise BrokenModelFile(f"the tensor {name[:80]!r} does not fill whole blocks of {per_block}")
        return elements // per_block * block_bytes

    # ---- primitives

    def _count(self, what: str, limit: int, *, smallest: int) -> int:
        """A count that the rest of the file could hold when each item has `smallest` bytes or more."""
        count = self._u64()
        if count > limit or count * smallest > self._end - self._at:
            raise BrokenModelFile(f"it claims {count} {what}, more than the file can hold")
        return count

    def _string(self, limit: int, what: str) -> str:
        length = self._u64()
        if length > limit or length > self._end - self._at:
            raise BrokenModelFile(f"{what} claims {length} bytes, more than there are")
        return self._bytes(length).decode("utf-8", errors="replace")

    def _scalar(self, kind: int, key: str) -> Scalar:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise BrokenModelFile(f"the metadata key {key[:80]!r} has the unknown type {kind}")
        value: Scalar = layout.unpack(self._bytes(layout.size))[0]
        return value

    def _u32(self) -> int:
        return int(_U32.unpack(self._bytes(4))[0])

    def _u64(self) -> int:
        return int(_U64.unpack(self._bytes(8))[0])

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self._end - self._at else b""
        if len(data) != count:
            raise self._cut_off()
        self._at += count
        return data

    def _skip(self, count: int, key: str) -> None:
        if count > self._end - self._at:
            raise BrokenModelFile(f"an element of {key[:80]!r} claims {count} bytes, more than there are")
        self._file.seek(count, 1)
        self._at += count

    def _cut_off(self) -> BrokenModelFile:
        if self._end < self._file_bytes:
            return BrokenModelFile(f"its header is longer than {MAX_HEADER_BYTES // 1024**2} MiB")
        return BrokenModelFile(f"it is cut off in its header, at byte {self._file_bytes}")


ReadHeader = Callable[[Path], GgufHeader]
