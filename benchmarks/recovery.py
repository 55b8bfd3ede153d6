"""Recovery: time from kill -9 of a runner or a worker to the next token, beside plain Celery with late ack.

A trial starts a job, waits for its first tokens, kills a process, and waits for the next token that was not under way
already. `lost` are jobs without a further token within the bound (an
hour's visibility timeout brings them back after an hour), `repeated` are tokens that a reader saw twice.

    keepwarm  default settings, llama.cpp and the demo model, a supervisor that starts a dead worker again after 1 s
    celery    acks_late, requeue on a lost pool process; visibility timeout by default (1 h), and a short one

On Celery's side "runner" is the pool process that runs the task, "worker" the main process together with its pool.
A goal is held against Keepwarm's 95th percentile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import msgspec
import redis
from rich.console import Console
from rich.progress import TimeElapsedColumn
from rich.table import Table

from benchmarks import machine
from benchmarks.plain_celery import TOKEN_S
from benchmarks.spread import percentile
from benchmarks.step_bar import Advance, step_bar
from tests.chaos import cluster as chaos_cluster
from tests.chaos.cluster import Cluster
from tests.chaos.references import generated_references
from tests.support.stack import Api, Stack, wait_until

MODEL = "keepwarm-demo-q8_0"
PROMPT = "Once upon a time"
NUM_TOKENS = 700
TOKENS_BEFORE = 20
RESTART_S = 1.0  # what `keepwarm up` waits before it starts a dead process again
BOUND_S = 60.0
PEER_TOKENS = 200
RESTORE_S = 100.0  # kombu looks for overdue messages when a worker starts, and then every 100 s
PEERS_AT_ONCE = {"runner": 4, "worker": 20}  # who waits for minutes disturbs nobody
GOALS_S = {"runner": 2.0, "worker": 8.0}


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One kill. `recovery_s` None: no further token within the bound."""

    recovery_s: float | None
    is_lost: bool
    repeated: int  # tokens that the reader saw twice


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """All trials of one side and one kind of kill."""

    side: str
    killed: str
    bound_s: float
    trials: list[Trial]

    @property
    def recovered_s(self) -> list[float]:
        return [trial.recovery_s for trial in self.trials if trial.recovery_s is not None]

    def worded(self, percent: float) -> str:
        """A percentile over all trials; those that did not recover count as beyond the bound."""
        times = [self.bound_s if each.recovery_s is None else each.recovery_s for each in self.trials]
        value = percentile(times, percent)
        return f"> {self.bound_s:.0f}" if value >= self.bound_s else f"{value:.2f}"


# ---- ours


def keepwarm_series(home: Path, killed: str, trials: int, workers: int, advance: Advance) -> Series:
    chaos_cluster.RESTART_PAUSE_S = RESTART_S
    cluster = Cluster(home, random.Random(0), workers=workers, controllers=1, apis=1, max_skew_ms=0, settings={})
    side = f"keepwarm, {workers} worker{'s' if workers > 1 else ''}"
    with cluster:
        api = Api(cluster.of("api")[0].process, int(cluster.urls[0].rsplit(":", 1)[1]))
        api.wait_ready(workers)
        references = generated_references(api.url, cluster.store_settings, MODEL, [PROMPT], [NUM_TOKENS])
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0}
        text = references(body).text
        done: list[Trial] = []
        while len(done) < trials:
            wait_until(lambda: len(api.pool()["workers"]) >= workers, "all workers are there")
            trial = _keepwarm_trial(api, cluster, killed, body, text)
            if trial is not None:
                done.append(trial)
                advance(f"{side}: {killed}")
    return Series(side=side, killed=killed, bound_s=BOUND_S, trials=done)


def _keepwarm_trial(api: Api, cluster: Cluster, killed: str, body: dict[str, object], text: str) -> Trial | None:
    """None when the job was over before the kill."""
    job_id = api.submit(**body)
    arrivals: list[float] = []
    numbers: list[int] = []
    killed_s = 0.0
    with api.events(job_id) as events:
        for seq, _, _ in events:
            arrivals.append(time.monotonic())
            numbers.append(seq)
            if len(numbers) == TOKENS_BEFORE:
                pid = _victim(api, killed)
                killed_s = time.monotonic()
                os.kill(pid, signal.SIGKILL)
    job = api.finished(job_id, BOUND_S)
    if job["attempt"] == 1:
        return None
    return Trial(
        recovery_s=after_the_pause(arrivals, killed_s),
        is_lost=job["state"] != "succeeded" or job["result"]["text"] != text,
        repeated=len(numbers) - len(set(numbers)),
    )


def _victim(api: Api, killed: str) -> int:
    """Of the worker that runs the job; the only one that has the model."""
    for worker in api.pool()["workers"]:
        for runner in worker["runners"]:
            if runner["model"] == MODEL and runner["state"] == "ready":
                return int(runner["pid"] if killed == "runner" else worker["pid"])
    raise AssertionError("nobody has the model")


def after_the_pause(arrivals: list[float], killed_s: float) -> float:
    """Seconds from the kill to the first token after the longest pause: what came before it was under way already."""
    later = [killed_s, *(arrival for arrival in arrivals if arrival > killed_s)]
    return max(pairwise(later), key=lambda pair: pair[1] - pair[0])[1] - killed_s


# ---- plain Celery


def celery_series(
    store_path: Path, killed: str, trials: int, visibility_s: int | None, bound_s: float, advance: Advance
) -> Series:
    """Each trial has a queue and a worker of its own; some run at once, so that an hour's patience can be bounded."""
    side = f"celery, visibility {'1 h' if visibility_s is None else f'{visibility_s} s'}"

    def one(number: int) -> Trial:
        trial = _celery_trial(store_path, killed, f"{killed}-{visibility_s}-{number}", visibility_s, bound_s)
        advance(f"{side}: {killed}")
        return trial

    with ThreadPoolExecutor(PEERS_AT_ONCE[killed]) as pool:
        return Series(side=side, killed=killed, bound_s=bound_s, trials=list(pool.map(one, range(trials))))


def _celery_trial(store_path: Path, killed: str, name: str, visibility_s: int | None, bound_s: float) -> Trial:
    url = f"redis+socket://{store_path}?virtual_host={abs(hash(name)) % 15 + 1}"
    client = redis.Redis(unix_socket_path=str(store_path))
    env = {**os.environ, "PEER_BROKER": url, "PEER_STORE": f"unix://{store_path}"}
    if visibility_s is not None:
        env["PEER_VISIBILITY_S"] = str(visibility_s)
    worker = _start_peer(env, name)
    try:
        _send_peer(env, name)
        entries = _read_peer(client, name, lambda seen: len(seen) > TOKENS_BEFORE, BOUND_S)
        pid = int(entries[0][1][b"pid"])
        killed_s = time.monotonic()
        if killed == "runner":
            os.kill(pid, signal.SIGKILL)
        else:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            time.sleep(RESTART_S)
            worker = _start_peer(env, name)
        before = len(_read_peer(client, name, bool, 0.0))
        entries = _read_peer(client, name, lambda seen: len(seen) > before + 1, bound_s)
        recovery_s = time.monotonic() - killed_s if len(entries) > before + 1 else None
        if recovery_s is not None:
            entries = _read_peer(client, name, lambda seen: b"end" in seen[-1][1], PEER_TOKENS * TOKEN_S * 3 + bound_s)
        tokens = [fields[b"token"] for _, fields in entries if b"token" in fields]
        return Trial(
            recovery_s=recovery_s,
            is_lost=b"end" not in entries[-1][1],
            repeated=len(tokens) - len(set(tokens)),
        )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        client.close()


def _start_peer(env: dict[str, str], queue: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.plain_celery", "worker", "-Q", queue, "-c", "1"]
    return subprocess.Popen(
        [*command, "--without-gossip", "--without-mingle", "-n", f"{queue}@peer"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _send_peer(env: dict[str, str], name: str) -> None:
    code = (
        f"from benchmarks.plain_celery import generate as g; g.apply_async(({name!r}, {PEER_TOKENS}), queue={name!r})"
    )
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


Entries = list[tuple[bytes, dict[bytes, bytes]]]


def _read_peer(client: redis.Redis, name: str, is_enough: Callable[[Entries], bool], limit_s: float) -> Entries:
    give_up_at = time.monotonic() + limit_s
    while True:
        entries: Entries = client.xrange(f"peer:{name}")  # type: ignore[assignment]
        if (entries and is_enough(entries)) or time.monotonic() > give_up_at:
            return entries
        time.sleep(0.01)


# ---- report


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    where = machine.description()
    folder = Path(tempfile.mkdtemp(prefix="keepwarm-recovery-"))
    peers: list[tuple[str, int | None, float]] = [
        (killed, visibility_s, options.peer_bound_s if visibility_s is None else RESTORE_S + 3.0 * visibility_s)
        for killed in GOALS_S
        for visibility_s in (options.visibility_s, None)
    ]
    series: list[Series] = []
    with step_bar(
        console, 3 * options.trials + len(peers) * options.peer_trials, width=32, clock=TimeElapsedColumn()
    ) as advance:
        for killed, workers in (("runner", 1), ("worker", 1), ("worker", 2)):
            home = folder / f"{killed}-{workers}"
            series.append(keepwarm_series(home, killed, options.trials, workers, advance))
        with Stack(folder / "peer") as stack:
            stack.start_store()
            path = folder / "peer" / "store" / "valkey.sock"
            wait_until(path.exists, "the peer's store is there")
            for killed, visibility_s, bound_s in peers:
                if options.peer_trials:
                    series.append(celery_series(path, killed, options.peer_trials, visibility_s, bound_s, advance))
    console.print(_table(series))
    path = machine.result_path("recovery")
    report = {
        "command": f"python -m benchmarks recovery {' '.join(arguments)}".strip(),
        "machine": where,
        "settings": {"restart_s": RESTART_S, "model": MODEL, "num_tokens": NUM_TOKENS, "peer_token_s": TOKEN_S},
        "goals_p95_s": GOALS_S,
        "series": series,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    console.print(f"kept in {path}; logs in {folder}")
    return 0 if _goals_are_met(series) else 1


def _goals_are_met(series: list[Series]) -> bool:
    ours = [each for each in series if each.side.startswith("keepwarm")]
    are_fast = all(percentile(each.recovered_s, 95) <= GOALS_S[each.killed] for each in ours)
    return are_fast and not any(trial.is_lost or trial.repeated for each in ours for trial in each.trials)


def _table(series: list[Series]) -> Table:
    table = Table(title="Seconds from kill -9 to the next token", caption="goals: p95 ≤ 2 s (runner), ≤ 8 s (worker)")
    for column in ("", "killed", "trials", "median", "p95", "worst", "lost", "repeated"):
        table.add_column(column, justify="left" if column in {"", "killed"} else "right", no_wrap=True)
    for each in series:
        lost, repeated = (sum(values) for values in zip(*((t.is_lost, t.repeated) for t in each.trials), strict=True))
        figures = (each.worded(percent) for percent in (50, 95, 100))
        table.add_row(each.side, each.killed, str(len(each.trials)), *figures, str(lost), str(repeated))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks recovery", description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20, help="kills of each kind")
    parser.add_argument("--peer-trials", type=int, default=20, help="kills of each kind on Celery's side; 0: none")
    parser.add_argument("--visibility-s", type=int, default=10, help="the short visibility timeout")
    parser.add_argument("--peer-bound-s", type=float, default=40.0, help="patience with the default of an hour")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
