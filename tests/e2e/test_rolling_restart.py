"""Every process is replaced, one after another, while jobs keep coming: none fails, none is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support.stack import Stack, wait_until

pytestmark = pytest.mark.e2e

MODEL = "keepwarm-demo-q8_0"
EXIT_LIMIT_S = 15.0


def test_rolling_restart_under_load_fails_no_job(tmp_path: Path) -> None:
    with Stack(tmp_path, KEEPWARM_DRAIN_S="0.5") as stack:
        stack.start_store()
        workers = [stack.start_worker(), stack.start_worker()]
        controller = stack.start_controller()
        apis = [stack.start_api(), stack.start_api()]
        for api in apis:
            api.wait_ready(workers=2)
        front = [apis[0]]  # the one that clients are sent to: a balancer moves on before a front is replaced
        submitted: list[str] = []
        restarts_are_over = threading.Event()

        def keep_asking() -> None:
            while not restarts_are_over.is_set():
                body = {"model": MODEL, "prompt": "Once", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
                submitted.append(front[0].submit(**body))
                restarts_are_over.wait(0.1)

        load = threading.Thread(target=keep_asking)
        load.start()
        try:
            for worker in workers:
                wait_until(lambda: any(runner["in_flight"] for runner in front[0].runners(MODEL)), "jobs run")
                worker.terminate()
                assert worker.wait(EXIT_LIMIT_S) == 0
                stack.start_worker()
                front[0].wait_ready(workers=2)
            controller.terminate()
            controller.wait(EXIT_LIMIT_S)
            stack.start_controller()
            for old in apis:
                new = stack.start_api()
                new.wait_ready()
                front[0] = new
                old.process.terminate()
                old.process.wait(EXIT_LIMIT_S)
        finally:
            restarts_are_over.set()
            load.join()
        jobs = [front[0].finished(job_id) for job_id in submitted]
        assert len(jobs) > 20
        assert {job["state"] for job in jobs} == {"succeeded"}
        assert len({job["result"]["text"] for job in jobs}) == 1
