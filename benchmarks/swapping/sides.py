"""The servers that are compared: each serves a folder of models with room for some of them, and is started afresh."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import msgspec

from benchmarks.swapping.memory_watch import Account
from benchmarks.swapping.worker_log import untouched_ranges
from tests.support.stack import STOP_LIMIT_S, Api, Stack, free_port
from workers.engine.kv_types import keys_and_values

READY_LIMIT_S = 60.0
Place = tuple[str, ...]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The same for every side."""

    models: Path
    threads: int
    slots: int
    context_length: int  # tokens per slot
    kv_type: str


class Server(msgspec.Struct, frozen=True):
    """A running side: where to ask, and whose children hold the models."""

    url: str
    roots: list[int]
    api: Api | None = None  # of Keepwarm: it can tell what it thinks it uses
    worker_log: Callable[[], str] = lambda: ""  # of Keepwarm

    def ledger(self) -> dict[int, Account]:
        """Of Keepwarm: what its worker accounts for each ready runner, by pid. Raises httpx2.HTTPError."""
        if self.api is None:
            return {}
        untouched = untouched_ranges(self.worker_log().splitlines())
        return {
            runner["pid"]: Account(
                held_bytes=runner["bytes"],
                closed_bytes=runner["closed_slots"] * runner["slot_bytes"],
                untouched=untouched.get(runner["pid"], []),
            )
            for runner in self.api.runners()
            if runner["state"] == "ready"
        }


@contextmanager
def keepwarm(setting: Setting, home: Path, place: Place, budget_bytes: int) -> Iterator[Server]:
    """Every process of ours, with a budget in bytes. `place`: a command that starts them somewhere else."""
    with Stack(
        home,
        model_folder(setting, sorted(setting.models.glob("*.gguf")), home / "models"),
        KEEPWARM_THREADS=str(setting.threads),
        KEEPWARM_SLOTS=str(setting.slots),
        KEEPWARM_MEMORY_BUDGET=str(budget_bytes),
        KEEPWARM_PARKED_MEMORY="0",  # no prompt comes twice: what is parked would only take memory
    ) as stack:
        stack.place = place
        stack.start_store()
        worker = stack.start_worker()
        stack.start_controller()
        api = stack.start_api()
        api.wait_ready()
        yield Server(api.url, [worker.pid], api, lambda: stack.log("worker"))


def model_folder(setting: Setting, files: Sequence[Path], folder: Path) -> Path:
    """The same files under a models.yaml of the benchmark's."""
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file)
    entries = [f"  {file.stem.lower()}: {{context_length: {setting.context_length}}}\n" for file in files]
    (folder / "models.yaml").write_text("models:\n" + "".join(entries))
    return folder


@contextmanager
def llama_router(setting: Setting, home: Path, place: Place, binary: Path, max_models: int) -> Iterator[Server]:
    """llama-server in router mode: it loads on request and evicts the least recently used of `max_models`.

    With one model it does what a desktop server does. Cells of the KV cache per slot, their type, threads and slots are
    ours. On CPUs with AMX give it `--no-repack`, if our runners had to do without (`workers.engine.probe`)."""
    port = free_port()
    keys, values = keys_and_values(setting.kv_type)
    command = [
        *(*place, str(binary), "--models-dir", str(setting.models), "--models-max", str(max_models)),
        *("--host", "127.0.0.1", "--port", str(port), "--no-webui"),
        *("--threads", str(setting.threads), "--parallel", str(setting.slots)),
        *("--ctx-size", str(setting.slots * setting.context_length)),
        *("--cache-ram", "0"),  # like our parked memory
        *("--cache-type-k", keys, "--cache-type-v", values),
    ]
    home.mkdir(parents=True, exist_ok=True)
    with (home / "llama-server.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_healthy(url, process)
        yield Server(url, [process.pid])
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + READY_LIMIT_S
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"llama-server has ended with {process.returncode}; see its log")
        try:
            if httpx2.get(f"{url}/health").is_success:
                return
        except httpx2.TransportError:
            pass
        if time.monotonic() > give_up_at:
            raise TimeoutError("llama-server does not answer")
        time.sleep(0.1)
