"""`keepwarm ps`: the warm pool."""

from __future__ import annotations

from app.cli.render import bytes_text, duration_text, print_table, say
from tasks.generation import JsonObject


def show_pool(pool: JsonObject) -> None:
    """Runners, then the workers that hold them, then who waits."""
    workers = pool["workers"]
    if not workers:
        say("No worker is alive.")
    rows = [row for worker in workers for runner in worker["runners"] for row in _runner_rows(worker, runner)]
    if rows:
        print_table(["MODEL", "STATE", "MEMORY", "BUSY", "WORKER", "DEVICE", "PID"], rows)
    elif workers:
        say("No model is warm.")
    for worker in workers:
        for runner in worker["runners"]:
            if runner.get("reduced"):
                say(f"{runner['model']} has {runner['reduced']}.")
    if workers:
        say("")
        print_table(["WORKER", "DEVICE", "MEMORY", "STATE", "PID"], [_worker_row(worker) for worker in workers])
    show_warnings(pool)
    waiting = [queue for queue in pool["queues"] if queue["depth"]]
    if waiting:
        say("")
        print_table(["WAITING FOR", "JOBS", "OLDEST"], [_queue_row(queue) for queue in waiting])


def show_warnings(pool: JsonObject) -> None:
    """What operators should mend, each with the worker that says so."""
    for worker in pool["workers"]:
        for warning in worker.get("warnings", ()):  # a front that is older than this command has none
            say(f"{worker['id']}: {warning}")


def only_host(pool: JsonObject, host: str) -> JsonObject:
    """The pool without the workers of other hosts."""
    return {**pool, "workers": [worker for worker in pool["workers"] if worker["host"] == host]}


def _runner_rows(worker: JsonObject, runner: JsonObject) -> list[list[str]]:
    """The runner's model, then the LoRA adapters that it serves in the same memory and slots."""
    where = [worker["id"], worker["device"], str(runner["pid"])]
    model = [runner["model"], runner["state"], bytes_text(runner["bytes"]), _busy(runner), *where]
    adapters = runner.get("adapters") or {}
    return [
        model,
        *(
            [name, runner["state"], f"in {runner['model']}", f"{count} of {runner['slots']}", *where]
            for name, count in adapters.items()
        ),
    ]


def _busy(runner: JsonObject) -> str:
    """`2 of 8`, or for how long nothing has run."""
    idle_s = runner.get("idle_s")
    if not runner["in_flight"] and idle_s is not None:
        return f"idle {duration_text(idle_s)}"
    return f"{runner['in_flight']} of {runner['slots']}"


def _worker_row(worker: JsonObject) -> list[str]:
    return [
        worker["id"],
        worker["device"],
        f"{bytes_text(worker['used_bytes'])} of {bytes_text(worker['budget_bytes'])}",
        "draining" if worker.get("draining") else "serving",
        str(worker["pid"]),
    ]


def _queue_row(queue: JsonObject) -> list[str]:
    return [queue["model"], str(queue["depth"]), duration_text(queue["oldest_age_s"])]
