"""`keepwarm up`: everything on this machine, in the foreground, until Ctrl-C.

1  Read the settings, look at the ports (`household.py`), take the home: what is wrong stops it before a process exists.
2  The store first; then workers, controller, API and Flower at once; wait until each of them answers.
3  Say where everything is, and stream a first answer.
4  Watch: what dies is started again, and logs are bounded.
5  Ctrl-C or SIGTERM ends all, workers first, store last; a second one ends them at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import assert_never

from rich.markup import escape

from app.cli import processes
from app.cli.answer import stream_answer
from app.cli.client import ApiClient, ClientError
from app.cli.first_steps import choose_model, curl_line, first_question, no_model_text
from app.cli.household import TAIL_LINES, Household, StartFailed, check_premises, read_settings
from app.cli.launcher import LogFolderLauncher
from app.cli.premises import is_listening, reachable_host, sole_tenancy
from app.cli.processes import ProcessSpec
from app.cli.render import complain, forgive_lost_output, out, say, write_text
from app.cli.settings import remark_unknown
from app.cli.supervisor import (
    ChildDied,
    ChildNotStarted,
    ChildStarted,
    ChildStopped,
    Supervisor,
    SupervisorEvent,
)
from tasks.embedded_store import REPAIR_HINT, EmbeddedStore, StoreAnswer
from tasks.log_files import bound_logs

WATCH_POLL_S = 0.2
LOGS_POLL_S = 5.0
START_POLL_S = 0.05
START_ATTEMPTS = 3  # deaths of one process before the whole start is given up
SLOW_START_S = 30.0  # say what we wait for
MODELS_BOUND_S = 15.0  # for the first worker to offer its models


class Signals:
    """Ctrl-C and SIGTERM as a state: asked to stop, asked again."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Event()

    def install(self) -> None:
        """Ctrl-C and a closed terminal change nothing where whoever started us wants so: `nohup`, `&` in a script."""
        signal.signal(signal.SIGTERM, self._on_signal)
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._changed.set()

    def is_stop_asked(self) -> bool:
        return self.count > 0

    def is_impatient(self) -> bool:
        return self.count > 1

    def sleep(self, seconds: float) -> None:
        """Sleep, but not past the first signal."""
        if self.is_stop_asked():
            time.sleep(min(seconds, START_POLL_S))
        else:
            self._changed.wait(seconds)


def up(variables: Mapping[str, str], *, with_first_answer: bool) -> int:
    """Run everything until a signal. `variables` are the flags as KEEPWARM_* variables. Returns the exit code."""
    forgive_lost_output()
    os.environ.update(variables)
    household = read_settings()
    remark_unknown(os.environ)
    with sole_tenancy(household.store.home):
        devices = check_premises(household)
        signals = Signals()
        signals.install()
        return _Run(household, devices, signals).until_stopped(with_first_answer=with_first_answer)


class _Run:
    """One life of `keepwarm up`."""

    def __init__(self, household: Household, devices: tuple[str | None, ...], signals: Signals) -> None:
        self._household = household
        self._devices = devices  # of the workers
        self._signals = signals
        self._launcher = LogFolderLauncher(household.store.home / "logs")
        self._is_up = False
        self._is_stopping = False
        self._supervisor = Supervisor(self._launcher, report=self._report, clock=time.monotonic, sleep=signals.sleep)

    def until_stopped(self, *, with_first_answer: bool) -> int:
        try:
            if self._start():
                self._is_up = True
                self._announce(with_first_answer=with_first_answer)
                self._watch()
        except StartFailed as failure:
            complain(str(failure))
            return 1
        finally:
            self._stop()
        return 0

    # ---- 2: start

    def _start(self) -> bool:
        """False when a signal came first. Raises StartFailed."""
        return self._start_store() and self._start_the_rest()

    def _start_store(self) -> bool:
        settings = self._household.store
        if settings.redis_url is not None:
            say(f"  store       {_without_password(settings.redis_url)}")
            return True
        store = EmbeddedStore.of(settings)
        holder = store.holder()
        if holder is not None and not holder.is_supervised:
            say(f"  store       already running (pid {holder.pid}), and left running at the end")
            return self._await({"store": lambda: store.answer() is StoreAnswer.READY})
        if holder is not None:
            say(f"  store       stopping the one that an earlier run left behind (pid {holder.pid})")
            store.stop(holder)
        self._supervisor.start(processes.store_process())
        return self._await({"store": lambda: store.answer() is StoreAnswer.READY})

    def _start_the_rest(self) -> bool:
        household, client = self._household, ApiClient(self._household.url)
        probes: dict[str, Callable[[], bool]] = {}
        for worker in processes.worker_processes(self._devices, drain_s=household.up.drain_s):
            probes[worker.name] = lambda: _live_workers(client) >= len(self._devices)
            self._supervisor.start(worker)
        self._supervisor.start(processes.controller_process())
        probes["controller"] = lambda: self._supervisor.is_alive("controller")
        self._supervisor.start(processes.api_process())
        probes["api"] = client.is_live
        self._supervisor.start(processes.batcher_process())
        probes["batcher"] = lambda: self._supervisor.is_alive("batcher")
        if household.up.flower_port:
            flower = _flower(household)
            self._supervisor.start(flower)
            host, port = reachable_host(household.api.host), household.up.flower_port
            probes["flower"] = lambda: is_listening(host, port)
        return self._await(probes)

    def _await(self, probes: Mapping[str, Callable[[], bool]]) -> bool:
        """Until each probe has been true once. False when a signal came first. Raises StartFailed."""
        began = time.monotonic()
        waiting = dict(probes)
        has_complained = False
        with out.status("") as spinner:
            while waiting:
                spinner.update(f"waiting for {escape(', '.join(waiting))}")
                if self._signals.is_stop_asked():
                    return False
                self._supervisor.tick()
                for name in list(waiting):
                    self._refuse_hopeless(name)
                    if waiting[name]():
                        del waiting[name]
                        say(f"  {name:<11} ready after {time.monotonic() - began:.1f} s")
                if not has_complained and time.monotonic() - began > SLOW_START_S:
                    has_complained = True
                    logs = ", ".join(str(self._launcher.log_path(name)) for name in waiting)
                    say(f"  still waiting for {', '.join(waiting)}; see {logs}")
                self._signals.sleep(START_POLL_S)
        return True

    def _refuse_hopeless(self, name: str) -> None:
        """The store fails for good at once: its files are damaged, or its folder is taken."""
        attempts = 1 if name == "store" else START_ATTEMPTS
        if self._supervisor.knows(name) and (
            self._supervisor.deaths(name) >= attempts or self._supervisor.has_given_up(name)
        ):
            tail = "\n".join(f"  {line}" for line in self._launcher.log_tail(name, TAIL_LINES))
            hint = f"\n{REPAIR_HINT}." if name == "store" and "append only file" in tail else ""
            raise StartFailed(f"{name} does not start. The end of {self._launcher.log_path(name)}:\n{tail}{hint}")

    # ---- 3: announce

    def _announce(self, *, with_first_answer: bool) -> None:
        household = self._household
        say("")
        say("Keepwarm is up.", style="bold green")
        say(f"  API     {household.url}")
        say(f"  docs    {household.url}/docs")
        if household.flower_url:
            say(f"  Flower  {household.flower_url}")
        say(f"  logs    {household.store.home / 'logs'}")
        threading.Thread(target=self._first_steps, args=(with_first_answer,), name="first-steps", daemon=True).start()

    def _first_steps(self, with_first_answer: bool) -> None:
        """On a thread of its own: the first load may take long, and the watch must not wait for it."""
        try:
            with ApiClient(self._household.url) as client:
                model = self._first_model(client)
                if model is None:
                    say(f"\n{no_model_text()}")
                    return
                say(f"\nTry it:\n  {curl_line(self._household.url, model)}")
                if with_first_answer:
                    say(f'\n{model}, asked "{first_question(model)["messages"][0]["content"]}", says:')
                    answer = stream_answer(client, first_question(model), self._write_unless_stopping)
                    say("" if answer.is_good else f"No answer: {answer.complaint}")
        except ClientError as error:
            if not self._signals.is_stop_asked():
                complain(f"No first answer: {error}")
        finally:
            if not self._signals.is_stop_asked():
                say("\nCtrl-C stops everything.", style="dim")

    def _first_model(self, client: ApiClient) -> str | None:
        deadline = time.monotonic() + (MODELS_BOUND_S if self._devices else 0)
        while True:
            model = choose_model(client.models())
            if model is not None or time.monotonic() > deadline or self._signals.is_stop_asked():
                return model
            self._signals.sleep(WATCH_POLL_S)

    def _write_unless_stopping(self, text: str) -> None:
        if not self._signals.is_stop_asked():
            write_text(text)

    # ---- 4: watch

    def _watch(self) -> None:
        logs_due_at = time.monotonic()
        while not self._signals.is_stop_asked():
            self._supervisor.tick()
            if time.monotonic() >= logs_due_at:
                bound_logs(self._launcher.folder)
                logs_due_at = time.monotonic() + LOGS_POLL_S
            self._signals.sleep(WATCH_POLL_S)

    # ---- 5: stop

    def _stop(self) -> None:
        self._is_stopping = True
        if self._signals.is_stop_asked():
            say(f"\nStopping; running answers get {self._household.up.drain_s:.0f} s. Ctrl-C again stops at once.")
        self._supervisor.stop(is_impatient=self._signals.is_impatient)
        if self._signals.is_stop_asked():
            say("Stopped.")

    def _report(self, event: SupervisorEvent) -> None:
        match event:
            case ChildStarted(name=name, pid=pid, is_restart=is_restart):
                if is_restart:
                    say(f"{name} runs again (pid {pid}).")
            case ChildDied(name=name, exit_code=exit_code, restart_in_s=None):
                complain(f"{name} ended with exit code {exit_code}: a setting is wrong. It is not started again.")
            case ChildDied(name=name, exit_code=exit_code, restart_in_s=delay_s):
                log = self._launcher.log_path(name)
                complain(f"{name} {_fate(exit_code)}; it starts again in {delay_s:.0f} s. Log: {log}")
            case ChildNotStarted(name=name, reason=reason, retry_in_s=delay_s):
                complain(f"{name} can't be started: {reason}. It is tried again in {delay_s:.0f} s.")
            case ChildStopped(name=name, was_killed=was_killed):
                say(f"  {name:<11} {'killed' if was_killed else 'stopped'}")
            case _:
                assert_never(event)


def _flower(household: Household) -> ProcessSpec:
    return processes.flower_process(
        host=household.api.host,
        port=household.up.flower_port,
        basic_auth=household.up.flower_basic_auth,
    )


def _live_workers(client: ApiClient) -> int:
    try:
        return len(client.pool()["workers"])
    except ClientError:
        return 0


def _fate(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{scheme}{separator}…@{host}" if at and credentials else url
