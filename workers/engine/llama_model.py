"""A loaded GGUF model: its weights, its vocabulary, its tokeniser. Thin over llama.cpp's C API."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from llama_cpp import llama_cpp as api

from tasks.errors import ModelLoadFailed
from workers.engine.base import EngineConfig
from workers.engine.llama_log import LlamaLog
from workers.engine.probe import extra_buffers_are_safe
from workers.engine.stack_room import with_room_for
from workers.engine.tool_formats import TOOL_MARKERS
from workers.engine.vocabulary import LazyPieces, Vocabulary

_LONGEST_PIECE = 256  # bytes; longer ones are asked for again
# Between the words of a tokenizer that knows only words llama.cpp looks for merges of blanks, and ends the process
# (`llama_vocab::find_bpe_rank`). One blank says as much. These are the characters that it takes for blanks.
_BLANKS = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{2,}")
_ALL_LAYERS = 2**31 - 1
_SPLIT_MODES = {
    "none": api.LLAMA_SPLIT_MODE_NONE,
    "layer": api.LLAMA_SPLIT_MODE_LAYER,
    "row": api.LLAMA_SPLIT_MODE_ROW,
}


class PairParts(NamedTuple):
    """A reranker's own template with {query} and {document}, or the ids around and between the two."""

    template: str | None
    start: list[int]
    between: list[int]
    end: list[int]


class LlamaModel:
    """Owns the llama_model pointer."""

    def __init__(
        self,
        path: Path,
        log: LlamaLog,
        *,
        gpu_layers: int = 0,
        main_gpu: int = 0,
        split_mode: str = "none",
        tensor_split: tuple[float, ...] = (),
        use_extra_bufts: bool = True,
        progress: Callable[[float], None] | None = None,
        is_dry: bool = False,
    ) -> None:
        """Load the weights, or with `is_dry` only what the file says of them.

        Raises ModelLoadFailed with what llama.cpp had to say."""
        check_file(path)
        params = api.llama_model_default_params()
        params.n_gpu_layers = _ALL_LAYERS if gpu_layers < 0 else gpu_layers
        params.main_gpu = main_gpu
        params.split_mode = _SPLIT_MODES[split_mode] if gpu_layers else params.split_mode
        if tensor_split:  # as many as llama.cpp looks at; those that are not there have no share
            shares = (ctypes.c_float * api.llama_max_devices())(*tensor_split)
            params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
        params.use_extra_bufts = use_extra_bufts
        params.no_alloc = is_dry
        if is_dry:
            params.load_mode = api.LLAMA_LOAD_MODE_NONE
        callback = api.llama_progress_callback(_progress(progress))
        params.progress_callback = callback
        log.forget()
        self.pointer: Any = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise ModelLoadFailed(f"llama.cpp can't load {path.name}: {log.complaints() or 'it gave no reason'}.")
        if api.llama_model_has_encoder(self.pointer) or not api.llama_model_has_decoder(self.pointer):
            self.close()
            raise ModelLoadFailed(f"{path.name} is an encoder-decoder model; those can't be served.")
        self.vocab: Any = api.llama_model_get_vocab(self.pointer)
        self.weight_bytes: int = api.llama_model_size(self.pointer)
        template = api.llama_model_chat_template(self.pointer, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None
        self.adds_bos: bool = api.llama_vocab_get_add_bos(self.vocab)
        self._aborts_on_blanks = self._metadata("tokenizer.ggml.pre") == "whitespace"

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """Text → ids; control tokens written out in the text are recognised if asked for. Safe in any thread.

        Raises InvalidRequest for a text that no stack has room for."""
        if self._aborts_on_blanks:
            text = _BLANKS.sub(" ", text)
        return with_room_for(text, lambda: self._tokenize(text.encode("utf-8", "replace"), add_special, parse_special))

    def _tokenize(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        capacity = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * capacity)()
            count = api.llama_tokenize(self.vocab, data, len(data), buffer, capacity, add_special, parse_special)
            if count >= 0:
                return list(buffer[:count])
            capacity = -count

    def _metadata(self, key: str) -> str:
        """A short text of the file's; empty when it has none."""
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        api.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def vocabulary_size(self) -> int:
        return int(api.llama_vocab_n_tokens(self.vocab))

    def start_ids(self) -> list[int]:
        """What an empty text starts with: BOS, else the end of the text before, else the first token."""
        candidates = (api.llama_vocab_bos(self.vocab), api.llama_vocab_eos(self.vocab), 0)
        return [next(token for token in candidates if token >= 0)]

    def pair_parts(self) -> PairParts:
        """How a query and a text are joined for a reranker."""
        vocab = self.vocab
        template = api.llama_model_chat_template(self.pointer, b"rerank")
        end = api.llama_vocab_eos(vocab)
        if end < 0:
            end = api.llama_vocab_sep(vocab)
        ends = [end] if api.llama_vocab_get_add_eos(vocab) else []
        separators = [api.llama_vocab_sep(vocab)] if api.llama_vocab_get_add_sep(vocab) else []
        return PairParts(
            template=template.decode("utf-8", "replace") if template else None,
            start=[api.llama_vocab_bos(vocab)] if api.llama_vocab_get_add_bos(vocab) else [],
            between=ends + separators,
            end=ends or separators,  # BERT ends both parts with [SEP]; llama-server leaves the second open
        )

    def close(self) -> None:
        if self.pointer:
            api.llama_model_free(self.pointer)
            self.pointer = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Read when it is first asked for: a vector needs none. Raises ModelLoadFailed when the file has none."""
        vocab = self.vocab
        size: int = api.llama_vocab_n_tokens(vocab)
        if size <= 0:
            self.close()
            raise ModelLoadFailed("The model file has no vocabulary.")
        ids = range(size)
        return Vocabulary(
            pieces=LazyPieces(size, self._text_piece),
            eog_ids=frozenset(token for token in ids if api.llama_vocab_is_eog(vocab, token)),
            bos_text=self._special_text(api.llama_vocab_bos(vocab)),
            eos_text=self._special_text(api.llama_vocab_eos(vocab)),
        )

    def _text_piece(self, token: int) -> bytes:
        """What the token adds to an answer: control tokens nothing, but for those by which tool calls are known."""
        piece = self._piece(token, special=False)
        if piece or not api.llama_vocab_is_control(self.vocab, token):
            return piece
        control = self._piece(token, special=True)
        return control if control in TOOL_MARKERS else b""

    def _special_text(self, token: int) -> str:
        return "" if token < 0 else self._piece(token, special=True).decode("utf-8", "replace")

    def _piece(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        count = api.llama_token_to_piece(self.vocab, token, buffer, _LONGEST_PIECE, 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = api.llama_token_to_piece(self.vocab, token, buffer, -count, 0, special)
        return buffer.raw[:count]


def load_model(
    config: EngineConfig, log: LlamaLog, *, progress: Callable[[float], None] | None = None, is_dry: bool = False
) -> LlamaModel:
    """The model of a configuration, on its devices. Raises ModelLoadFailed."""
    return LlamaModel(
        config.model_path,
        log,
        gpu_layers=config.gpu_layers,
        main_gpu=config.main_gpu,
        split_mode=config.split_mode,
        tensor_split=config.tensor_split,
        # A dry run has no weights to lay out anew.
        use_extra_bufts=not is_dry and config.use_extra_bufts and extra_buffers_are_safe(config.model_path),
        progress=progress,
        is_dry=is_dry,
    )


def check_file(path: Path) -> None:
    """The mistakes that llama.cpp words badly. Raises ModelLoadFailed."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadFailed(f"The model file {path} can't be read: {error.strerror}.") from None
    if magic != b"GGUF":
        raise ModelLoadFailed(
            f"{path.name} is not a GGUF file (it starts with {magic!r}). Convert it, or download the GGUF version."
        )


def _progress(report: Callable[[float], None] | None) -> Callable[[float, object], bool]:
    def received(fraction: float, _user_data: object) -> bool:
        if report is not None:
            report(fraction)
        return True  # go on loading

    return received
