"""A job outlives the processes that work on it, and its text goes on at the next token."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.support.stack import Api, Stack, kill, wait_until

pytestmark = pytest.mark.e2e

MODEL = "keepwarm-demo-q8_0"
LENGTH = 1500  # long enough that the work outlasts what happens to it
SHORTER = 700  # the same for half a dozen at once
GREEDY = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": LENGTH, "ignore_eos": True, "temperature": 0}
SAMPLED = {**GREEDY, "temperature": 1.0, "seed": 11}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("home")
    with Stack(home, KEEPWARM_LEASE_S="2", KEEPWARM_DRAIN_S="0.1", KEEPWARM_KEEP_ALIVE_S="2") as stack:
        yield stack


@pytest.fixture(scope="module")
def api(stack: Stack) -> Api:
    return stack.start_all()


@pytest.fixture(scope="module")
def references(api: Api) -> dict[str, str]:
    """The undisturbed texts."""
    jobs = {"greedy": api.submit(**GREEDY), "sampled": api.submit(**SAMPLED)}
    return {name: api.finished(job_id)["result"]["text"] for name, job_id in jobs.items()}


def holder(api: Api) -> dict:
    """The worker that runs something of the model."""
    return next(
        worker
        for worker in api.pool()["workers"]
        for runner in worker["runners"]
        if runner["model"] == MODEL and runner["in_flight"]
    )


def finish_and_check(api: Api, job_id: str, first: list, events: Iterator, reference: str, attempts: int) -> None:
    everything = [*first, *events]
    assert [seq for seq, _, _ in everything] == list(range(1, len(everything) + 1))
    assert [kind for _, kind, _ in everything].count("end") == 1
    text = "".join(json.loads(data)["text"] for _, kind, data in everything if kind == "tokens")
    assert text == reference
    job = api.finished(job_id)
    assert (job["state"], job["attempt"], job["result"]["text"]) == ("succeeded", attempts, reference)
    assert job["result"]["usage"]["completion_tokens"] == LENGTH


@pytest.mark.parametrize(("name", "body"), [("greedy", GREEDY), ("sampled", SAMPLED)])
def test_killed_runner_costs_a_pause(api: Api, references: dict[str, str], name: str, body: dict) -> None:
    job_id = api.submit(**body)
    with api.events(job_id) as events:
        first = [next(events) for _ in range(20)]
        kill(api.runners(MODEL)[0]["pid"])
        finish_and_check(api, job_id, first, events, references[name], attempts=2)


def test_killed_worker_costs_a_pause_and_leaves_no_runner(stack: Stack, api: Api, references: dict[str, str]) -> None:
    stack.start_worker()
    api.wait_ready(workers=2)
    job_id = api.submit(**GREEDY)
    with api.events(job_id) as events:
        first = [next(events) for _ in range(20)]
        wait_until(lambda: any(runner["in_flight"] for runner in api.runners(MODEL)), "the runner is seen busy", 5)
        worker = holder(api)
        runners = [runner["pid"] for runner in worker["runners"]]
        kill(worker["pid"])
        finish_and_check(api, job_id, first, events, references["greedy"], attempts=2)
    wait_until(lambda: not any(is_alive(pid) for pid in runners), "its runners are gone", 5)


def test_worker_that_is_told_to_stop_hands_its_work_over(stack: Stack, api: Api, references: dict[str, str]) -> None:
    stack.start_worker()
    api.wait_ready(workers=2)
    job_id = api.submit(**GREEDY)
    with api.events(job_id) as events:
        first = [next(events) for _ in range(20)]
        wait_until(lambda: any(runner["in_flight"] for runner in api.runners(MODEL)), "the runner is seen busy", 5)
        pid = holder(api)["pid"]
        process = next(each for each in stack.processes if each.pid == pid)
        process.send_signal(signal.SIGTERM)
        finish_and_check(api, job_id, first, events, references["greedy"], attempts=2)
    assert process.wait(10) == 0


class Listening:
    """A client that reads all of a streamed answer, in a thread of its own."""

    def __init__(self, api: Api, pool: ThreadPoolExecutor, method: str, path: str, **request: object) -> None:
        self.job_ids: list[str] = []
        self.lines: list[str] = []
        self._reading = pool.submit(self._read, api.http, method, path, request)

    def _read(self, http: httpx2.Client, method: str, path: str, request: dict) -> None:
        with http.stream(method, path, **request) as reply:
            assert reply.is_success, reply.read()
            self.job_ids = reply.headers["x-keepwarm-job"].split(", ")
            for line in reply.iter_lines():
                self.lines.append(line)

    @property
    def has_begun(self) -> bool:
        return any(line.startswith("data: ") for line in self.lines)

    @property
    def num_keep_alives(self) -> int:
        return self.lines.count(": keep-alive")

    def payloads(self) -> list[dict]:
        """Of all events, once the stream has ended."""
        self._reading.result(60)
        data = [line.removeprefix("data: ") for line in self.lines if line.startswith("data: ")]
        return [json.loads(each) for each in data if each != "[DONE]"]


def test_killed_store_costs_open_streams_a_pause(stack: Stack, api: Api, references: dict[str, str]) -> None:
    """They go on at their next token, on the same connection, and so does a request that waits for its answer."""
    body = GREEDY | {"max_tokens": SHORTER}
    job_id = api.submit(**body)
    with ThreadPoolExecutor() as pool:
        events = Listening(api, pool, "GET", f"/v1/jobs/{job_id}/events")
        plain = Listening(api, pool, "POST", "/v1/completions", json=body | {"stream": True})
        several = Listening(api, pool, "POST", "/v1/completions", json=body | {"stream": True, "n": 2})
        told = {"model": MODEL, "input": "Tell me a story.", "max_output_tokens": SHORTER, "ignore_eos": True}
        response = Listening(api, pool, "POST", "/v1/responses", json=told | {"stream": True})
        waiting = pool.submit(api.http.post, "/v1/completions", json=body)
        streams = (events, plain, several, response)
        leaving = api.http.send(
            api.http.build_request("POST", "/v1/completions", json=GREEDY | {"stream": True}), stream=True
        )
        wait_until(lambda: all(each.has_begun for each in streams), "all streams have begun", 20)
        store = next(each for each in reversed(stack.processes) if "tasks.embedded_store" in each.args)  # type: ignore[operator]
        kill(store.pid)
        store.wait()
        leaving.close()
        before = {each: each.num_keep_alives for each in streams}
        wait_until(lambda: all(each.num_keep_alives > before[each] + 1 for each in streams), "all are kept alive", 20)
        stack.start_store()
        texts = {
            job_id: "".join(payload.get("text", "") for payload in events.payloads()),
            plain.job_ids[0]: text_of_choice(plain, 0),
            several.job_ids[0]: text_of_choice(several, 0),
            several.job_ids[1]: text_of_choice(several, 1),
            waiting.result(60).headers["x-keepwarm-job"]: waiting.result().json()["choices"][0]["text"],
        }
        assert len(set(texts.values())) == 1
        assert references["greedy"].startswith(texts[job_id])
        answered = response.payloads()
    assert api.finished(leaving.headers["x-keepwarm-job"])["state"] == "cancelled"
    seqs = [int(line.removeprefix("id: ")) for line in events.lines if line.startswith("id: ")]
    assert seqs == list(range(1, len(seqs) + 1))
    assert [event["sequence_number"] for event in answered] == list(range(len(answered)))
    deltas = "".join(event["delta"] for event in answered if event["type"] == "response.output_text.delta")
    assert deltas == api.finished(response.job_ids[0])["result"]["text"]
    assert answered[-1]["response"]["usage"]["output_tokens"] == SHORTER
    assert all(api.finished(each)["result"]["text"] == text for each, text in texts.items())


def text_of_choice(stream: Listening, index: int) -> str:
    choices = [choice for payload in stream.payloads() for choice in payload["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
