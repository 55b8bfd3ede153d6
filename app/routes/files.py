"""POST, GET, DELETE /v1/files: the inputs and outputs of batches, as official OpenAI clients use them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Any, Literal

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Query
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from app.answering import STATUS_CLIENT_LEFT
from app.batches.contents import content_path
from app.front import Front, FrontDep
from app.openapi import OPENAI_ERRORS, other_answer
from app.schemas.batches import (
    MAX_EXPIRY_S,
    MIN_EXPIRY_S,
    PURPOSE,
    FileDeleted,
    FileList,
    FileObject,
    file_object,
)
from app.upload import Form, receive_form
from tasks.errors import FileInUse, FilesFull, FileTooLarge, InvalidRequest
from tasks.files import StoredFile, new_file_id

router = APIRouter(tags=["OpenAI"], responses=OPENAI_ERRORS)
UPLOAD_PATH = "/v1/files"
UPLOAD_SLACK_BYTES = 1024**2  # of a body beyond its file: form fields, and enough to answer a file that is too large
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": [PURPOSE]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_EXPIRY_S, "maximum": MAX_EXPIRY_S},
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
}


@router.post(
    UPLOAD_PATH,
    summary="Upload the input of a batch",
    response_model=FileObject,
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def create_file(request: Request, front: FrontDep) -> Response | FileObject:
    """The content is written down as it comes in; an upload that breaks leaves nothing."""
    file_id = new_file_id()
    limits = front.settings
    total = await to_thread.run_sync(front.backend.files.total_bytes)
    room = max(0, limits.max_files_bytes - total)
    try:
        async with AsyncExitStack() as stack:
            sink = await _open(stack, front, file_id)
            # What has no room is read and never written.
            form = await receive_form(request, sink, max_file_bytes=min(limits.max_file_bytes, room))
            lifetime_ms = _checked(form, front)
    except FileTooLarge:
        if room >= limits.max_file_bytes:
            raise
        raise FilesFull(total_bytes=total, limit=limits.max_files_bytes) from None
    except ClientDisconnect:
        return Response(status_code=STATUS_CLIENT_LEFT)
    now_ms = await to_thread.run_sync(front.backend.files.now_ms)
    file = StoredFile(
        id=file_id,
        filename=form.filename or "upload",
        purpose=PURPOSE,
        bytes=form.num_bytes,
        created_ms=now_ms,
        expires_ms=now_ms + lifetime_ms,
    )
    try:
        # Several uploads may have seen the same room.
        add = partial(front.backend.files.add, file, max_total_bytes=limits.max_files_bytes)
        await to_thread.run_sync(add)
    except BaseException:
        await to_thread.run_sync(front.backend.contents.delete, content_path(file_id))
        raise
    return file_object(file)


@router.get("/v1/files", summary="Files, newest first")
async def list_files(
    front: FrontDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> FileList:
    page = partial(front.backend.files.page, after=after, limit=limit, order=order, purpose=purpose)
    files, has_more = await to_thread.run_sync(page)
    data = [file_object(file) for file in files]
    return FileList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=has_more
    )


@router.get("/v1/files/{file_id}", summary="One file")
async def get_file(file_id: str, front: FrontDep) -> FileObject:
    return file_object(await to_thread.run_sync(front.backend.files.get, file_id))


@router.get(
    "/v1/files/{file_id}/content",
    summary="The content of a file",
    response_class=Response,
    responses={200: other_answer("application/octet-stream", "The bytes as they were uploaded or written.")},
)
async def get_content(file_id: str, front: FrontDep) -> Response:
    file = await to_thread.run_sync(front.backend.files.get, file_id)
    blocks = iterate_in_threadpool(front.backend.contents.blocks(content_path(file.id)))
    first = await anext(blocks, b"")  # a content that is gone is a 404
    headers = {"content-length": str(file.bytes), "content-disposition": f'attachment; filename="{file.id}.jsonl"'}
    return StreamingResponse(_all_of(first, blocks), 200, headers, "application/octet-stream")


@router.delete("/v1/files/{file_id}", summary="Delete a file")
async def delete_file(file_id: str, front: FrontDep) -> FileDeleted:
    await to_thread.run_sync(_delete, front, file_id)
    return FileDeleted(id=file_id)


async def _open(stack: AsyncExitStack, front: Front, file_id: str) -> Any:
    """The file system's work is done in threads, also when the block ends."""
    writing = front.backend.contents.writing(content_path(file_id))
    sink = await to_thread.run_sync(writing.__enter__)

    async def close(*error: Any) -> None:
        with CancelScope(shield=True):  # a front that stops removes the broken upload first
            await to_thread.run_sync(writing.__exit__, *error)

    stack.push_async_exit(close)
    return sink


def _checked(form: Form, front: Front) -> int:
    """How long the file lives, in ms. Raises InvalidRequest."""
    if form.filename is None:
        raise InvalidRequest("file: required.", param="file")
    purpose = form.fields.get("purpose")
    if purpose != PURPOSE:
        given = "it is missing" if purpose is None else f"{purpose[:40]!r} is used by nothing here"
        raise InvalidRequest(f"purpose: must be '{PURPOSE}'; {given}.", param="purpose")
    if not form.num_bytes:
        raise InvalidRequest("file: it is empty.", param="file")
    return _lifetime_ms(form.fields, front)


def _lifetime_ms(fields: dict[str, str], front: Front) -> int:
    seconds, anchor = fields.get("expires_after[seconds]"), fields.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return front.backend.file_retention_ms
    if anchor != "created_at":
        raise InvalidRequest("expires_after[anchor]: must be 'created_at'.", param="expires_after[anchor]")
    if seconds is None or not seconds.isascii() or not seconds.isdigit() or len(seconds) > 9:
        raise InvalidRequest("expires_after[seconds]: must be a whole number.", param="expires_after[seconds]")
    if not MIN_EXPIRY_S <= int(seconds) <= MAX_EXPIRY_S:
        message = f"expires_after[seconds]: must be {MIN_EXPIRY_S} to {MAX_EXPIRY_S}, and is {seconds}."
        raise InvalidRequest(message, param="expires_after[seconds]")
    return int(seconds) * 1000


def _delete(front: Front, file_id: str) -> None:
    front.backend.files.get(file_id)
    batch_id = front.backend.batches.open_input_files().get(file_id)
    if batch_id is not None:
        raise FileInUse(file_id, batch_id)
    front.backend.files.remove(file_id)
    front.backend.contents.delete(content_path(file_id))


async def _all_of(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in rest:
        yield block
