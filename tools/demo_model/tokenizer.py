"""A byte-level BPE tokenizer, trained here. Source: the byte alphabet and merge rules of GPT-2.

llama.cpp must split text as training did. Its `smollm` pre-tokenizer takes every digit alone, which sums need, and
then applies GPT-2's pattern; `_PIECES` does the same for the text of the corpus.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

PRE_TOKENIZER = "smollm"
_PIECES = re.compile(r"\d|'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?=\d|\Z)|\s+(?!\S)|\s+")

Pair = tuple[str, str]


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()
_BYTES = {character: byte for byte, character in BYTE_ALPHABET.items()}


def _pieces(text: str) -> list[str]:
    return ["".join(BYTE_ALPHABET[byte] for byte in piece.encode()) for piece in _PIECES.findall(text)]


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`tokens[id]` is a token; the special ones come first, then the 256 bytes, then the merges in order."""

    tokens: list[str]
    merges: list[Pair]
    num_special: int

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; broken UTF-8 is replaced."""
        text = "".join(self.tokens[number] for number in ids)
        return bytes(_BYTES[character] for character in text).decode(errors="replace")

    def encoder(self) -> Encoder:
        """An encoder with a cache of its own."""
        return Encoder(self)


class Encoder:
    """Text to token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids = {token: number for number, token in enumerate(tokenizer.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
        self._cache: dict[str, list[int]] = {}

    def special(self, token: str) -> list[int]:
        """A control token, as a list of one id."""
        return [self._ids[token]]

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text; control tokens in it are plain characters."""
        ids: list[int] = []
        for piece in _pieces(text):
            if piece not in self._cache:
                self._cache[piece] = [self._ids[token] for token in self._merged(list(piece))]
            ids += self._cache[piece]
        return ids

    def _merged(self, symbols: list[str]) -> list[str]:
        while len(symbols) > 1:
            pairs = set(pairwise(symbols))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            symbols = _merge(symbols, best)
        return symbols


def _merge(symbols: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    place = 0
    while place < len(symbols):
        if tuple(symbols[place : place + 2]) == pair:
            merged.append(pair[0] + pair[1])
            place += 2
        else:
            merged.append(symbols[place])
            place += 1
    return merged


def train(texts: Iterable[str], vocab_size: int, special_tokens: tuple[str, ...]) -> Tokenizer:
    """Merge the most frequent pair until the vocabulary is full; ties go to the greater pair, so that it is fixed."""
    counts = Counter(piece for text in texts for piece in _pieces(text))
    words = [(list(piece), count) for piece, count in counts.items() if count > 1]
    tokens = [*special_tokens, *BYTE_ALPHABET.values()]
    merges: list[Pair] = []
    while len(tokens) < vocab_size:
        pairs: Counter[Pair] = Counter()
        for symbols, count in words:
            for pair in pairwise(symbols):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        if (token := best[0] + best[1]) not in tokens:  # a second entry with the same text kills llama.cpp
            tokens.append(token)
        words = [(_merge(symbols, best) if best[0] in symbols else symbols, count) for symbols, count in words]
    return Tokenizer(tokens, merges, len(special_tokens))
