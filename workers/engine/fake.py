"""An engine without a model: deterministic text at a configurable pace, for tests and for measuring everything else.

Its "model" is a hash of all tokens so far and the adapter of each, so a slip in positions, prefixes, slots or adapters
changes the text. The words come from a small list; the prompt is counted in UTF-8 bytes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import zlib
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from tasks.errors import ModelLoadFailed
from tasks.generation import GenerationRequest
from workers.engine.backend import Interrupted, Slice, State
from workers.engine.base import EngineConfig, EngineFailed, ProgressCallback
from workers.engine.fake_behaviour import FakeBehaviour
from workers.engine.grammars import Grammars
from workers.engine.looped import LoopedEngine, only_generate
from workers.engine.sampling import Floats
from workers.engine.sequence import Sequence
from workers.engine.step_loop import StepLoop
from workers.engine.tool_formats import GENERIC
from workers.engine.vocabulary import Vocabulary
from workers.messages import Encode, Generate, Ready

_TEXT = """
    warm cold pool queue model token river stone light water seven eleven green amber north quiet
    runs waits holds sings moves grows turns falls over under near after with from into and
"""
_WORDS = _TEXT.split()
_SIGNS = (".", ",", "!", "?", "\n", " Ü", " 本", " 🙂")
TOKEN_BYTES = 64  # in the KV cache
EOG_ID = 256 + len(_WORDS) + len(_SIGNS)
VOCABULARY = Vocabulary(
    pieces=(
        *(bytes([byte]) for byte in range(256)),
        *(b" " + word.encode() for word in _WORDS),
        *(sign.encode() for sign in _SIGNS),
        b"",
    ),
    eog_ids=frozenset({EOG_ID}),
)


@dataclass(frozen=True, slots=True)
class FakeState:
    """What a slot held."""

    kv: list[int]
    hashes: list[int]

    @property
    def nbytes(self) -> int:
        return len(self.kv) * TOKEN_BYTES


class FakeBackend:
    """Remembers the tokens of each slot like a KV cache, and hashes them into logits."""

    vocabulary = VOCABULARY
    cuts_tails = True
    max_drafted = 0  # its text doesn't repeat itself

    def __init__(self, slots: int, behaviour: FakeBehaviour) -> None:
        self._kv: list[list[int]] = [[] for _ in range(slots)]
        self._hashes: list[list[int]] = [[] for _ in range(slots)]  # running CRC after each token
        self._behaviour = behaviour
        self._interrupted = threading.Event()
        self.batch_sizes: list[int] = []

    def decode(self, batch: Items[Slice], adapter: str = "") -> Floats:
        self._pace(sum(len(part.tokens) for part in batch))
        rows = []
        for part in batch:
            kv, hashes = self._kv[part.slot], self._hashes[part.slot]
            if part.start != len(kv):
                raise EngineFailed(f"slot {part.slot} holds {len(kv)} tokens, but the batch starts at {part.start}")
            for token in part.tokens:
                kv.append(token)
                hashes.append(zlib.crc32(token.to_bytes(4, "big") + adapter.encode(), hashes[-1] if hashes else 0))
            self._act_on(part)
            rows += [self._logits(digest) for digest in hashes[len(hashes) - part.outputs :]]
        return np.array(rows, dtype=np.float32).reshape(len(rows), len(VOCABULARY))

    def interrupt(self) -> None:
        self._interrupted.set()

    def length(self, slot: int) -> int:
        return len(self._kv[slot])

    def keep_prefix(self, slot: int, length: int) -> int:
        del self._kv[slot][length:]
        del self._hashes[slot][length:]
        return length

    def clear(self) -> None:
        for slot in range(len(self._kv)):
            self.keep_prefix(slot, 0)

    def copy(self, source: int, target: int) -> None:
        self._kv[target], self._hashes[target] = self._kv[source].copy(), self._hashes[source].copy()

    def copy_cost(self, tokens: int) -> int:
        return tokens

    def save(self, slot: int, limit_bytes: int) -> FakeState | None:
        state = FakeState(self._kv[slot].copy(), self._hashes[slot].copy())
        return state if state.nbytes <= limit_bytes else None

    def restore(self, slot: int, state: State) -> bool:
        assert isinstance(state, FakeState)
        self._kv[slot], self._hashes[slot] = state.kv.copy(), state.hashes.copy()
        return True

    def _pace(self, tokens: int) -> None:
        behaviour = self._behaviour
        delay_s = behaviour.step_ms / 1e3 + tokens * behaviour.prefill_us_per_token / 1e6
        if delay_s > 0 and self._interrupted.wait(delay_s):
            self._interrupted.clear()
            raise Interrupted

    def _act_on(self, part: Slice) -> None:
        behaviour = self._behaviour
        if len(part.tokens) == 1 or not (behaviour.crash_on or behaviour.stall_on or behaviour.fail_on):
            return
        text = b"".join(VOCABULARY.pieces[token] for token in self._kv[part.slot]).decode("utf-8", "replace")
        if behaviour.crash_on and behaviour.crash_on in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour.stall_on and behaviour.stall_on in text:
            time.sleep(3600)
        if behaviour.fail_on and behaviour.fail_on in text:
            raise EngineFailed("The fake engine was told to fail.")

    def _logits(self, digest: int) -> Floats:
        logits = np.full(len(VOCABULARY), -20.0, dtype=np.float32)
        # A handful of rivals, far enough apart that the draw and the argmax have something to choose from.
        for rank in range(6):
            digest = zlib.crc32(b"rival", digest)
            logits[256 + digest % (len(_WORDS) + len(_SIGNS))] = 6.0 - rank
        if digest % self._behaviour.mean_tokens == 0:
            logits[EOG_ID] = 9.0
        return logits


class FakeEngine(LoopedEngine):
    """Engine over FakeBackend; see `workers.engine.base.Engine` for the contract."""

    def __init__(self, config: EngineConfig, behaviour: FakeBehaviour | None = None) -> None:
        self._config = config
        self._behaviour = behaviour or FakeBehaviour()
        self._grammars = Grammars(VOCABULARY)
        self._loop = StepLoop(
            FakeBackend(config.slots, self._behaviour),
            slots=config.slots,
            context_length=config.context_length,
            prefill_chunk=config.prefill_chunk,
            parked_bytes=config.parked_bytes,
        )

    def load(self, progress: ProgressCallback) -> Ready:
        started = time.monotonic()
        for tenth in range(1, 11):
            if self._behaviour.load_s > 0:
                time.sleep(self._behaviour.load_s / 10)
            progress(tenth / 10)
        if self._behaviour.load_error:
            raise ModelLoadFailed(self._behaviour.load_error)
        return Ready(
            context_length=self._config.context_length,
            slots=self._config.slots,
            load_ms=round((time.monotonic() - started) * 1e3),
            weight_bytes=self._behaviour.weight_bytes,
            kv_bytes=self._config.context_length * self._config.slots * TOKEN_BYTES,
            compute_bytes=0,
        )

    def prepare(self, message: Generate | Encode) -> Sequence:
        message = only_generate(message)
        constraint = self._grammars.constraint(message.request, GENERIC)
        return self._loop.sequence(message, tuple(_prompt_text(message.request).encode()), constraint)

    def close(self) -> None:
        pass


def _prompt_text(request: GenerationRequest) -> str:
    if request.messages is None:
        return request.prompt or "\n"
    return "".join(f"{turn.role}: {turn.content}\n" for turn in request.messages) + "assistant:"
