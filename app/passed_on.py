"""What a client has of an answer that is told once more from its beginning, and so is not to be sent again. Pure."""

from __future__ import annotations

import msgspec

from app.backend import Batch
from app.errors import StreamReset
from tasks.stream_events import Reset, StreamEvent, Tokens, Vectors


class PassedOn:
    """Text is compared, so that what follows is a continuation; log probabilities and rows are counted."""

    def __init__(self) -> None:
        self._text = ""
        self._num_logprobs = self._num_rows = 0
        self.begin_again()

    def begin_again(self) -> None:
        """The next batch is of another job, from its beginning."""
        self._text_at = self._logprobs_at = self._rows_at = 0  # how far this job's telling has come

    def news(self, batch: Batch) -> Batch:
        """The batch without what was passed on before. Raises StreamReset when the answer goes another way."""
        rest: Batch = []
        for seq, event in batch:
            if (news := self._rest(event)) is not None:
                rest.append((seq, news))
        return rest

    def _rest(self, event: StreamEvent) -> StreamEvent | None:
        match event:
            case Tokens():
                return self._new_tokens(event)
            case Vectors(rows=rows):
                new = rows[max(0, self._num_rows - self._rows_at) :]
                self._rows_at += len(rows)
                self._num_rows = max(self._num_rows, self._rows_at)
                return Vectors(new) if new else None
            case Reset():
                self._text, self._num_logprobs, self._num_rows = "", 0, 0
                self.begin_again()
        return event

    def _new_tokens(self, event: Tokens) -> Tokens | None:
        known = self._text[self._text_at : self._text_at + len(event.text)]
        if not event.text.startswith(known):
            raise StreamReset("the job that was to give it ended, and another run of it went another way")
        text = event.text[len(known) :]
        logprobs = event.logprobs[max(0, self._num_logprobs - self._logprobs_at) :]
        is_new = self._text_at >= len(self._text) and self._logprobs_at >= self._num_logprobs
        self._text += text
        self._text_at += len(event.text)
        self._logprobs_at += len(event.logprobs)
        self._num_logprobs = max(self._num_logprobs, self._logprobs_at)
        if is_new:
            return event
        return msgspec.structs.replace(event, text=text, logprobs=logprobs) if text or logprobs else None
