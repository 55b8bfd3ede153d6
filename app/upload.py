"""A multipart form with one file, read from the connection and written down piece by piece, never held whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from tasks.errors import FileTooLarge, InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks  # exists for type checkers only

FILE_FIELD = "file"
MAX_FIELDS = 16
MAX_FIELD_BYTES = 1024
MAX_FILENAME_CHARS = 255
_NO_FORM = "Send a multipart/form-data body with the fields 'purpose' and 'file'."


@dataclass(slots=True)
class Form:
    """What came beside the file's content."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None  # None: no file came
    num_bytes: int = 0


async def receive_form(request: Request, sink: BinaryIO, *, max_file_bytes: int) -> Form:
    """Read the whole body; the file's content goes to `sink`, other fields into the result.

    Raises InvalidRequest for what is no such form, FileTooLarge once all of it was read, and ClientDisconnect."""
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if content_type != b"multipart/form-data" or not boundary:
        raise InvalidRequest(_NO_FORM, param="file")
    reader = _Reader(max_file_bytes)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            if content := reader.take():
                await to_thread.run_sync(sink.write, content)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"The multipart body is broken: {error}.", param="file") from None
    if not reader.is_complete:
        raise InvalidRequest("The multipart body ends early.", param="file")
    if reader.form.num_bytes > max_file_bytes:
        raise FileTooLarge(max_file_bytes)
    return reader.form


class _Reader:
    """Callbacks of the parser: sorts parts into the file and small fields."""

    def __init__(self, max_file_bytes: int) -> None:
        self.form = Form()
        self.is_complete = False
        self._max_file_bytes = max_file_bytes
        self._content: list[bytes] = []
        self._header = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._name: str | None = None
        self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_done,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def take(self) -> bytes:
        """Content of the file since the last call."""
        content, self._content = b"".join(self._content), []
        return content

    def _begin(self) -> None:
        self._headers, self._header, self._value, self._name = {}, [b"", b""], b"", None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _headers_done(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name == FILE_FIELD:
            if self.form.filename is not None:
                raise InvalidRequest("The form has more than one file.", param="file")
            name = options.get(b"filename", b"").decode(errors="replace")
            self.form.filename = name[:MAX_FILENAME_CHARS] or "upload"
        elif len(self.form.fields) >= MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE_FIELD:
            self.form.num_bytes += end - start
            if self.form.num_bytes <= self._max_file_bytes:  # the rest is read and dropped, so that a reply arrives
                self._content.append(data[start:end])
        elif len(self._value) + end - start > MAX_FIELD_BYTES:
            raise InvalidRequest(f"{self._name}: more than {MAX_FIELD_BYTES} bytes.", param=self._name)
        else:
            self._value += data[start:end]

    def _end(self) -> None:
        if self._name and self._name != FILE_FIELD:
            self.form.fields[self._name] = self._value.decode(errors="replace")

    def _complete(self) -> None:
        self.is_complete = True
