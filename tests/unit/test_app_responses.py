"""Responses: what requests become, what is refused and where, and events that are the same in every reading."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.errors import NotSupportedYet
from app.responses.events import ResponseEvents
from app.responses.objects import ended_object
from app.responses.output import whole_output
from app.responses.planning import PlannedResponse, planned_response
from app.schemas.response_answers import ResponseObject
from app.schemas.responses import ResponseBody
from app.settings import ApiSettings
from tasks.errors import InvalidRequest
from tasks.generation import ToolCall
from tasks.jobs import JobError, JobResult, JobState, Usage, new_job_id
from tasks.responses import Outcome, StoredResponse, job_of, response_id
from tasks.store.response_store import KeptResponse
from tasks.stream_events import End, Reset, Tokens
from tests.support.front_fakes import DEMO, NOW_MS, FakeBackend, front_client, sse_data

JOB = new_job_id()
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
ANSWER = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\nThen more.'
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'}
ONE = {"type": "allowed_tools", "tools": [{"type": "function", "name": "weather"}]}
PARAMETERS = "tools[1].parameters"
RESULT = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "sunny"}]}


@pytest.fixture(scope="module")
def client() -> TestClient:
    return front_client(FakeBackend())


def planned(earlier: tuple[KeptResponse, ...] = (), **fields: Any) -> PlannedResponse:
    body = ResponseBody.model_validate({"model": "demo", "input": "Hello"} | fields)
    return planned_response(body, DEMO, ApiSettings(), earlier, JOB)


def kept(state: JobState | None, **result: Any) -> KeptResponse:
    response = planned(tools=[TOOL]).response
    outcome = None
    if state is not None:
        said = JobResult(**{"text": "Hi", "finish_reason": "stop", "usage": None} | result)
        outcome = Outcome(state=state, model="demo", created_ms=NOW_MS, finished_ms=NOW_MS, result=said)
    return KeptResponse(job_id=JOB, response=response, outcome=outcome)


def events_of(response: StoredResponse, pieces: list[str], after: int = -1) -> list[dict]:
    """One reading of a finished response."""
    events = ResponseEvents(response, JOB, NOW_MS, after=after)
    text = events.opening() + b"".join(events.tokens(Tokens(piece, (1,))) for piece in pieces)
    result = JobResult(text="".join(pieces), finish_reason="stop", usage=None)
    outcome = Outcome(
        state=JobState.SUCCEEDED, model="demo", created_ms=NOW_MS, finished_ms=NOW_MS + 2000, result=result
    )
    text += events.end(End(state=JobState.SUCCEEDED, finish_reason="stop"), outcome)
    return sse_data(text.decode())


def test_ids_of_response_and_job_name_each_other():
    assert job_of(response_id(JOB)) == JOB
    for other in (JOB, "resp_", response_id(JOB) + "0", response_id(JOB).upper()):
        assert job_of(other) is None


def test_items_become_turns_of_a_conversation():
    said = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Rome"}, {"type": "input_text", "text": "?"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        CALL,
        CALL | {"call_id": "c2"},
        RESULT,
        RESULT | {"call_id": "c2", "output": "rain"},
    ]
    messages = planned(input=said, instructions="Rhyme.").generation.messages or ()
    arguments = '{"city": "Rome"}'
    assert [(message.role, message.content) for message in messages] == [
        ("system", "Rhyme."),
        ("developer", "Be brief."),
        ("user", "Rome?"),
        ("assistant", "Let me see."),
        ("tool", "sunny"),
        ("tool", "rain"),
    ]
    assert messages[3].tool_calls == (ToolCall("c1", "weather", arguments), ToolCall("c2", "weather", arguments))
    assert [message.tool_call_id for message in messages[4:]] == ["c1", "c2"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [RESULT]}, "input[0].call_id"),
        ({"input": [CALL | {"arguments": "[]"}]}, "input[0].arguments"),
        ({"input": [CALL | {"name": "a b"}]}, "input[0].name"),
        ({"input": [CALL | {"call_id": ""}]}, "input[0].call_id"),
        ({"input": "half \ud800"}, "input[0].content[0].text"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"store": False, "background": True}, "background"),
        ({"include": ["message.output_text.logprobs", "all"]}, "include[1]"),
        ({"include": ["message.output_text.logprobs"], "tools": [TOOL]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [TOOL | {"parameters": {"type": "array"}}]}, "tools[0].parameters"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.tools"),
        ({"tools": [TOOL, TOOL | {"name": "b", "parameters": {"title": "\ud800"}}], "tool_choice": ONE}, PARAMETERS),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_object"}}, "grammar": 'root ::= "a"'}, "grammar"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_cannot_be_served_is_a_400_that_names_the_place(client: TestClient, fields: dict, param: str):
    body = json.dumps({"model": "demo", "input": "Hello"} | fields)
    reply = client.post("/v1/responses", content=body, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_limits_count_the_whole_conversation():
    body = ResponseBody.model_validate({"model": "demo", "input": "Hello"})
    earlier = (kept(JobState.SUCCEEDED),)
    for limits in (ApiSettings(max_messages=2), ApiSettings(max_body_bytes=1024)):
        long = ResponseBody.model_validate({"model": "demo", "input": "x" * 1020})
        planned_response(body, DEMO, limits, (), JOB)
        with pytest.raises(InvalidRequest, match="conversation"):
            planned_response(long, DEMO, limits, earlier, JOB)


@pytest.mark.parametrize(
    ("state", "result", "reason"),
    [
        (None, {}, "has not ended yet"),
        (JobState.FAILED, {}, "it is failed"),
        (JobState.CANCELLED, {}, "it is cancelled"),
        (JobState.SUCCEEDED, {"text": '{"name": "weather", "arguments": {"ci', "finish_reason": "length"}, "cut short"),
    ],
)
def test_a_conversation_goes_on_only_behind_an_answer(state: JobState | None, result: dict, reason: str):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        planned((kept(state, **result),), previous_response_id=response_id(JOB))
    assert caught.value.param == "previous_response_id"


def test_allowed_tools_are_the_only_ones_the_model_sees():
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    plan = planned(tools=[TOOL, TOOL | {"name": "other"}], tool_choice=choice)
    assert [tool.name for tool in plan.generation.tools] == ["weather"]
    assert plan.generation.must_call_tool
    assert plan.response.echo["tool_choice"] == choice
    assert [tool["name"] for tool in plan.response.echo["tools"]] == ["weather", "other"]


def test_unknown_fields_are_ignored():
    assert planned(reasoning={"effort": "low"}, prompt_cache_key="x", nonsense=1).generation.messages
    assert planned(include=["reasoning.encrypted_content"]).generation.logprobs is None


@given(data=st.data())
def test_every_reading_has_the_same_events_wherever_it_begins(data: st.DataObject):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(ANSWER) - 1), max_size=12)))
    pieces = [ANSWER[start:end] for start, end in zip([0, *cuts], [*cuts, len(ANSWER)], strict=True)]
    response = planned(tools=[TOOL], background=True).response
    whole = events_of(response, pieces)
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    after = data.draw(st.integers(-1, len(whole)))
    assert events_of(response, pieces, after) == whole[after + 1 :]
    # The items don't depend on how the text was cut, and the deltas make up what is done.
    items = whole[-1]["response"]["output"]
    assert items == whole_output(JOB, response.tools, ANSWER)
    assert [item["type"] for item in items] == ["message", "function_call", "message"]
    for index, item in enumerate(items):
        deltas = [event["delta"] for event in whole if event.get("output_index") == index and "delta" in event]
        assert "".join(deltas) == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        added, *_, done = (event for event in whole if event.get("output_index") == index)
        assert (added["item"]["status"], done["item"]) == ("in_progress", item)


def test_empty_answer_is_an_empty_message():
    last = events_of(planned().response, [])[-1]["response"]
    assert [item["content"][0]["text"] for item in last["output"]] == [""]


def test_text_that_becomes_void_before_it_was_told_is_forgotten():
    events = ResponseEvents(planned(tools=[TOOL]).response, JOB, NOW_MS)
    events.opening()
    assert events.tokens(Tokens('{"name": "wea', (1,))) == b""  # perhaps a call: held back
    assert events.reset(Reset(2, "another file")) == b""
    (*_, delta) = sse_data(events.tokens(Tokens("Hi", (1,))).decode())
    assert (delta["delta"], events.is_over) == ("Hi", False)


def test_trouble_moves_nobodys_resume_point():
    events = ResponseEvents(planned().response, JOB, NOW_MS)
    last = sse_data(events.opening().decode())[-1]["sequence_number"]
    (trouble,) = sse_data(events.trouble("store_unavailable", "away").decode())
    assert (trouble["type"], trouble["sequence_number"]) == ("error", last)


@pytest.mark.parametrize(
    ("state", "reason", "error", "status", "code"),
    [
        (JobState.SUCCEEDED, "stop", None, "completed", None),
        (JobState.SUCCEEDED, "length", None, "incomplete", None),
        (JobState.CANCELLED, None, None, "cancelled", None),
        (JobState.EXPIRED, None, JobError(code="deadline_exceeded", message="late"), "failed", "server_error"),
        (JobState.FAILED, None, JobError(code="runner_crashed", message="died"), "failed", "server_error"),
        (JobState.FAILED, None, JobError(code="context_length_exceeded", message="long"), "failed", "invalid_prompt"),
    ],
)
def test_end_of_a_job_is_a_status_of_its_response(state, reason, error, status, code):
    result = JobResult(text="Hi", finish_reason=reason, usage=Usage(prompt_tokens=1, completion_tokens=2))
    outcome = Outcome(
        state=state, model="demo", created_ms=NOW_MS, finished_ms=NOW_MS + 1000, result=result, error=error
    )
    said = ended_object(planned(tools=[TOOL]).response, JOB, outcome)
    ResponseObject.model_validate(said, strict=True, extra="forbid")
    assert (said["status"], said["error"] and said["error"]["code"]) == (status, code)
    assert said["completed_at"] == ((NOW_MS + 1000) // 1000 if status == "completed" else None)
    assert [item["status"] for item in said["output"]] == {
        "completed": ["completed"],
        "failed": [],
    }.get(status, ["incomplete"])


def test_not_supported_says_so():
    with pytest.raises(NotSupportedYet, match="not supported yet"):
        planned(tools=[{"type": "mcp"}])
