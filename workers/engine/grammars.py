"""Constraints by grammar, on llguidance: it parses with lazily built automata and masks a vocabulary in microseconds.

A generation asks about each drawn token (3 µs), and for a mask of the vocabulary only when that was refused (tens of
microseconds to some milliseconds at 128 k tokens).
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from tasks.errors import GrammarFailed
from tasks.gbnf import InvalidGrammar
from tasks.generation import GenerationRequest
from tasks.grammars import LIMITS, grammar_of, reason_of
from workers.engine.constraint import Constraint
from workers.engine.tool_formats import ToolFormat, grammar_with_tools
from workers.engine.vocabulary import Vocabulary

_KEPT = 64  # compiled grammars; one is some 10 to 100 kB


class Grammars:
    """Compiles the formats of one model's requests. Any thread; the constraints belong to whoever asked for them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None  # made on first use: 0.5 s at 128 k tokens
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()  # by grammar
        self._lock = threading.Lock()

    def constraint(self, request: GenerationRequest, tool_format: ToolFormat) -> Constraint | None:
        """Raises GrammarFailed."""
        grammar = _grammar(request, tool_format)
        if grammar is None:
            return None
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = self._compiled[grammar] = self._compile(grammar)
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
        return GrammarConstraint(matcher.deep_copy(), self._vocabulary)

    def _compile(self, grammar: str) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._vocabulary)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        _check(matcher)
        return matcher


class GrammarConstraint:
    """See `workers.engine.constraint.Constraint` for the contract."""

    __slots__ = ("_eog_ids", "_matcher", "_size")

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._eog_ids = vocabulary.eog_ids
        self._size = len(vocabulary)

    def allows(self, token: int) -> bool:
        if token in self._eog_ids:
            return self._matcher.is_accepting()
        return self._matcher.validate_tokens([token]) == 1

    def mask(self) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        _check(self._matcher)
        mask = np.unpackbits(bits, count=self._size, bitorder="little").astype(np.bool_)
        mask[list(self._eog_ids)] = self._matcher.is_accepting()
        return mask

    def take(self, token: int) -> bool:
        if not self._matcher.consume_token(token):
            raise GrammarFailed(f"{reason_of(self._matcher.get_error())}.")
        return self._matcher.is_stopped()


def _grammar(request: GenerationRequest, tool_format: ToolFormat) -> str | None:
    if request.tools:
        return grammar_with_tools(request, tool_format)
    if request.answer_format is None:
        return None
    try:
        return grammar_of(request.answer_format)
    except InvalidGrammar as invalid:
        raise GrammarFailed(f"{invalid}.") from None


class _Tokens:
    """What llguidance wants of a tokenizer. It tokenises only to force tokens, which is not asked of it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = tuple(vocabulary.pieces)
        # Tokens without text (control tokens, end tokens) are never part of an answer.
        self.special_token_ids = [token for token, piece in enumerate(self.tokens) if not piece]
        self.eos_token_id = min(vocabulary.eog_ids, default=0)

    def __call__(self, _text: str | bytes) -> list[int]:
        return []


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    # Without slices: they speed up masks, which are rarely asked for, and double the time of this call.
    return LLTokenizer(
        TokenizerWrapper(_Tokens(vocabulary)), n_vocab=len(vocabulary), eos_token=sorted(vocabulary.eog_ids), slices=[]
    )


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarFailed(f"{reason_of(matcher.get_error())}.")
