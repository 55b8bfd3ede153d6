"""Run one job and show its answer as it comes; used by `keepwarm run` and by the first answer of `keepwarm up`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import assert_never

from rich.markup import escape
from rich.status import Status

from app.cli.client import ApiClient, ClientError
from app.cli.render import err, remark
from tasks.generation import JsonObject
from tasks.jobs import JobState
from tasks.stream_events import End, Loading, Queued, Reset, Started, Tokens, Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A job that came to its end."""

    job_id: str
    text: str
    end: End

    @property
    def is_good(self) -> bool:
        return self.end.state is JobState.SUCCEEDED

    @property
    def complaint(self) -> str:
        """Why there is no good answer."""
        if self.end.error is not None:
            return self.end.error.message
        return f"The job {self.job_id} ended as {self.end.state.value}."


class Interrupted(ClientError):
    """The reader stopped the answer; its job is cancelled. `text` is what had come."""

    def __init__(self, text: str) -> None:
        super().__init__("Cancelled.")
        self.text = text


def stream_answer(client: ApiClient, body: JsonObject, write: Callable[[str], None]) -> Answer:
    """Submit a job and pass its text to `write`; where it stands meanwhile is a passing line on standard error.

    Ctrl-C cancels the job and raises Interrupted; so does a reader that closed the pipe.
    """
    job_id = str(client.submit(body)["id"])
    text = ""
    with _where_it_stands() as show:
        try:
            for event in client.events(job_id):
                match event:
                    case Tokens(text=new):
                        show(None)
                        text += new
                        write(new)
                    case Reset(reason=reason):
                        text = ""
                        write("\n")
                        remark(f"The answer starts over: {reason}")
                    case Queued(position=position):
                        show("next in line" if position == 0 else f"{position} jobs ahead")
                    case Loading(model=model, progress=progress):
                        show(f"loading {model}, {progress:.0%}")
                    case Started():
                        show("reading the prompt")
                    case Vectors():
                        pass  # a job of /v1/embeddings or /v1/rerank: nothing that a terminal could show
                    case End():
                        return Answer(job_id=job_id, text=text, end=event)
                    case _:
                        assert_never(event)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            with contextlib.suppress(ClientError):
                client.cancel(job_id)
            raise Interrupted(text) from error
    raise ClientError(f"The stream of {job_id} ended without an end.")


@contextlib.contextmanager
def _where_it_stands() -> Iterator[Callable[[str | None], None]]:
    """A spinner on the terminal, nothing in a pipe; `None` takes it away."""
    spinner: Status | None = None

    def show(text: str | None) -> None:
        nonlocal spinner
        if spinner is not None:
            spinner.stop()
            spinner = None
        if text is not None and err.is_terminal:
            spinner = err.status(escape(text))
            spinner.start()

    try:
        yield show
    finally:
        show(None)
