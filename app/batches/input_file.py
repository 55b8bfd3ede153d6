"""The lines of a batch's input file: what is wrong with them, where each begins, which model it asks for.

Reads a file line by line and keeps some bytes per line, never the file. Knows no store and sends nothing.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from tasks.batches import MAX_LINES, LineError
from tasks.generation import JsonObject

MAX_ERRORS = 100  # reported of one file
MAX_CUSTOM_ID_CHARS = 512
_BLANK = b" \t\r\n"


class Line(msgspec.Struct, frozen=True):
    """One request of a batch, as it stands in the file."""

    custom_id: str
    url: str
    body: JsonObject
    method: str = "POST"


_decode_line = msgspec.json.Decoder(Line).decode
_decode_any = msgspec.json.Decoder().decode


@dataclass(slots=True)
class InputIndex:
    """Where the lines are. Entry i is the i-th request; its `numbers[i]` counts all lines of the file from 1."""

    numbers: array[int] = field(default_factory=lambda: array("l"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("l"))
    models: list[str] = field(default_factory=list)  # of each entry, as the client spelled it
    errors: list[LineError] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)

    def by_model(self) -> dict[str, list[int]]:
        """Entries of each model, models in the order in which they first appear."""
        groups: dict[str, list[int]] = {}
        for entry, model in enumerate(self.models):
            groups.setdefault(model, []).append(entry)
        return groups

    def read(self, source: BinaryIO, entry: int) -> Line:
        """The request of a file that was found in order."""
        source.seek(self.offsets[entry])
        return _decode_line(source.read(self.sizes[entry]))


def index_lines(source: BinaryIO, endpoint: str, *, max_line_bytes: int) -> InputIndex:
    """Read the whole file once. With errors in the result it can't be used."""
    index = InputIndex()
    seen: dict[bytes, int] = {}  # digest of a custom_id → line
    names: dict[str, str] = {}  # one string per model, however many lines ask for it
    for number, offset, raw in _lines(source, max_line_bytes):
        if len(index.errors) >= MAX_ERRORS:
            break
        if raw is None:
            index.errors.append(
                LineError(code="line_too_long", line=number, message=f"The line has more than {max_line_bytes} bytes.")
            )
            continue
        line = _checked(raw, number, endpoint)
        if isinstance(line, LineError):
            index.errors.append(line)
            continue
        digest = hashlib.blake2b(line.custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
        first = seen.setdefault(digest, number)
        if first != number:
            message = f"The custom_id {line.custom_id[:80]!r} is that of line {first}, too; each must be unique."
            index.errors.append(LineError(code="duplicate_custom_id", line=number, message=message, param="custom_id"))
            continue
        if len(index) >= MAX_LINES:
            message = f"The file has more than {MAX_LINES} requests. Split it into several batches."
            index.errors.append(LineError(code="too_many_tasks", line=number, message=message))
            break
        model = line.body["model"]
        index.numbers.append(number)
        index.offsets.append(offset)
        index.sizes.append(len(raw))
        index.models.append(names.setdefault(model, model))
    if not index.errors and not len(index):
        index.errors.append(LineError(code="empty_file", message="The file has no request in it."))
    return index


def _lines(source: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, int, bytes | None]]:
    """(number, offset, content) of the lines that are not blank; content None for one that is too long."""
    number = offset = 0
    while raw := source.readline(max_line_bytes + 1):
        number += 1
        begin = offset
        offset += len(raw)
        if len(raw) > max_line_bytes:
            while not raw.endswith(b"\n") and (raw := source.readline(max_line_bytes)):
                offset += len(raw)
            yield number, begin, None
            continue
        if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
            begin, raw = begin + 3, raw[3:]
        if raw.strip(_BLANK):
            yield number, begin, raw


def _checked(raw: bytes, number: int, endpoint: str) -> Line | LineError:
    try:
        line = _decode_line(raw)
    except msgspec.ValidationError as error:
        problem = _misshapen(_decode_any(raw), error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = ("invalid_json_line", "This line is not parseable as valid JSON.", None)
    except RecursionError:
        problem = ("invalid_json_line", "This line has too many objects or arrays in each other.", None)
    else:
        unfit = _unfit(line, endpoint)
        if unfit is None:
            return line
        problem = unfit
    code, message, param = problem
    return LineError(code=code, message=message, line=number, param=param)


_Problem = tuple[str, str, str | None]  # code, message, param


def _misshapen(value: object, error: msgspec.ValidationError) -> _Problem:
    if not isinstance(value, dict):
        return "invalid_json_line", "This line is JSON, but no object.", None
    for name in ("custom_id", "url", "body"):
        if name not in value:
            return "missing_required_parameter", f"The line has no {name!r}.", name
    return "invalid_type", f"The line has a field of a wrong type: {error}.", None


def _unfit(line: Line, endpoint: str) -> _Problem | None:
    if not 0 < len(line.custom_id) <= MAX_CUSTOM_ID_CHARS:
        return "invalid_custom_id", f"custom_id must have 1 to {MAX_CUSTOM_ID_CHARS} characters.", "custom_id"
    if line.method != "POST":
        return "invalid_method", f"The method must be POST, not {line.method[:20]!r}.", "method"
    if line.url != endpoint:
        message = f"The url {line.url[:80]!r} is not the endpoint of this batch, {endpoint!r}."
        return "mismatched_endpoint", message, "url"
    if not isinstance(line.body.get("model"), str):
        return "missing_required_parameter", "The body must name a model.", "body.model"
    return None
