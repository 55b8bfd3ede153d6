"""OpenAI's objects for files and batches, and what clients send for them. Times are Unix seconds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.attachments import AttachmentFields
from app.schemas.openai import Text
from tasks.batches import ENDPOINTS, Batch, BatchState
from tasks.files import StoredFile

PURPOSE = "batch"
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 24 * 3600  # of `expires_after`, as OpenAI has them


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchBody(AttachmentFields):
    """POST /v1/batches"""

    model_config = ConfigDict(extra="ignore")

    input_file_id: Text = Field(min_length=1, max_length=64)
    endpoint: Text = Field(min_length=1, max_length=64, json_schema_extra={"enum": list(ENDPOINTS)})
    completion_window: Literal["24h"]


class BatchErrorObject(BaseModel):
    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchErrorObject]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class BatchUsage(BaseModel):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class BatchObject(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchState
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def file_object(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_ms // 1000,
        expires_at=file.expires_ms // 1000,
        filename=file.filename,
        purpose=file.purpose,
    )


def batch_object(batch: Batch) -> BatchObject:
    entered: dict[str, Any] = {
        f"{state.value}_at": batch.entered_ms[state] // 1000 if state in batch.entered_ms else None
        for state in BatchState
        if state is not BatchState.VALIDATING
    }
    counts = batch.counts
    errors = [
        BatchErrorObject(code=error.code, line=error.line, message=error.message, param=error.param)
        for error in batch.errors
    ]
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=BatchErrors(data=errors) if errors else None,
        input_file_id=batch.input_file_id,
        status=batch.state,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=batch.created_ms // 1000,
        expires_at=batch.expires_ms // 1000,
        request_counts=RequestCounts(total=counts.total, completed=counts.completed, failed=counts.failed),
        usage=BatchUsage(
            input_tokens=counts.input_tokens,
            input_tokens_details={"cached_tokens": counts.cached_tokens},
            output_tokens=counts.output_tokens,
            output_tokens_details={"reasoning_tokens": 0},
            total_tokens=counts.input_tokens + counts.output_tokens,
        ),
        metadata=batch.metadata,
        **entered,
    )
