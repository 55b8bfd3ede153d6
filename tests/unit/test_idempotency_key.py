"""The syntax of the Idempotency-Key header, and what counts as the same body."""

from __future__ import annotations

import pytest

from app.idempotency import MAX_KEY_CHARS, fingerprint, parse_key
from app.schemas.jobs import JobBody
from tasks.errors import InvalidRequest


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ('"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        (' "a, b" ', "a, b"),
        (r'"a\"b\\c"', r"a\"b\\c".replace("\\\\", "\\").replace('\\"', '"')),
        ("k" * MAX_KEY_CHARS, "k" * MAX_KEY_CHARS),
    ],
)
def test_key_comes_bare_or_as_a_structured_string(value: str, key: str) -> None:
    assert parse_key([value]) == key


@pytest.mark.parametrize(
    "values",
    [[""], ['""'], ['"open'], ["two words"], ["a,b"], ["é"], ["a\x7f"], ['"a";p=1'], ['"a\\b"'],
     ["k" * (MAX_KEY_CHARS + 1)], ["a", "a"]],
)  # fmt: skip
def test_what_is_no_key_is_refused(values: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key") as caught:
        parse_key(values)
    assert caught.value.param == "Idempotency-Key"


def test_no_header_is_no_key() -> None:
    assert parse_key([]) is None
    assert fingerprint(None, "/v1/jobs", JobBody(model="m", prompt="p")) is None


def test_route_and_every_field_make_the_fingerprint() -> None:
    def of(path: str = "/v1/jobs", **fields: object) -> str | None:
        return fingerprint("k", path, JobBody.model_validate({"model": "m", "prompt": "p"} | fields))

    assert of() == of() == of(priority="default")
    others = [of("/v1/chat/completions"), of(seed=1), of(prompt="q"), of(deadline=5), of(priority="batch")]
    assert len({of(), *others}) == 6
    assert of(deadline="2030-01-31T12:00:00Z") == of(deadline="2030-01-31T12:00:00Z") != of()
