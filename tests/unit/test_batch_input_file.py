"""What is wrong with a batch's input is said with the line's number; what is right is found again."""

from __future__ import annotations

import io
import json

import pytest

from app.batches.input_file import MAX_ERRORS, InputIndex, index_lines
from tasks import batches
from tasks.batches import MAX_LINES

CHAT = "/v1/chat/completions"


def request(custom_id: str = "a", **fields) -> bytes:
    body = {"model": "demo", "messages": []}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | fields).encode()


def index_of(*lines: bytes, end: bytes = b"\n", max_line_bytes: int = 1000) -> InputIndex:
    return index_lines(io.BytesIO(b"\n".join(lines) + end), CHAT, max_line_bytes=max_line_bytes)


@pytest.mark.parametrize("end", [b"\n", b"", b"\r\n", b"\n\n  \n"])
def test_every_line_is_found_and_read_again(end: bytes):
    lines = [request("ä" * number, body={"model": f"m{number % 2}"}) for number in range(1, 6)]
    content = io.BytesIO(b"\xef\xbb\xbf" + lines[0] + b"\n\n" + b"\n".join(lines[1:]) + end)
    index = index_lines(content, CHAT, max_line_bytes=1000)
    assert (index.errors, list(index.numbers)) == ([], [1, 3, 4, 5, 6])
    assert [index.read(content, entry).custom_id for entry in range(len(index))] == ["ä" * n for n in range(1, 6)]
    assert index.by_model() == {"m1": [0, 2, 4], "m0": [1, 3]}


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"{}", "missing_required_parameter", "custom_id"),
        (json.dumps({"custom_id": "x", "url": CHAT}).encode(), "missing_required_parameter", "body"),
        (request(body=7), "invalid_type", None),
        (request(""), "invalid_custom_id", "custom_id"),
        (request("x" * 513), "invalid_custom_id", "custom_id"),
        (request(method="GET"), "invalid_method", "method"),
        (request(url="/v1/embeddings"), "mismatched_endpoint", "url"),
        (request(body={}), "missing_required_parameter", "body.model"),
        (request("first"), "duplicate_custom_id", "custom_id"),
        (request(body={"model": "x" * 1000}), "line_too_long", None),
    ],
)
def test_wrong_line_is_named(line: bytes, code: str, param: str | None):
    index = index_of(request("first"), line, request("last"))
    (error,) = index.errors
    assert (error.code, error.line, error.param) == (code, 2, param)
    assert list(index.numbers) == [1, 3]  # what follows is still looked at


def test_line_nested_too_deeply_is_wrong_and_breaks_nothing():
    deep = b'{"custom_id": "a", "url": "/", "body": {"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    (error,) = index_of(deep, end=b"", max_line_bytes=len(deep)).errors
    assert (error.code, error.line) == ("invalid_json_line", 1)


def test_duplicate_names_the_line_that_came_first():
    assert "that of line 1" in index_of(request("a"), request("b"), request("a")).errors[0].message


@pytest.mark.parametrize("lines", [[], [b""], [b"  ", b"\t"]])
def test_file_without_a_request_is_refused(lines: list[bytes]):
    (error,) = index_of(*lines).errors
    assert (error.code, error.line) == ("empty_file", None)


def test_line_of_exactly_the_limit_is_taken():
    line = request()
    assert index_of(line, end=b"", max_line_bytes=len(line)).errors == []
    assert index_of(line, end=b"", max_line_bytes=len(line) - 1).errors[0].code == "line_too_long"


def test_one_request_too_many_is_named(monkeypatch: pytest.MonkeyPatch):
    assert MAX_LINES == 50_000
    monkeypatch.setattr("app.batches.input_file.MAX_LINES", 3)
    assert index_of(*[request(str(number)) for number in range(3)]).errors == []
    (error,) = index_of(*[request(str(number)) for number in range(5)]).errors
    assert (error.code, error.line) == ("too_many_tasks", 4)


def test_reading_stops_after_so_many_errors():
    assert len(index_of(*[b"{"] * (MAX_ERRORS + 50)).errors) == MAX_ERRORS


def test_every_state_of_a_batch_can_end():
    for state in batches.BatchState:
        assert state.is_terminal or any(after.is_terminal or batches.NEXT[after] for after in batches.NEXT[state])
    assert batches.states_before(batches.BatchState.CANCELLING) == (
        batches.BatchState.VALIDATING,
        batches.BatchState.IN_PROGRESS,
    )
