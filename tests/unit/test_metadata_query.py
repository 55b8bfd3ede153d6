"""Pairs of metadata in a query string."""

from __future__ import annotations

import pytest

from app.metadata_query import metadata_pairs
from tasks.errors import InvalidRequest


def test_pairs_are_read_and_everything_else_is_left_alone():
    query = [("limit", "3"), ("metadata[a]", "1"), ("metadata[b c]", ""), ("metadata[x][y]", "2")]
    assert metadata_pairs(query) == {"a": "1", "b c": "", "x][y": "2"}


@pytest.mark.parametrize(
    "query",
    [
        [("metadata", "a=1")],
        [("metadata.a", "1")],
        [("metadata\\[a\\]", "1")],
        [("metadata[a]", "1"), ("metadata[a]", "2")],
        [(f"metadata[{'k' * 65}]", "1")],
        [("metadata[a]", "x" * 513)],
        [(f"metadata[{n}]", "1") for n in range(17)],
    ],
)
def test_what_no_job_can_hold_is_refused(query: list[tuple[str, str]]):
    with pytest.raises(InvalidRequest) as refused:
        metadata_pairs(query)
    assert refused.value.param == "metadata"
