"""The engine on llama.cpp: one model, one context, one KV stream per slot; and a draft model, if it has one."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # before the library loads: it would run gdb on an abort

from tasks.generation import GenerationRequest
from workers.engine.base import EngineConfig, ProgressCallback
from workers.engine.chat_template import ChatTemplate
from workers.engine.grammars import Grammars
from workers.engine.llama_adapters import LlamaAdapters
from workers.engine.llama_draft import LlamaDraft
from workers.engine.llama_generating import LlamaContext, drafted_bytes
from workers.engine.llama_loading import load
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_model import LlamaModel
from workers.engine.looped import LoopedEngine, only_generate
from workers.engine.sequence import Sequence
from workers.engine.step_loop import StepLoop
from workers.messages import Encode, Generate, Ready


class LlamaEngine(LoopedEngine):
    """See `workers.engine.base.Engine` for the contract."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._log = LlamaLog()
        self._model: LlamaModel | None = None
        self._context: LlamaContext | None = None
        self._draft: LlamaDraft | None = None

    def load(self, progress: ProgressCallback) -> Ready:
        ready = load(self._config, self._log, progress, self._use)
        assert self._model is not None, "load calls _use"
        assert self._context is not None, "load calls _use"
        self._context.untouched = ready.untouched
        if self._config.draft is not None and not self._context.max_drafted:
            print("runner: this model can't forget wrong drafts, so its draft model stays out", file=sys.stderr)
        elif self._config.draft is not None:
            self._draft = LlamaDraft(self._config, self._config.draft, self._model, self._log, turn=self._context.turn)
            ready = self._draft.added_to(ready)
        self._start(self._model, self._context)
        return ready

    def _use(self, model: LlamaModel, adapters: LlamaAdapters) -> int:
        self._model, self._adapters = model, adapters
        self._context = LlamaContext(model, self._config, self._log, adapters)
        return drafted_bytes(model, self._config)

    def _start(self, model: LlamaModel, context: LlamaContext) -> None:
        config = self._config
        self._template = ChatTemplate(
            model.chat_template, bos_token=model.vocabulary.bos_text, eos_token=model.vocabulary.eos_text
        )
        self._grammars = Grammars(model.vocabulary)
        self._loop = StepLoop(
            context,
            slots=config.slots,
            context_length=config.context_length,
            prefill_chunk=config.prefill_chunk,
            parked_bytes=config.parked_bytes,
            draft_model=self._draft.model if self._draft else None,
        )

    def prepare(self, message: Generate | Encode) -> Sequence:
        message = only_generate(message)
        self._adapters.check(message.adapter)
        constraint = self._grammars.constraint(message.request, self._template.tool_format)
        return self._loop.sequence(message, self._prompt_ids(message.request), constraint)

    def _prompt_ids(self, request: GenerationRequest) -> list[int]:
        """Tokenised as llama-server does: control tokens in the text count as such, BOS comes once."""
        assert self._model is not None, "prepare before load"
        bos = self._model.vocabulary.bos_text
        text = request.prompt or "" if request.messages is None else self._template.render(request)
        has_bos = request.messages is not None and bool(bos) and text.startswith(bos)
        ids = self._model.tokenize(text, add_special=not has_bos)
        # An empty prompt in a model without BOS: something has to be decoded to get logits.
        return ids or self._model.start_ids()

    def close(self) -> None:
        if self._draft is not None:
            self._draft.close()
        if self._context is not None:
            self._context.close()
        if self._model is not None:
            self._model.close()
