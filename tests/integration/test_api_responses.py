"""`/v1/responses` through the official OpenAI SDK, which checks every reply strictly: a real server and store, with a
scripted worker behind them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import openai
import pytest
import redis
from openai import OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from app.backend import connect_backend
from app.main import create_app
from app.settings import ApiSettings
from tasks.dispatch import Dispatcher
from tasks.errors import StoreUnavailable
from tasks.generation import TokenLogprob
from tasks.jobs import JobId, new_job_id
from tasks.responses import StoredResponse, job_of, response_id
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.response_store import LINGER_MS
from tasks.stream_events import Reset
from tests.support.front_server import FrontServer
from tests.support.scripted_worker import DEMO_OFFER, PATIENCE_S, ScriptedWorker

pytestmark = pytest.mark.integration

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = ['{"name": "weather", "arg', 'uments": {"city": ', '"Rome"}}']
TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


@pytest.fixture
def front(store_settings: StoreSettings) -> Iterator[Callable[..., OpenAI]]:
    """Start another front on the same store, with these settings."""
    servers: list[FrontServer] = []

    def start(**settings: Any) -> OpenAI:
        servers.append(FrontServer(create_app(ApiSettings(**settings), connect_backend(store_settings))))
        url = servers[-1].__enter__().url
        return OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True)

    yield start
    for server in servers:
        server.__exit__(None, None, None)


@pytest.fixture
def sdk(front: Callable[..., OpenAI], worker: ScriptedWorker) -> OpenAI:
    return front()


@pytest.fixture
def store(store_url: str) -> redis.Redis:
    return redis.Redis.from_url(store_url)


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future]]:
    """Run the client's side in a thread while the test plays the worker."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def job(response: Response) -> JobId:
    job_id = job_of(response.id)
    assert job_id
    return job_id


def read(sdk: OpenAI, **fields: Any) -> list:
    return list(sdk.responses.create(model="demo", input="Hello", stream=True, **fields))


def in_background(sdk: OpenAI, **fields: Any) -> Response:
    return sdk.responses.create(model="demo", input="Hello", background=True, **fields)


def test_whole_response(sdk, worker, meanwhile):
    def ask():
        return sdk.responses.create(
            model="gpt-demo", input="Hello", instructions="Be brief.", metadata={"a": "b"}, temperature=0, user="me"
        )

    answer = meanwhile(ask)
    turn = worker.take()
    turn.answer("Hel", "lo")
    response = answer.result()
    assert (response.output_text, response.status, response.model) == ("Hello", "completed", "demo")
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 2, 9)
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert (response.instructions, response.metadata, response.temperature) == ("Be brief.", {"a": "b"}, 0)
    assert (response.background, response.error, response.incomplete_details) == (False, None, None)
    messages = turn.attempt.request.messages
    assert [(message.role, message.content) for message in messages] == [("system", "Be brief."), ("user", "Hello")]
    assert sdk.responses.retrieve(response.id) == response


def test_stream_has_openais_events_in_order_and_numbered_from_0(sdk, worker, meanwhile):
    events = meanwhile(read, sdk)
    worker.take().answer("Hel", "", "lo")
    found = events.result()
    assert [event.type for event in found] == TEXT_EVENTS
    assert [event.sequence_number for event in found] == list(range(len(TEXT_EVENTS)))
    assert [event.delta for event in found if event.type == "response.output_text.delta"] == ["Hel", "lo"]
    assert found[0].response.output == []
    assert found[-1].response == sdk.responses.retrieve(found[0].response.id)
    assert {event.item_id for event in found[3:8]} == {found[-1].response.output[0].id}


def test_stream_helper_gives_the_final_response(sdk, worker, meanwhile):
    def stream() -> Response:
        with sdk.responses.stream(model="demo", input="Hello") as events:
            return events.get_final_response()

    final = meanwhile(stream)
    worker.take().answer("Hel", "lo")
    assert final.result().output_text == "Hello"


def test_structured_output_is_parsed(sdk, worker, meanwhile):
    class Person(BaseModel):
        name: str
        age: int

    answer = meanwhile(sdk.responses.parse, model="demo", input="Who?", text_format=Person)
    turn = worker.take()
    turn.answer('{"name": "Ada", ', '"age": 36}')
    assert answer.result().output_parsed == Person(name="Ada", age=36)
    assert turn.attempt.request.answer_format.kind == "json_schema"
    assert answer.result().text.format.type == "json_schema"


@pytest.mark.parametrize("stream", [False, True])
def test_tool_loop_goes_on_with_the_result_of_the_call(sdk, worker, meanwhile, stream):
    def ask(**fields: Any) -> Response:
        created = sdk.responses.create(model="demo", tools=[TOOL], stream=stream, **fields)
        return list(created)[-1].response if stream else created

    first = meanwhile(ask, input="What is the weather in Rome?")
    turn = worker.take()
    turn.answer(*CALL)
    (call,) = first.result().output
    assert (call.type, call.name, call.arguments, call.status) == (
        "function_call",
        "weather",
        '{"city": "Rome"}',
        "completed",
    )
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    second = meanwhile(ask, input=result, previous_response_id=first.result().id)
    turn = worker.take()
    turn.answer("It is sunny.")
    assert second.result().output_text == "It is sunny."
    user, assistant, tool = turn.attempt.request.messages
    assert (user.role, assistant.role, tool.role) == ("user", "assistant", "tool")
    assert (assistant.tool_calls[0].id, tool.tool_call_id, tool.content) == (call.call_id, call.call_id, "sunny")
    # The same without anything that is stored: all items are sent again, as SDK users do.
    third = meanwhile(
        ask, input=[{"role": "user", "content": "What is the weather in Rome?"}, call.to_dict(), *result], store=False
    )
    again = worker.take()
    again.answer("It is sunny.")
    assert third.result().output_text == "It is sunny."
    assert again.attempt.request.messages == turn.attempt.request.messages


def test_call_is_streamed_as_it_is_written(sdk, worker, meanwhile):
    events = meanwhile(read, sdk, tools=[TOOL], tool_choice="required")
    worker.take().answer("Let me see.\n<tool_call>\n", *CALL, "\n</tool_call>")
    kinds = [event.type.removeprefix("response.") for event in events.result()]
    assert kinds[-7:] == [
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    message, call = events.result()[-1].response.output
    assert (message.content[0].text, call.arguments) == ("Let me see.", '{"city": "Rome"}')


def test_conversation_goes_on_without_the_earlier_instructions(sdk, worker, meanwhile):
    first = meanwhile(sdk.responses.create, model="demo", input="My name is Ada.", instructions="Rhyme.")
    worker.take().answer("Hello Ada.")
    second = meanwhile(sdk.responses.create, model="demo", input="Who am I?", previous_response_id=first.result().id)
    worker.take().answer("Ada.")
    third = meanwhile(sdk.responses.create, model="demo", input="Sure?", previous_response_id=second.result().id)
    turn = worker.take()
    turn.answer("Yes.")
    assert third.result().previous_response_id == second.result().id
    assert [(message.role, message.content) for message in turn.attempt.request.messages] == [
        ("user", "My name is Ada."),
        ("assistant", "Hello Ada."),
        ("user", "Who am I?"),
        ("assistant", "Ada."),
        ("user", "Sure?"),
    ]


def test_conversation_needs_an_answer_to_go_on_from(sdk, worker):
    response = in_background(sdk)
    with pytest.raises(openai.BadRequestError, match="has not ended yet"):
        sdk.responses.create(model="demo", input="And?", previous_response_id=response.id)
    sdk.responses.cancel(response.id)
    with pytest.raises(openai.BadRequestError, match="it is cancelled"):
        sdk.responses.create(model="demo", input="And?", previous_response_id=response.id)


def test_conversations_are_bounded_and_need_every_response_of_theirs(sdk, front, worker, meanwhile):
    first = meanwhile(sdk.responses.create, model="demo", input="One")
    worker.take().answer("1")
    second = meanwhile(sdk.responses.create, model="demo", input="Two", previous_response_id=first.result().id)
    worker.take().answer("2")
    with pytest.raises(openai.BadRequestError, match="at most 2 responses"):
        front(max_response_chain=2).responses.create(
            model="demo", input="Three", previous_response_id=second.result().id
        )
    sdk.responses.delete(first.result().id)
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.responses.create(model="demo", input="Three", previous_response_id=second.result().id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
    assert first.result().id in str(caught.value)


def test_stream_goes_on_behind_any_event_on_another_front(sdk, front, worker):
    response = in_background(sdk)
    assert (response.status, response.background) == ("queued", True)
    turn = worker.take()
    turn.say("Hel")
    assert sdk.responses.retrieve(response.id).status == "in_progress"
    seen = []
    for event in sdk.responses.retrieve(response.id, stream=True):
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    turn.say("lo")
    turn.succeed()
    other = front()
    rest = list(other.responses.retrieve(response.id, stream=True, starting_after=seen[-1].sequence_number))
    whole = list(other.responses.retrieve(response.id, stream=True))
    assert seen + rest == whole
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    for event in whole:
        after = other.responses.retrieve(response.id, stream=True, starting_after=event.sequence_number)
        assert list(after) == whole[event.sequence_number + 1 :]


def test_front_hears_nothing_more_of_a_response_that_nobody_reads(sdk, worker, store):
    for _ in range(3):
        in_background(sdk)
    give_up_at = time.monotonic() + PATIENCE_S
    while store.pubsub_channels(keys.LIVE_PREFIX + "*"):
        assert time.monotonic() < give_up_at, "subscribed to jobs that no client follows"


def test_background_stream_outlives_its_client(sdk, worker, meanwhile):
    stream = sdk.responses.create(model="demo", input="Hello", background=True, stream=True)
    created = next(stream)
    stream.close()
    worker.take().answer("Hel", "lo")
    response = sdk.responses.retrieve(created.response.id)
    assert (response.status, response.output_text) == ("completed", "Hello")


def test_client_that_leaves_a_plain_stream_cancels_its_job(sdk, worker, meanwhile):
    stream = meanwhile(sdk.responses.create, model="demo", input="Hello", stream=True)
    turn = worker.take()
    turn.say("Hel")
    stream.result().close()
    assert worker.await_cancel() == turn.attempt.job_id


def test_cancelling_a_waiting_response_is_idempotent(sdk, worker):
    response = in_background(sdk)
    cancelled = sdk.responses.cancel(response.id)
    assert (cancelled.status, cancelled.output) == ("cancelled", [])
    assert sdk.responses.cancel(response.id) == cancelled == sdk.responses.retrieve(response.id)
    last = list(sdk.responses.retrieve(response.id, stream=True))[-1]
    assert (last.type, last.response) == ("response.incomplete", cancelled)


def test_cancelling_a_running_response_waits_for_its_worker(sdk, worker, meanwhile):
    response = in_background(sdk)
    turn = worker.take()
    turn.say("Hel")
    cancelled = meanwhile(sdk.responses.cancel, response.id)
    assert worker.await_cancel() == turn.attempt.job_id
    turn.cancel()
    assert (cancelled.result().status, cancelled.result().output_text) == ("cancelled", "Hel")
    assert cancelled.result().output[0].status == "incomplete"


def test_only_background_responses_are_cancelled(sdk, worker, meanwhile):
    answer = meanwhile(sdk.responses.create, model="demo", input="Hello")
    worker.take().answer("Hi")
    with pytest.raises(openai.BadRequestError, match="background"):
        sdk.responses.cancel(answer.result().id)


def test_length_limit_makes_a_response_incomplete(sdk, worker, meanwhile):
    events = meanwhile(read, sdk, max_output_tokens=1)
    turn = worker.take()
    turn.say("Hel")
    turn.succeed("length")
    last = events.result()[-1]
    assert (last.type, last.response.status) == ("response.incomplete", "incomplete")
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output[0].status == "incomplete"
    assert turn.attempt.request.max_tokens == 1
    assert sdk.responses.retrieve(last.response.id) == last.response


def test_failure_is_a_status_before_the_stream_and_an_event_in_it(sdk, worker, meanwhile):
    answer = meanwhile(read, sdk)
    worker.take().fail("context_length_exceeded", "300 tokens, but 256 fit", "messages")
    with pytest.raises(openai.BadRequestError) as caught:
        answer.result()
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    late = meanwhile(read, sdk)
    turn = worker.take()
    turn.say("Hel")
    turn.fail("runner_crashed", "the runner died")
    last = late.result()[-1]
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    assert sdk.responses.retrieve(last.response.id) == last.response
    background = in_background(sdk)
    worker.take().fail("context_length_exceeded", "300 tokens, but 256 fit", "messages")
    failed = sdk.responses.retrieve(background.id)
    assert (failed.status, failed.error.code) == ("failed", "invalid_prompt")


def test_response_of_a_job_that_broke_too_often_keeps_why(sdk, worker, store):
    response = in_background(sdk)
    worker.take().break_down("worker_lost", "it died")
    for _ in range(2):
        worker.break_job(job(response), "worker_lost", "it died")
    store.delete(keys.job(job(response)))
    failed = sdk.responses.retrieve(response.id)
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "server_error", "it died")


@pytest.mark.parametrize("stream", [False, True])
def test_answer_names_the_model_that_answered(sdk, worker, meanwhile, stream):
    other = msgspec.structs.replace(DEMO_OFFER, id="other", aliases=())
    worker.report(msgspec.structs.replace(DEMO_OFFER, fallback="other"), other)

    def read_models() -> list[str]:
        created = sdk.responses.create(model="gpt-demo", input="Hello", stream=stream)
        return [event.response.model for event in created if hasattr(event, "response")] if stream else [created.model]

    models = meanwhile(read_models)
    worker.hand_over("demo", "other")
    worker.take("other").answer("Hi")
    assert models.result() == (["demo", "demo", "other"] if stream else ["other"])


def test_response_that_was_never_admitted_is_none(sdk, store_settings):
    orphan = new_job_id()
    record = StoredResponse(model="demo", echo={}, items=(), is_background=True)
    connect_backend(store_settings).responses.keep(orphan, record)
    for ask in (sdk.responses.retrieve, sdk.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(response_id(orphan))


def test_answer_that_starts_over_ends_its_streams_and_not_the_background_job(sdk, worker, meanwhile):
    response = in_background(sdk)
    turn = worker.take()
    turn.say("Hel")
    turn.publish(Reset(2, "another file"))
    turn.text = ""
    turn.say("Hi")
    turn.succeed()
    *_, last = sdk.responses.retrieve(response.id, stream=True)
    assert (last.type, last.code) == ("error", "stream_reset")
    assert sdk.responses.retrieve(response.id).output_text == "Hi"
    plain = meanwhile(read, sdk)
    turn = worker.take()
    turn.say("Hel")
    turn.publish(Reset(2, "another file"))
    assert plain.result()[-1].type == "error"
    assert worker.await_cancel() == turn.attempt.job_id


@pytest.mark.parametrize("background", [True, False])
def test_stream_of_a_front_that_stops_says_so_and_goes_on_elsewhere_if_in_the_background(
    store_settings, front, worker, meanwhile, background
):
    with FrontServer(create_app(ApiSettings(), connect_backend(store_settings)), grace_s=3) as server:
        sdk = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)

        def read_until_stopped() -> list:
            events = []
            for event in sdk.responses.create(model="demo", input="Hello", stream=True, background=background):
                events.append(event)
                if event.type == "response.output_text.delta":
                    server.begin_to_stop()
            return events

        reading = meanwhile(read_until_stopped)
        turn = worker.take()
        turn.say("Hel")
        *_, newest, last = reading.result()
        assert (last.type, last.code, last.sequence_number) == (
            "error",
            "server_shutting_down",
            newest.sequence_number,
        )
    if not background:
        assert worker.await_cancel() == turn.attempt.job_id
        return
    turn.say("lo")
    turn.succeed()
    rest = front().responses.retrieve(
        response_id(turn.attempt.job_id), stream=True, starting_after=last.sequence_number
    )
    assert [event.delta for event in rest if event.type == "response.output_text.delta"] == ["lo"]


def test_log_probabilities_are_included_when_asked_for(sdk, worker, meanwhile):
    events = meanwhile(read, sdk, include=["message.output_text.logprobs"], top_logprobs=1)
    turn = worker.take()
    turn.say("é", [TokenLogprob("é", -0.25, (TokenLogprob("é", -0.25),))])
    turn.succeed()
    delta = next(event for event in events.result() if event.type == "response.output_text.delta")
    assert (delta.logprobs[0].token, delta.logprobs[0].top_logprobs[0].logprob) == ("é", -0.25)
    response = sdk.responses.retrieve(events.result()[0].response.id)
    assert response.output[0].content[0].logprobs[0].bytes == [195, 169]
    assert turn.attempt.request.logprobs == 1


def test_input_items_are_listed_in_pages(sdk, worker):
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
    said: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello", "id": "msg_mine"},
        call,
        output,
    ]
    response = sdk.responses.create(model="demo", input=said, background=True)
    items = list(sdk.responses.input_items.list(response.id, limit=2, order="asc"))
    assert [item.type for item in items] == ["message", "message", "function_call", "function_call_output"]
    assert (items[0].content[0].text, items[1].id) == ("Hi", "msg_mine")
    newest = sdk.responses.input_items.list(response.id, limit=3)
    assert ([item.id for item in newest.data], newest.has_more) == ([item.id for item in items[:0:-1]], True)


def test_nothing_of_an_unstored_response_is_kept(sdk, worker, meanwhile, store):
    answer = meanwhile(sdk.responses.create, model="demo", input="Hello", store=False)
    worker.take().answer("Hi")
    response = answer.result()
    for ask in (sdk.responses.retrieve, sdk.responses.cancel, sdk.responses.delete, sdk.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            ask(response.id)
    assert not store.exists(keys.response(job(response)))
    for key in (keys.job(job(response)), keys.stream(job(response))):
        assert 0 < store.pttl(key) <= LINGER_MS


def test_what_store_is_by_default_is_a_setting(front, worker, meanwhile):
    sdk = front(store_responses=False)
    answer = meanwhile(sdk.responses.create, model="demo", input="Hello")
    worker.take().answer("Hi")
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(answer.result().id)
    with pytest.raises(openai.BadRequestError, match="store"):
        in_background(sdk)


def test_stored_response_outlives_its_job_and_then_ends(sdk, worker, meanwhile, store, store_settings):
    answer = meanwhile(sdk.responses.create, model="demo", input="Hello")
    worker.take().answer("Hi")
    response = answer.result()
    record = keys.response(job(response))
    assert 0 < store_settings.response_retention_s * 1000 - store.pttl(record) < PATIENCE_S * 1000
    store.delete(keys.job(job(response)), keys.stream(job(response)))
    assert sdk.responses.retrieve(response.id) == response
    with pytest.raises(openai.BadRequestError, match="no longer kept"):
        sdk.responses.retrieve(response.id, stream=True)
    store.delete(record)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(response.id)


def test_stored_responses_are_bounded_and_the_oldest_go_first(store_settings, worker, store):
    settings = store_settings.model_copy(update={"max_responses": 2})
    with FrontServer(create_app(ApiSettings(), connect_backend(settings))) as server:
        sdk = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        responses = []
        for _ in range(4):
            responses.append(in_background(sdk))
            created_ms = store.time()[1] // 1000
            while store.time()[1] // 1000 == created_ms:  # the order is that of the store's milliseconds
                pass
        with pytest.raises(openai.NotFoundError):
            sdk.responses.retrieve(responses[0].id)
        assert [sdk.responses.retrieve(response.id).status for response in responses[1:]] == ["queued"] * 3
    assert store.zcard(keys.RESPONSES) == 3  # the newest one came when there were two


def test_stored_responses_are_bounded_in_bytes_too_and_answers_count(store_settings, worker, store):
    """Any thousand of them may be as large as requests and answers can be."""
    settings = store_settings.model_copy(update={"max_responses_bytes": 64 * 1024})
    backend = connect_backend(settings)
    with FrontServer(create_app(ApiSettings(), backend)) as server:
        sdk = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)

        def stored(text: str, answer: str) -> Response:
            response = sdk.responses.create(model="demo", input=text, background=True)
            worker.take().answer(answer)
            return response

        small = stored("Hello", "Hi")
        size = backend.responses.figures().bytes
        long_answer = stored("Hello", "x" * 50_000)
        assert 50_000 + 2 * size > backend.responses.figures().bytes > 50_000 + size
        long_input = stored("y" * 20_000, "Hi")  # only now there are too many bytes
        assert [sdk.responses.retrieve(each.id).status for each in (small, long_answer, long_input)] == [
            "completed"
        ] * 3
        last = stored("Hello", "Hi")
        for gone in (small, long_answer):
            with pytest.raises(openai.NotFoundError):
                sdk.responses.retrieve(gone.id)
        assert [sdk.responses.retrieve(each.id).status for each in (long_input, last)] == ["completed"] * 2
        figures = backend.responses.figures()
        assert (figures.kept, figures.evicted) == (2, 2)
        for each in (long_input, last):
            sdk.responses.delete(each.id)
        assert (backend.responses.figures().kept, backend.responses.figures().bytes) == (0, 0)
    assert store.hkeys(keys.RESPONSE_BYTES) == [b"all", b"evicted"]


def test_deleting_a_response_deletes_its_content(sdk, worker, meanwhile, store):
    answer = meanwhile(sdk.responses.create, model="demo", input="Hello", metadata={"team": "red"})
    worker.take().answer("Hi")
    response = answer.result()
    sdk.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.delete(response.id)
    assert not store.exists(keys.job(job(response)), keys.stream(job(response)), keys.response(job(response)))
    assert store.keys(keys.tagged("*")) == []


def test_deleting_a_running_response_cancels_it_and_keeps_nothing(sdk, worker, store):
    response = in_background(sdk)
    turn = worker.take()
    turn.say("Hel")
    sdk.responses.delete(response.id)
    assert worker.await_cancel() == job(response)
    turn.cancel()
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(response.id)
    assert 0 < store.pttl(keys.job(job(response))) <= LINGER_MS


def test_idempotency_key_leads_to_the_same_response(sdk, worker):
    again = {"Idempotency-Key": "one"}
    first, second = (in_background(sdk, extra_headers=again) for _ in range(2))
    assert first == second
    worker.take().answer("Hi")
    assert in_background(sdk, extra_headers=again).output_text == "Hi"


def test_refused_job_leaves_no_response_behind(store_settings, worker, store):
    settings = store_settings.model_copy(update={"max_queue_per_model": 1})
    with FrontServer(create_app(ApiSettings(), connect_backend(settings))) as server:
        sdk = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        in_background(sdk)
        with pytest.raises(openai.RateLimitError):
            in_background(sdk)
    assert store.zcard(keys.RESPONSES) == len(store.keys(keys.response(JobId("*")))) == 1


def test_response_of_a_job_whose_admission_was_not_heard_of_is_found_by_the_repeat(sdk, worker, monkeypatch):
    submit = Dispatcher.submit

    def unheard(*args: Any, **options: Any) -> None:
        submit(*args, **options)
        monkeypatch.undo()
        raise StoreUnavailable("the reply got lost")

    monkeypatch.setattr(Dispatcher, "submit", unheard)
    again = {"Idempotency-Key": "one"}
    with pytest.raises(openai.InternalServerError):
        in_background(sdk, extra_headers=again)
    response = in_background(sdk, extra_headers=again)
    worker.take().answer("Hi")
    assert sdk.responses.retrieve(response.id).output_text == "Hi"


def test_refused_jobs_make_no_stored_response_go(store_settings, worker, store):
    settings = store_settings.model_copy(update={"max_queue_per_model": 2, "max_responses": 2})
    with FrontServer(create_app(ApiSettings(), connect_backend(settings))) as server:
        sdk = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        kept = [in_background(sdk) for _ in range(2)]
        for _ in range(3):
            with pytest.raises(openai.RateLimitError):
                in_background(sdk)
        assert [sdk.responses.retrieve(response.id).status for response in kept] == ["queued"] * 2


@pytest.mark.parametrize(
    ("tier", "served", "priority"),
    [
        (None, None, "default"),
        ("auto", "default", "default"),
        ("flex", "flex", "batch"),
        ("priority", "priority", "interactive"),
    ],
)
def test_service_tier_says_how_urgent_a_response_is(sdk, worker, tier, served, priority):
    response = in_background(sdk, service_tier=tier)
    assert response.service_tier == served
    fields: Any = sdk.get(f"/jobs/{job(response)}", cast_to=object)
    assert fields["priority"] == priority


def test_unknown_response_is_404_in_openais_form(sdk):
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.responses.retrieve("resp_nobody")
    assert (caught.value.code, caught.value.type) == ("response_not_found", "invalid_request_error")
    assert caught.value.response.headers["x-request-id"]
