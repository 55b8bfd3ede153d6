"""One generation: its ids, the text they make, and when it ends. Pure: no llama.cpp, no clock."""

from __future__ import annotations

from collections.abc import Sequence as Ids

from tasks.errors import CannotResume, GrammarFailed
from tasks.generation import FinishReason, TokenLogprob
from tasks.jobs import JobError
from workers.engine.constraint import Constraint
from workers.engine.lookup import PromptLookup
from workers.engine.sampling import Floats, Sampler
from workers.engine.text_assembler import TextAssembler
from workers.engine.vocabulary import Vocabulary
from workers.messages import Done, Generate, TokenOut


class Sequence:
    """A generation in the engine: `tokens` is prompt + completion, of which the KV cache holds the first `decoded`.

    A resumed generation replays its forced ids here, so that everything below goes on as if it had never stopped.
    """

    __slots__ = (
        "_assembler",
        "_backlog",
        "_constraint",
        "_eog_ids",
        "_limit",
        "_logprobs",
        "_new_ids",
        "_skip",
        "_texts",
        "_vocabulary_size",
        "adapter",
        "arrival",
        "cached_tokens",
        "chance",
        "decoded",
        "draft",
        "error",
        "finish_reason",
        "key",
        "lookup",
        "priority",
        "prompt_tokens",
        "sampler",
        "slot",
        "tokens",
        "waits_for",
    )

    def __init__(
        self,
        message: Generate,
        prompt_ids: Ids[int],
        vocabulary: Vocabulary,
        context_length: int,
        constraint: Constraint | None = None,
    ) -> None:
        """Raises InvalidRequest when a bias doesn't fit the model, CannotResume when what was published doesn't."""
        request = message.request
        self.key = message.key
        self.priority = message.priority
        self.adapter = message.adapter  # what the cache holds of it is of use under this one only
        self.arrival = 0  # its number in the engine, given by the step loop
        self.waits_for: tuple[Sequence, int] | None = None  # a running one that prefills these first tokens of ours
        self.slot = -1  # while it has none
        self.tokens = list(prompt_ids)
        self.prompt_tokens = len(self.tokens)
        self.decoded = 0
        self.lookup = PromptLookup(self.tokens)
        self.draft: list[int] = []  # guessed to come next, and decoded with the last token in the step under way
        self.chance: float | None = None  # that a draft model's guess is right; None: as in any other sequence
        self.cached_tokens: int | None = None  # of the prompt, found when the sequence got its first slot
        self.finish_reason: FinishReason | None = None
        self.error: JobError | None = None  # why it can't go on
        self.sampler = Sampler(request, vocabulary)
        self._constraint = constraint
        self._texts = vocabulary.texts
        self._vocabulary_size = len(vocabulary)
        self._eog_ids: frozenset[int] = frozenset() if request.ignore_eos else vocabulary.eog_ids
        self._assembler = TextAssembler(request.stop)
        # Both limits are one bound on the number of all tokens.
        budget = context_length if request.max_tokens is None else self.prompt_tokens + request.max_tokens
        self._limit = min(context_length, budget)
        self._new_ids: list[int] = []  # since the last TokenOut
        self._logprobs: list[TokenLogprob] = []
        self._backlog = ""  # certain text that was not published before the resume
        self._skip = 0  # characters to come that were
        self._replay(message.forced_ids, message.emitted_text)

    def rank(self) -> tuple[int, int]:
        """Smaller ones go first."""
        return self.priority, self.arrival

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet: more than one in prefill, exactly one while generating."""
        return len(self.tokens) - self.decoded

    @property
    def room(self) -> int:
        """How many tokens may still come."""
        return self._limit - len(self.tokens)

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def sample_all(self, likeliest: Ids[int], logits: Floats) -> list[TokenOut]:
        """Take the next token by the first row of logits, then one by each further row, as long as the draft, of which
        there is a row behind each token, says what was sampled. The draft is gone then."""
        draft, self.draft = self.draft, []
        outputs = []
        for row, choice in enumerate(likeliest):
            output = self.sample(choice, logits[row])
            if output is not None:
                outputs.append(output)
            if self.is_over or row == len(draft) or self.tokens[-1] != draft[row]:
                break
        return outputs

    def guess_next(self, likeliest: int, logits: Floats) -> int:
        """What would come behind the draft by these logits, with the random number of its place. No grammar is asked:
        its state follows what was sampled."""
        sampler = self.sampler
        if sampler.is_argmax and likeliest not in sampler.masked:
            return likeliest
        return sampler.pick(logits, self.tokens + self.draft, self.completion_tokens + len(self.draft))

    def sample(self, likeliest: int, logits: Floats) -> TokenOut | None:
        """Choose the next token by this row of logits, whose argmax is known, and take it; see `accept`."""
        sampler = self.sampler
        if sampler.is_argmax and self._constraint is None and likeliest not in sampler.masked:
            return self.accept(likeliest)
        try:
            token = sampler.pick(logits, self.tokens, self.completion_tokens, self._constraint)
            is_text = sampler.logprobs is not None and token not in self._eog_ids
            return self.accept(token, sampler.logprob_of(logits, token) if is_text else None)
        except GrammarFailed as failed:  # also of a grammar that goes beyond its limits behind a token that it allowed
            self.error = JobError(code=failed.code, message=str(failed), param=failed.param)
            return None

    def accept(self, token: int, logprob: TokenLogprob | None = None) -> TokenOut | None:
        """Take the next sampled token; the output it makes certain, if any. May set `finish_reason`."""
        self._new_ids.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        text = self._advance(token)
        if self.finish_reason is not None:
            text += self._assembler.flush()
        return self._publish(text) if text else None

    def cut_off(self) -> TokenOut | None:
        """End here for want of room; what was held back comes out."""
        self.finish_reason = "length"
        text = self._assembler.flush()
        return self._publish(text) if text else None

    def leftover(self) -> TokenOut | None:
        """What a resume found certain but unpublished; asked once, when the sequence starts."""
        text, self._backlog = self._backlog, ""
        return self._publish(text) if text else None

    def done(self) -> Done:
        return Done(
            key=self.key,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens or 0,
            error=self.error,
        )

    def _advance(self, token: int) -> str:
        # 1 end token, 2 stop string, 3 complete grammar, 4 limits: the first that holds gives the reason.
        self.tokens.append(token)
        if token in self._eog_ids:
            self.finish_reason = "stop"
            return ""
        text = self._assembler.push(*self._texts[token])
        is_complete = self._constraint is not None and self._constraint.take(token)
        if self._assembler.stopped or is_complete:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._limit:
            self.finish_reason = "length"
        return text

    def _publish(self, text: str) -> TokenOut | None:
        if self._skip:
            skipped = min(self._skip, len(text))
            self._skip -= skipped
            text = text[skipped:]
            if not text:
                return None
        output = TokenOut(self.key, text, tuple(self._new_ids), tuple(self._logprobs))
        self._new_ids.clear()
        self._logprobs.clear()
        return output

    def _replay(self, forced_ids: Ids[int], emitted_text: str) -> None:
        if any(not 0 <= token < self._vocabulary_size for token in forced_ids):
            raise CannotResume("The published tokens are not of this model.")
        text = ""
        if len(self.tokens) >= self._limit:
            self.finish_reason = "length"  # max_tokens 0
        for token in forced_ids:
            if self.finish_reason is not None:
                break
            try:
                text += self._advance(token)
            except GrammarFailed as failed:
                raise CannotResume(f"The published tokens don't follow the grammar: {failed}") from None
        if self.finish_reason is not None:
            text += self._assembler.flush()
        if not (text + self._assembler.held).startswith(emitted_text):
            raise CannotResume("The published text is not what the published tokens make.")
        self._backlog = text[len(emitted_text) :]
        self._skip = max(0, len(emitted_text) - len(text))
