"""Fixtures that several unit tests share. A file whose `bench` is another one has a fixture of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.runner_bench import RunnerBench


@pytest.fixture
def bench() -> Iterator[RunnerBench]:
    bench = RunnerBench()
    yield bench
    bench.close()


@pytest.fixture
def ready(bench: RunnerBench) -> RunnerBench:
    """Its runner takes work."""
    bench.open()
    return bench
