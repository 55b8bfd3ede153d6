"""Errors that only the HTTP front has. Those that travel with jobs are in `tasks.errors`."""

from __future__ import annotations

from tasks.errors import InvalidRequest, KeepwarmError
from tasks.generation import GenerationRequest
from tasks.job_request import JobRequest
from tasks.jobs import JobError, JobState
from tasks.stream_events import End


class NotSupportedYet(InvalidRequest):
    """A feature of the OpenAI API that would change the answer, and that Keepwarm lacks."""

    code = "not_supported"

    def __init__(self, param: str, advice: str) -> None:
        super().__init__(f"'{param}' is not supported yet: {advice}", param=param)


class FormatNotTried(KeepwarmError):
    """Nobody knows yet whether the requested format can be used: the machine is too busy to try it."""

    code = "format_not_tried"
    is_retryable = True

    def __init__(self, reason: str) -> None:
        self.retry_after_s = 5
        super().__init__(f"{reason}: this machine is busy. Retry in about {self.retry_after_s} s.")


class JobEnded(KeepwarmError):
    """The job of a waiting client ended without an answer. Its code is the job's, not the class's."""

    def __init__(self, state: JobState, error: JobError) -> None:
        super().__init__(error.message)
        self.state = state
        self.job_code = error.code
        self.param = error.param


class AnswerTookTooLong(KeepwarmError):
    """A request that waits for the whole answer waited longer than the front allows."""

    code = "timeout"

    def __init__(self, waited_s: float, *, goes_on: bool) -> None:
        """`goes_on`: the job does, because it has an idempotency key; any other is cancelled."""
        ending = (
            "but the job goes on. Send the request again with the same Idempotency-Key, or use stream=true."
            if goes_on
            else "so the job was cancelled. Use stream=true, or POST /v1/jobs for long work."
        )
        super().__init__(f"No complete answer within {waited_s:.0f} s, {ending}")


class AnswerIncomplete(KeepwarmError):
    """The job's token stream stopped before it said how the job ended."""

    def __init__(self) -> None:
        super().__init__("The job's token stream ended early; GET /v1/jobs/{id} has what is known of the job.")


class ServerShuttingDown(KeepwarmError):
    """The front ends before the answer does. A job that outlives its client goes on, any other is cancelled."""

    code = "server_shutting_down"
    is_retryable = True

    def __init__(self) -> None:
        self.retry_after_s = 1
        super().__init__(
            "This server is shutting down before the answer is complete. Send the request again; what has an "
            "Idempotency-Key or runs in the background goes on meanwhile."
        )


class StreamReset(KeepwarmError):
    """Text that the client already has became void, and this stream format can't say so."""

    code = "stream_reset"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The answer had to start over ({reason}) after part of it was sent. Send the request again.")


def error_of(end: End, request: JobRequest | None = None) -> JobEnded:
    """Why a job that didn't succeed has no answer, in the words of the client's own request."""
    error = end.error or _UNEXPLAINED[end.state]
    if error.param == "messages" and isinstance(request, GenerationRequest) and request.prompt is not None:
        error = JobError(code=error.code, message=error.message, param="prompt")
    return JobEnded(end.state, error)


_UNEXPLAINED = {
    JobState.CANCELLED: JobError(code="job_cancelled", message="The job was cancelled."),
    JobState.EXPIRED: JobError(code="job_expired", message="The job's deadline passed before it was done."),
    JobState.FAILED: JobError(code="internal_error", message="The job failed without saying why."),
}
