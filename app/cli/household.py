"""What `keepwarm up` is to start: all settings, checked as one before a process exists."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from app.cli import processes
from app.cli.premises import free_port, http_url, refuse_busy_port
from app.cli.render import remark
from app.cli.settings import UpSettings, refuse_open_flower, refuse_shared_budget
from app.settings import ApiSettings
from tasks.errors import InvalidSetting, KeepwarmError
from tasks.settings import StoreSettings, load_settings

CHECK_BOUND_S = 60.0
TAIL_LINES = 25  # of what a process says that does not start


class StartFailed(KeepwarmError):
    """A process does not come up; the end of its log follows."""

    code = "start_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Household:
    """All settings of one `up`, read and checked."""

    store: StoreSettings
    api: ApiSettings
    up: UpSettings

    @property
    def url(self) -> str:
        return http_url(self.api.host, self.api.port)

    @property
    def flower_url(self) -> str | None:
        return http_url(self.api.host, self.up.flower_port) if self.up.flower_port else None


def read_settings() -> Household:
    """Raises InvalidSetting. A port of 0 is replaced by a free one, for the children too."""
    household = Household(
        store=load_settings(StoreSettings), api=load_settings(ApiSettings), up=load_settings(UpSettings)
    )
    refuse_open_flower(household.up, household.api)
    refuse_shared_budget(household.up, os.environ)
    if household.api.port == 0:
        os.environ["KEEPWARM_PORT"] = str(free_port(household.api.host))
        return read_settings()
    if household.api.port == household.up.flower_port:
        raise InvalidSetting("KEEPWARM_FLOWER_PORT", "is the same as KEEPWARM_PORT; change it with --flower-port")
    return household


def check_premises(household: Household) -> tuple[str | None, ...]:
    """The device of each worker to start; None: as its settings say.

    Raises InvalidSetting: a port is taken, or a worker would refuse its settings."""
    host = household.api.host
    refuse_busy_port(host, household.api.port, variable="KEEPWARM_PORT", flag="--port")
    if household.up.flower_port:
        refuse_busy_port(
            host, household.up.flower_port, variable="KEEPWARM_FLOWER_PORT", flag="--flower-port (0 = no Flower)"
        )
    count = household.up.workers
    if count == 0:
        return ()
    devices = _ask_worker()
    if count is not None:
        return (None,) * count
    return devices if len(devices) > 1 else (None,)


def _ask_worker() -> tuple[str, ...]:
    """Whether its settings are right, and on which devices workers should run: both belong to a package that this one
    must not import. Nothing when it takes too long. Raises InvalidSetting, StartFailed."""
    try:
        checked = subprocess.run(
            [*processes.WORKER, "--check"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_BOUND_S,
        )
    except subprocess.TimeoutExpired:  # which proves nothing: the worker says itself what is wrong, in its log
        remark(f"The worker's settings could not be checked within {CHECK_BOUND_S:.0f} s: this machine is very busy.")
        return ()
    if checked.returncode == 0:
        return tuple(checked.stdout.split())
    words = (checked.stderr.strip() or checked.stdout.strip()).splitlines()[-TAIL_LINES:]
    message = "\n".join(words) or f"`python -m workers --check` ended with {checked.returncode}"
    name, separator, problem = message.partition(": ")
    if separator and name.startswith("KEEPWARM_"):
        raise InvalidSetting(name, problem)
    raise StartFailed(f"The worker can't start:\n{message}")
