"""A draft model on llama.cpp: its weights and a context of its own, beside those of the model that it guesses for."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import msgspec
from llama_cpp import llama_cpp as api

from tasks.errors import ModelLoadFailed
from workers.engine.base import DRAFT_PIECE, MAX_VOCABULARY_DIFFERENCE, DraftConfig, EngineConfig
from workers.engine.draft_model import DraftModel
from workers.engine.llama_generating import LlamaContext
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_memory import cuts_any_tail
from workers.engine.llama_model import LlamaModel, load_model
from workers.engine.turnstile import loading
from workers.engine.untouched import zeros_given_back
from workers.messages import Ready

_FIRST_COMPARED = 5  # those before are control tokens, which families name as they like; llama.cpp begins here too


class LlamaDraft:
    """Owns the draft's weights and context; `model` is what the step loop uses."""

    def __init__(
        self,
        config: EngineConfig,
        draft: DraftConfig,
        large: LlamaModel,
        log: LlamaLog,
        *,
        turn: AbstractContextManager[int],
    ) -> None:
        """Raises ModelLoadFailed, also when it speaks in other tokens than the large model."""
        began_s = time.monotonic()
        config = draft_engine_config(config, draft)
        with loading(config.turns_path):
            self._model = load_model(config, log)
            try:
                check_draft(self._model, large, draft)
                with zeros_given_back(config.gpu_layers == 0) as untouched:
                    context = LlamaContext(self._model, config, log, turn=turn)
            except ModelLoadFailed:
                self._model.close()
                raise
        self._context = context
        self._untouched = tuple(untouched)
        self.model = DraftModel(
            context,
            slots=config.slots,
            context_length=config.context_length,
            vocabulary_size=self._model.vocabulary_size,
            large_vocabulary_size=large.vocabulary_size,
            turn=turn,
        )
        self._buffers, self._copied = log.buffer_bytes(), log.copied_weight_bytes()
        log.forget()
        self._load_ms = round((time.monotonic() - began_s) * 1e3)

    def added_to(self, ready: Ready) -> Ready:
        """What both models take."""
        buffers = self._buffers
        return msgspec.structs.replace(
            ready,
            load_ms=ready.load_ms + self._load_ms,
            weight_bytes=ready.weight_bytes + self._model.weight_bytes,
            kv_bytes=ready.kv_bytes + buffers["KV"] + buffers["RS"],
            compute_bytes=ready.compute_bytes + buffers["compute"] + buffers["output"],
            copied_weight_bytes=ready.copied_weight_bytes + self._copied,
            untouched=ready.untouched + self._untouched,
        )

    def close(self) -> None:
        self._context.close()
        self._model.close()


def draft_engine_config(config: EngineConfig, draft: DraftConfig) -> EngineConfig:
    """How to load the draft model beside the large one: as many slots, small batches, nothing parked."""
    return replace(
        config,
        model_path=draft.model_path,
        context_length=draft.context_length,
        threads=draft.threads,
        prefill_chunk=DRAFT_PIECE,
        draft_tokens=0,
        draft=None,
        adapters=(),
        parked_bytes=0,
    )


def check_draft(draft: LlamaModel, large: LlamaModel, config: DraftConfig) -> None:
    """The rules of llama.cpp's own speculative decoding (common/speculative.cpp): ids must mean the same text.

    Raises ModelLoadFailed."""
    problem = _difference(draft.vocab, large.vocab)
    if problem is None and not cuts_any_tail(draft.pointer):
        problem = "its cache can't forget tokens that were wrong (it is recurrent, or has a sliding window)"
    if problem is not None:
        raise ModelLoadFailed(
            f"{config.model_path.name} can't draft for this model: {problem}. Name a small model of the same family as "
            "`draft` in models.yaml, or none."
        )


def _difference(draft: Any, large: Any) -> str | None:
    kinds = api.llama_vocab_type(draft), api.llama_vocab_type(large)
    if kinds[0] != kinds[1]:
        return f"its vocabulary is of type {kinds[0]}, and that of this model of type {kinds[1]}"
    sizes = api.llama_vocab_n_tokens(draft), api.llama_vocab_n_tokens(large)
    if abs(sizes[0] - sizes[1]) > MAX_VOCABULARY_DIFFERENCE:
        return f"it has {sizes[0]} tokens, and this model {sizes[1]}; at most {MAX_VOCABULARY_DIFFERENCE} may differ"
    for name, used, token in (
        ("BOS", api.llama_vocab_get_add_bos, api.llama_vocab_bos),
        ("EOS", api.llama_vocab_get_add_eos, api.llama_vocab_eos),
    ):
        if used(draft) != used(large) or (used(large) and token(draft) != token(large)):
            return f"its {name} token is {token(draft)} or not used, and that of this model {token(large)}"
    text = api.llama_vocab_get_text
    for token_id in range(_FIRST_COMPARED, min(sizes)):
        mine, theirs = text(draft, token_id), text(large, token_id)
        if mine != theirs:
            return f"its token {token_id} is {_shown(mine)}, and that of this model {_shown(theirs)}"
    return None


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))
