"""Every error that Keepwarm raises on purpose. The name is the fact, the fields are the evidence.

    KeepwarmError
    ├── InvalidRequest            the client sent something that can never work
    │   ├── PromptTooLong
    │   ├── InputTooLong
    │   ├── WrongModelKind
    │   ├── IdempotencyMismatch
    │   ├── CannotResume          the published tokens are no prefix that this model could continue
    │   ├── GrammarFailed         the answer can't be kept to its grammar
    │   ├── JobNotRepeatable
    │   ├── UnknownPlace
    │   ├── PromptQuarantined
    │   ├── DeadlineCannotBeMet
    │   ├── BatchNotCancellable
    │   ├── FileInUse
    │   ├── FileTooLarge
    │   └── InvalidSetting        a setting or models.yaml entry, named
    ├── NotFound
    │   ├── UnknownModel
    │   ├── JobNotFound
    │   ├── NotQuarantined
    │   ├── BatchNotFound
    │   └── FileMissing
    ├── CapacityError             it could work, but not now or not here
    │   ├── QueueFull
    │   ├── StoreFull
    │   ├── FilesFull
    │   ├── TooManyBatches
    │   ├── TooManyWebhooks
    │   └── ModelDoesNotFit
    ├── StoreUnavailable
    ├── ModelError
    │   ├── ModelNotLoaded        retryable: another worker, or this one a little later
    │   ├── ModelLoadFailed
    │   │   └── ModelLoadBroken   retryable: the next load can work
    │   ├── AdapterFailed
    │   └── ModelQuarantined
    ├── RunnerError               retryable: the job goes on in a new attempt
    │   ├── RunnerCrashed
    │   ├── RunnerOutOfMemory
    │   └── RunnerStalled
    └── LeaseLost                 somebody else owns the job now: stop, write nothing

`code` is what clients, job records and metrics see; it is stable. `is_retryable` says whether a new attempt
of the same job can succeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class KeepwarmError(Exception):
    """Base of all; str(error) is a sentence a person can act on."""

    code: ClassVar[str] = "internal_error"
    is_retryable: ClassVar[bool] = False


class InvalidRequest(KeepwarmError):
    """The request can't be served in this form; `param` names the offending field."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PreviousResponseNotFound(InvalidRequest):
    """A conversation can't go on: a response in it is not stored (any more)."""

    code = "previous_response_not_found"

    def __init__(self, message: str) -> None:
        super().__init__(f"previous_response_id: {message}", param="previous_response_id")


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room in the model's context for a single new token."""

    code = "context_length_exceeded"

    def __init__(self, *, prompt_tokens: int, context_length: int) -> None:
        super().__init__(
            f"The prompt has {prompt_tokens} tokens, but this model's context holds {context_length} "
            f"(at least one must stay free for the answer). Shorten the prompt by "
            f"{prompt_tokens - context_length + 1} tokens or raise context_length in models.yaml.",
            param="messages",
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class InputTooLong(InvalidRequest):
    """An input of an embedding model or a reranker has more tokens than the model takes."""

    code = "context_length_exceeded"

    def __init__(self, *, param: str, tokens: int, limit: int) -> None:
        super().__init__(
            f"{param} has {tokens} tokens, but this model takes {limit} per input. Shorten it or cut it in pieces.",
            param=param,
        )
        self.tokens = tokens
        self.limit = limit


class WrongModelKind(InvalidRequest):
    """The model exists, but does something else."""

    code = "wrong_model_kind"

    def __init__(self, model: str, kind: str) -> None:
        does, route = _WORK_OF_KIND[kind]
        super().__init__(f"'{model}' {does}; ask it at {route}, or name another model here.", param="model")
        self.kind = kind


_WORK_OF_KIND = {
    "generate": ("generates text", "POST /v1/chat/completions"),
    "embed": ("is an embedding model", "POST /v1/embeddings"),
    "rerank": ("is a reranker", "POST /v1/rerank"),
}


class IdempotencyMismatch(InvalidRequest):
    """The Idempotency-Key was used before with another body."""

    code = "idempotency_mismatch"


class GrammarFailed(InvalidRequest):
    """The answer can't be kept to the grammar that was asked for: it is too complex, or the model lacks the tokens."""

    code = "grammar_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The answer can't be kept to the requested format: {reason}", param="response_format")


class JobNotRepeatable(InvalidRequest):
    """Only a job that ended without an answer can be requeued."""

    code = "job_not_repeatable"

    def __init__(self, job_id: str, state: str) -> None:
        reason = "it has its answer" if state == "succeeded" else f"it is {state}"
        super().__init__(f"The job '{job_id}' can't be requeued: {reason}. Failed, cancelled and expired jobs can.")
        self.state = state


class PromptQuarantined(InvalidRequest):
    """The very same request killed runners twice and is kept away for a time."""

    code = "prompt_quarantined"

    def __init__(self, message: str, *, quarantine: str, until: str, cause: str) -> None:
        super().__init__(message)
        self.quarantine = quarantine  # id, as `keepwarm quarantine lift` takes it
        self.until = until  # RFC 3339
        self.cause = cause  # code of the error that brought it there


class DeadlineCannotBeMet(InvalidRequest):
    """By what was measured the job could not even start before its deadline."""

    code = "deadline_cannot_be_met"

    def __init__(self, *, ahead: int, predicted_wait_s: float, deadline_in_s: float) -> None:
        super().__init__(
            f"The deadline is in {deadline_in_s:.1f} s, but with {ahead} jobs ahead this one would start in about "
            f"{predicted_wait_s:.1f} s. Give it more time or a higher priority, or send it later.",
            param="deadline",
        )
        self.ahead = ahead
        self.predicted_wait_s = round(predicted_wait_s, 1)
        self.deadline_in_s = round(deadline_in_s, 1)


class UnknownPlace(InvalidRequest):
    """Nothing is on the list (any more) behind which it could go on."""

    code = "unknown_place"

    def __init__(self, after: str) -> None:
        super().__init__(
            f"after: {after[:64]!r} is not on this list, or no longer. Begin anew without it.", param="after"
        )


class BatchNotCancellable(InvalidRequest):
    """The batch has ended, or is about to write its files."""

    code = "batch_not_cancellable"

    def __init__(self, batch_id: str, state: str) -> None:
        super().__init__(f"Cannot cancel the batch '{batch_id}': it is {state}.")
        self.state = state


class FileInUse(InvalidRequest):
    """An open batch still reads the file."""

    code = "file_in_use"

    def __init__(self, file_id: str, batch_id: str) -> None:
        super().__init__(f"The file '{file_id}' is the input of the open batch '{batch_id}': cancel that one first.")
        self.batch_id = batch_id


class FileTooLarge(InvalidRequest):
    """An uploaded file has more bytes than may be kept."""

    code = "file_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The file has more than {limit} bytes (KEEPWARM_MAX_FILE_BYTES). Split it into several batches.",
            param="file",
        )
        self.limit = limit


class CannotResume(InvalidRequest):
    """The tokens that earlier attempts published don't make the text that they published: the model's file changed.

    The job starts over behind a `reset` event."""

    code = "cannot_resume"


class InvalidSetting(InvalidRequest):
    """A setting has a value that can't work; the message names the variable and what would be right."""

    code = "invalid_setting"

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}", param=name)


class NotFound(KeepwarmError):
    """The named thing does not exist (any more)."""

    code = "not_found"


class UnknownModel(NotFound):
    """No worker serves a model of this name."""

    code = "model_not_found"

    def __init__(self, model: str, nearest: Sequence[str], known: Sequence[str]) -> None:
        """`nearest`: names like this one; `known`: some that exist."""
        if nearest:
            hint = f"Did you mean {' or '.join(nearest)}?"
        elif known:
            hint = f"GET /v1/models lists what does, such as {', '.join(known)}."
        else:
            hint = "No worker offers any model right now."
        super().__init__(f"The model '{model}' does not exist. {hint}")
        self.model = model
        self.nearest = tuple(nearest)


class JobNotFound(NotFound):
    """No job of this id: never admitted, or past its retention."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job '{job_id}': it was never admitted here, or its retention ended.")


class NotQuarantined(NotFound):
    """Nothing of this id is in quarantine, or the start of a digest fits several."""

    code = "not_quarantined"

    def __init__(self, suspect_id: str) -> None:
        super().__init__(f"Nothing in quarantine is named '{suspect_id}'; `keepwarm quarantine ls` shows what is.")


class BatchNotFound(NotFound):
    """No batch of this id: never created, or past its retention."""

    code = "batch_not_found"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"No such Batch object: {batch_id}")


class FileMissing(NotFound):
    """No file of this id: never uploaded, deleted, or past its retention."""

    code = "file_not_found"

    def __init__(self, file_id: str) -> None:
        super().__init__(f"No such File object: {file_id}")


class ResponseNotFound(NotFound):
    """No response of this id: never stored, deleted, or past its retention."""

    code = "response_not_found"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Response with id '{response_id[:64]}' not found: it was not stored, or no longer is.")


class CapacityError(KeepwarmError):
    """Nothing wrong with the request; there is no room for it."""

    code = "capacity"


class QueueFull(CapacityError):
    """The waiting line of the model, or of all models, is at its bound."""

    code = "queue_full"

    def __init__(self, *, scope: str, depth: int, limit: int, retry_after_s: int, model: str | None = None) -> None:
        super().__init__(f"{depth} jobs already wait for {scope} (limit {limit}). Retry in about {retry_after_s} s.")
        self.scope = scope
        self.depth = depth
        self.limit = limit
        self.model = model  # None: the bound of all models together
        self.retry_after_s = retry_after_s


class StoreFull(CapacityError):
    """The store's memory is nearly used up: running streams may finish, new jobs may not begin."""

    code = "store_full"

    def __init__(self, *, fill: float, limit: float, retry_after_s: int) -> None:
        super().__init__(
            f"The store's memory is {fill:.0%} full; new jobs are taken below {limit:.0%}, so that running ones can "
            "finish. Retry later, shorten KEEPWARM_RETENTION_S, or give the store more memory."
        )
        self.fill = round(fill, 3)
        self.retry_after_s = retry_after_s


class FilesFull(CapacityError):
    """All files together have as many bytes as may be kept, or would have with this one."""

    code = "files_full"

    def __init__(self, *, total_bytes: int, limit: int) -> None:
        super().__init__(
            f"The stored files have {total_bytes} bytes together, and with this one they would have more than {limit} "
            "(KEEPWARM_MAX_FILES_BYTES). Delete files that nobody needs, or wait until some expire."
        )
        self.total_bytes = total_bytes
        self.limit = limit


class TooManyBatches(CapacityError):
    """As many batches as may be open have not ended yet."""

    code = "too_many_batches"

    def __init__(self, *, open_batches: int, limit: int) -> None:
        self.retry_after_s = 60
        super().__init__(
            f"{open_batches} batches are open (limit {limit}, KEEPWARM_MAX_OPEN_BATCHES). "
            f"Cancel one, or retry in about {self.retry_after_s} s."
        )
        self.open_batches = open_batches
        self.limit = limit


class TooManyWebhooks(CapacityError):
    """As many webhooks as may wait to be delivered do."""

    code = "too_many_webhooks"

    def __init__(self, *, pending: int, limit: int) -> None:
        self.retry_after_s = 60
        super().__init__(
            f"{pending} webhooks wait to be delivered (limit {limit}, KEEPWARM_MAX_WEBHOOKS): their receivers are "
            "away, or no batcher runs. Send the work without a webhook, or later."
        )
        self.pending = pending
        self.limit = limit


class ModelDoesNotFit(CapacityError):
    """The model needs more bytes than the worker's budget can give even when everything else is evicted."""

    code = "model_does_not_fit"

    def __init__(self, message: str) -> None:
        super().__init__(message)


class StoreUnavailable(KeepwarmError):
    """Redis/Valkey can't be reached, or refuses writes."""

    code = "store_unavailable"
    is_retryable = True


class ModelError(KeepwarmError):
    """A model can't serve."""

    code = "model_error"


class ModelNotLoaded(ModelError):
    """The worker has no ready runner for this model."""

    code = "model_not_loaded"
    is_retryable = True


class ModelLoadFailed(ModelError):
    """llama.cpp refused the file, or the load broke off."""

    code = "model_load_failed"


class ModelLoadBroken(ModelLoadFailed):
    """The runner died or stalled while it loaded the model; nothing is known against the file, so it is tried again."""

    is_retryable = True


class AdapterFailed(ModelError):
    """A LoRA adapter makes its base compute no numbers."""

    code = "adapter_failed"

    def __init__(self, adapter: str) -> None:
        super().__init__(
            f"The LoRA adapter '{adapter}' made the model produce NaN: its file is damaged, or its scale too large."
        )


class ModelQuarantined(ModelError):
    """The model cost several workers in a row and is placed nowhere for a time."""

    code = "model_quarantined"

    def __init__(self, message: str, *, quarantine: str, until: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.quarantine = quarantine
        self.until = until
        self.retry_after_s = retry_after_s


class RunnerError(KeepwarmError):
    """The runner process that held the model failed while the job ran."""

    code = "runner_error"
    is_retryable = True


class RunnerCrashed(RunnerError):
    """The runner process is gone; `exit_code` is negative for a signal. `reason`: its own last words."""

    code = "runner_crashed"

    def __init__(self, model: str, exit_code: int | None, reason: str = "") -> None:
        happened = f"broke down: {reason}" if reason else f"died (exit code {exit_code})."
        super().__init__(f"The runner of '{model}' {happened}")
        self.exit_code = exit_code


class RunnerOutOfMemory(RunnerError):
    """The kernel killed the runner for want of memory."""

    code = "runner_out_of_memory"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The kernel killed the runner of '{model}' because memory ran out. "
            "Lower KEEPWARM_MEMORY_BUDGET, or the model's context_length or slots."
        )


class RunnerStalled(RunnerError):
    """The runner made no step for too long and was killed."""

    code = "runner_stalled"

    def __init__(self, model: str, silent_s: float) -> None:
        super().__init__(f"The runner of '{model}' made no step for {silent_s:.0f} s and was killed.")


class LeaseLost(KeepwarmError):
    """A higher attempt owns the job; this one must stop and may write nothing."""

    code = "lease_lost"
