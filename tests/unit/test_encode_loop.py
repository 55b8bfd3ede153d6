"""Inputs of several jobs in shared batches: whose turn it is, what comes out, when it ends."""

from __future__ import annotations

import numpy as np
import pytest

from workers.engine.base import EngineFailed
from workers.engine.encoding import EncodeLoop, Encoding, share_batch
from workers.messages import Done, Encoded, Output


class Echo:
    """A row is the input's length and its first id."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.adapters: list[str] = []
        self.is_broken = False

    def encode(self, inputs, adapter=""):
        self.batches.append(list(inputs))
        self.adapters.append(adapter)
        rows = np.array([[len(tokens), tokens[0]] for tokens in inputs], dtype=np.float32)
        return rows * np.nan if self.is_broken else rows


def job(key: int, *lengths: int, done: int = 0, adapter: str = "") -> Encoding:
    inputs = tuple((100 * key + index,) * length for index, length in enumerate(lengths))
    return Encoding(key=key, inputs=inputs, done=done, is_scored=True, adapter=adapter)


def run(loop: EncodeLoop) -> list[Output]:
    outputs: list[Output] = []
    while loop.has_work:
        outputs += loop.step()
    return outputs


def counts(jobs: list[Encoding], **limits: int) -> dict[int, int]:
    return {each.key: count for each, count in share_batch(jobs, **{"max_tokens": 10, "max_inputs": 8, **limits})}


def test_a_batch_is_shared_in_turn():
    assert counts([job(1, 1, 1, 1, 1, 1, 1, 1, 1, 1), job(2, 1, 1)]) == {1: 6, 2: 2}
    assert counts([job(1, 5, 5, 5), job(2, 5)]) == {1: 1, 2: 1}


def test_the_first_input_gets_in_however_long_it_is():
    assert counts([job(1, 50), job(2, 1)]) == {1: 1}
    assert counts([job(2, 1), job(1, 50)]) == {2: 1}


def test_a_batch_holds_no_more_inputs_than_allowed():
    assert counts([job(1, 1, 1, 1), job(2, 1, 1, 1)], max_inputs=4) == {1: 2, 2: 2}


def test_rows_keep_the_order_of_their_inputs_and_a_done_ends_each_job():
    loop = EncodeLoop(Echo(), max_tokens=4, max_inputs=8)
    loop.add(job(1, 3, 2, 1))
    loop.add(job(2, 1))
    outputs = run(loop)
    encoded = [out for out in outputs if isinstance(out, Encoded) and out.key == 1]
    assert [np.frombuffer(row, "<f4")[0] for out in encoded for row in out.rows] == [3, 2, 1]
    ends = {out.key: out for out in outputs if isinstance(out, Done)}
    assert (ends[1].prompt_tokens, ends[1].finish_reason, ends[2].prompt_tokens) == (6, "stop", 1)


def test_a_long_input_is_not_overtaken_for_ever():
    backend = Echo()
    loop = EncodeLoop(backend, max_tokens=512, max_inputs=8)
    loop.add(job(1, *[500] * 20))
    loop.add(job(2, 500))
    for _ in range(2):
        loop.step()
    assert any(batch == [(200,) * 500] for batch in backend.batches)


def test_jobs_that_end_at_once_take_no_turn_from_the_one_behind_them():
    backend = Echo()
    loop = EncodeLoop(backend, max_tokens=512, max_inputs=8)
    loop.add(job(1, 500))
    loop.add(job(2, *[500] * 20))
    loop.add(job(3, 500))
    for key in range(4, 13):
        loop.step()
        loop.add(job(key, 500))
    assert [200 <= batch[0][0] < 300 for batch in backend.batches].count(True) >= 3


def test_a_batch_has_one_adapter_and_all_of_them_get_their_turn():
    backend = Echo()
    loop = EncodeLoop(backend, max_tokens=512, max_inputs=8)
    for key, adapter in ((1, ""), (2, "tuned"), (3, "")):
        loop.add(job(key, *[200] * 10, adapter=adapter))
    for _ in range(4):
        loop.step()
    assert set(backend.adapters) == {"", "tuned"}
    for batch, adapter in zip(backend.batches, backend.adapters, strict=True):
        assert {tokens[0] // 100 == 2 for tokens in batch} == {adapter == "tuned"}


def test_what_was_published_before_is_not_computed_again():
    backend = Echo()
    loop = EncodeLoop(backend, max_tokens=10, max_inputs=8)
    loop.add(job(1, 1, 2, 3, done=2))
    loop.add(job(2, 1, done=1))
    ends = [out.key for out in run(loop) if isinstance(out, Done)]
    assert sorted(ends) == [1, 2]
    assert backend.batches == [[(102,) * 3]]


def test_a_cancelled_job_leaves_the_next_batch():
    backend = Echo()
    loop = EncodeLoop(backend, max_tokens=10, max_inputs=8)
    loop.add(job(1, 1))
    loop.add(job(2, 1))
    loop.cancel(1)
    loop.cancel(7)
    outputs = run(loop)
    assert [(out.key, out.finish_reason) for out in outputs if isinstance(out, Done)] == [(1, None), (2, "stop")]
    assert backend.batches == [[(200,)]]


def test_numbers_that_are_none_break_the_engine():
    backend = Echo()
    backend.is_broken = True
    loop = EncodeLoop(backend, max_tokens=10, max_inputs=8)
    loop.add(job(1, 1))
    with pytest.raises(EngineFailed, match="NaN"):
        loop.step()


def test_numbers_that_are_none_under_an_adapter_end_its_jobs_alone():
    backend = Echo()
    backend.is_broken = True
    loop = EncodeLoop(backend, max_tokens=10, max_inputs=8)
    loop.add(job(1, 1, 2, adapter="tuned"))
    (end,) = run(loop)
    assert isinstance(end, Done) and end.error is not None
    assert (end.error.code, end.finish_reason) == ("adapter_failed", None)
    backend.is_broken = False
    loop.add(job(2, 1))
    assert [type(output) for output in run(loop)] == [Encoded, Done]
