"""Responses through the official SDK, strictly checked, on real processes and a real model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.support.stack import Api, Stack, kill, wait_until

pytestmark = pytest.mark.e2e

MODEL = "keepwarm-demo-q8_0"
LENGTH = 1500  # long enough that the work outlasts what happens to it
LONG: Any = {"model": MODEL, "input": "Tell me a story.", "temperature": 0, "max_output_tokens": LENGTH}
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("home"), KEEPWARM_LEASE_S="2") as stack:
        yield stack


@pytest.fixture(scope="module")
def api(stack: Stack) -> Api:
    return stack.start_all()


@pytest.fixture(scope="module")
def sdk(api: Api) -> openai.OpenAI:
    return client_of(api)


def client_of(api: Api) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0, _strict_response_validation=True)


def long_response(sdk: openai.OpenAI) -> Any:
    return sdk.responses.create(**LONG, background=True, extra_body={"ignore_eos": True})


def text_of(events: list) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def test_response_outlives_its_front_and_its_runner_and_its_stream_goes_on_exactly(
    stack: Stack, api: Api, sdk: openai.OpenAI
) -> None:
    reference = long_response(sdk)
    doomed = stack.start_api()
    doomed.wait_ready()
    response = long_response(client_of(doomed))
    first = list(islice(client_of(doomed).responses.retrieve(response.id, stream=True), 20))
    kill(doomed.process.pid)
    kill(api.runners(MODEL)[0]["pid"])
    again = stack.start_api()
    again.wait_ready()
    after = first[-1].sequence_number
    rest = list(client_of(again).responses.retrieve(response.id, stream=True, starting_after=after))
    whole: list[Any] = list(sdk.responses.retrieve(response.id, stream=True))
    assert [*first, *rest] == whole
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    ended = sdk.responses.retrieve(response.id)
    assert (ended.status, ended.usage and ended.usage.output_tokens) == ("incomplete", LENGTH)
    assert whole[-1].response == ended
    job: Any = sdk.get(f"/jobs/job_{response.id.removeprefix('resp_')}", cast_to=object)
    assert job["attempt"] == 2
    list(sdk.responses.retrieve(reference.id, stream=True))
    assert text_of(whole) == ended.output_text == sdk.responses.retrieve(reference.id).output_text


def test_running_response_is_cancelled_once(api: Api, sdk: openai.OpenAI) -> None:
    response = long_response(sdk)
    events = sdk.responses.retrieve(response.id, stream=True)
    first = list(islice(events, 10))
    cancelled = sdk.responses.cancel(response.id)
    assert cancelled.status == "cancelled"
    assert sdk.responses.cancel(response.id) == cancelled == sdk.responses.retrieve(response.id)
    rest: list[Any] = list(events)
    assert rest[-1].response == cancelled
    assert text_of([*first, *rest]) == cancelled.output_text
    wait_until(lambda: not api.runners(MODEL)[0]["in_flight"], "the slot is free", 5)


def test_structured_output_and_tool_loop(sdk: openai.OpenAI) -> None:
    class Sum(BaseModel):
        a: int
        b: int

    parsed = sdk.responses.parse(model=MODEL, input="3 plus 4", text_format=Sum, temperature=0, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Sum)
    called = sdk.responses.create(
        model=MODEL, input="What is the weather in Rome?", tools=[TOOL], tool_choice="required", temperature=0
    )
    call = called.output[0]
    assert call.type == "function_call"
    assert '"city"' in call.arguments
    answer = sdk.responses.create(
        model=MODEL,
        previous_response_id=called.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        temperature=0,
        max_output_tokens=20,
    )
    assert answer.output_text
