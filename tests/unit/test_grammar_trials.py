"""Equal formats are tried once at a time, whoever asks and whoever leaves."""

from __future__ import annotations

import asyncio

import pytest

from app.errors import FormatNotTried
from app.grammar_check import GrammarCheck
from app.grammar_trial import Verdict
from tasks.errors import InvalidRequest
from tasks.generation import GenerationRequest
from tasks.grammars import json_schema_format

ASKING = GenerationRequest(
    model="m", prompt="?", answer_format=json_schema_format({"type": "object"}, is_lenient=False)
)


class GatedCheck(GrammarCheck):
    """Trials begin at once and end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.num_begun = self.num_cancelled = 0
        self.outcome: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    async def _try(self, line: bytes) -> Verdict | None:
        self.num_begun += 1
        try:
            return await asyncio.shield(self.outcome)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise


async def all_waiting(check: GatedCheck, count: int) -> list[asyncio.Task[None]]:
    asked = [asyncio.create_task(check.check(ASKING)) for _ in range(count)]
    for _ in range(3):  # turns of the loop: the askers, their trial, and what it awaits
        await asyncio.sleep(0)
    return asked


async def test_equal_requests_at_once_share_a_trial_and_its_verdict():
    check = GatedCheck()
    asked = await all_waiting(check, 16)
    check.outcome.set_result(Verdict("no good", 0))
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InvalidRequest] * 16
    assert check.num_begun == 1
    with pytest.raises(InvalidRequest, match="no good"):
        await check.check(ASKING)
    assert check.num_begun == 1


async def test_trial_that_could_not_be_made_is_told_to_all_and_the_next_request_tries_again():
    check = GatedCheck()
    asked = await all_waiting(check, 3)
    check.outcome.set_exception(FormatNotTried("Busy"))
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [FormatNotTried] * 3
    check.outcome = asyncio.get_running_loop().create_future()
    check.outcome.set_result(Verdict())
    await check.check(ASKING)
    assert check.num_begun == 2


async def test_client_that_leaves_takes_nothing_from_the_others_and_the_last_one_ends_the_trial():
    check = GatedCheck()
    first, second = await all_waiting(check, 2)
    first.cancel()
    await asyncio.wait([first])
    assert (check.num_begun, check.num_cancelled) == (1, 0)
    second.cancel()
    await asyncio.wait([second])
    (third,) = await all_waiting(check, 1)
    assert (check.num_begun, check.num_cancelled) == (2, 1)
    check.outcome.set_result(Verdict())
    await third
