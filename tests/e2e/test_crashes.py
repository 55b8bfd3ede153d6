"""A job outlives the processes that work on it, and its text goes on at the next token."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from tests.support.stack import Api, Stack, kill, wait_until

pytestmark = pytest.mark.e2e

MODEL = "keepwarm-demo-q8_0"
LENGTH = 1500  # long enough that the work outlasts what happens to it
GREEDY = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": LENGTH, "ignore_eos": True, "temperature": 0}
SAMPLED = {**GREEDY, "temperature": 1.0, "seed": 11}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("home"), KEEPWARM_LEASE_S="2", KEEPWARM_DRAIN_S="0.1") as stack:
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


def test_killed_store_costs_a_pause(stack: Stack, api: Api, references: dict[str, str]) -> None:
    job_id = api.submit(**GREEDY)
    with api.events(job_id) as events:
        first = [next(events) for _ in range(20)]
    store = next(each for each in stack.processes if "tasks.embedded_store" in each.args)  # type: ignore[operator]
    kill(store.pid)
    store.wait()
    stack.start_store()
    api.wait_ready()
    with api.events(job_id, after=first[-1][0]) as events:
        everything = [*first, *events]
    assert [seq for seq, _, _ in everything] == list(range(1, len(everything) + 1))
    assert api.finished(job_id)["result"]["text"] == references["greedy"]


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
