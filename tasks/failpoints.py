"""Named moments of the protocol at which a test can kill the process; elsewhere a no-op.

    KEEPWARM_FAILPOINTS="after_claim=kill:1,before_finish=kill:2"

kills the process that gets there, the first N times in all: marker files in the home folder count over restarts.
A process that finds the variable set to something else refuses to start.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

from tasks.errors import InvalidSetting

VARIABLE = "KEEPWARM_FAILPOINTS"

# name → (process, moment)
FAILPOINTS: Mapping[str, tuple[str, str]] = {
    "after_admit": ("api", "the job is on record and its wake-up sent, the client has no answer yet"),
    "after_pop": ("worker", "the wake-up is popped, no slot is taken"),
    "after_slot": ("worker", "a slot is taken, the job is not claimed"),
    "after_claim": ("worker", "the job is claimed, its runner knows nothing of it"),
    "before_first_append": ("worker", "the first tokens are made and not published"),
    "after_first_append": ("worker", "the first tokens are published"),
    "between_appends": ("worker", "in the middle of the text, a chunk is made and not published"),
    "before_renew": ("worker", "a lease is about to be renewed"),
    "before_finish": ("worker", "the sequence has ended, its last tokens and its end are not written"),
    "after_finish": ("worker", "the job has ended, its task has not returned"),
    "before_release": ("worker", "the attempt broke or was parked, the job is still running"),
    "after_release": ("worker", "the job is queued again, its wake-up is not sent"),
    "after_rescue": ("controller", "a job with an expired lease is queued again, its wake-up is not sent"),
    "after_resend_mark": ("controller", "a lost wake-up is noted as sent again, and is not sent"),
    "before_place": ("controller", "a placement is planned and not written"),
    "after_place": ("controller", "a placement is written, what else the tick does is not done"),
    "batch_before_flush": ("batcher", "lines are answered, their results are only in memory"),
    "batch_files_written": ("batcher", "the batch's files are there, the batch has not ended"),
    "webhook_posted": ("batcher", "the receiver has the webhook, the outbox does not know"),
    "before_step": ("runner", "the engine is about to decode"),
    "after_step": ("runner", "the engine has made tokens, the worker has not got them"),
}


def parse(value: str) -> dict[str, int]:
    """How many times each named point shall kill. Raises InvalidSetting that lists the known points."""
    wanted: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in value.split(","))):
        match = re.fullmatch(r"(\w+)=kill:([1-9]\d{0,3})", item)
        if match is None:
            raise InvalidSetting(VARIABLE, f"write POINT=kill:TIMES,… ({item!r} is something else)")
        if match[1] not in FAILPOINTS:
            raise InvalidSetting(VARIABLE, f"there is no point {match[1]!r}; known are {', '.join(FAILPOINTS)}")
        wanted[match[1]] = int(match[2])
    return wanted


_armed = parse(os.environ.get(VARIABLE, ""))


def is_armed() -> bool:
    """Whether any point is to be watched at all."""
    return bool(_armed)


def failpoint(name: str) -> None:
    """The process is at this moment."""
    if _armed and name in _armed:
        _kill(name, _armed[name])


def marker(home: Path, name: str, time: int) -> Path:
    """The file that says that the point has killed for the `time`-th time, counted from 1."""
    return home / "failpoints" / f"{name}.{time}"


def _kill(name: str, times: int) -> None:
    from tasks.settings import StoreSettings, load_settings  # a runner needs no settings but these, and only now

    home = load_settings(StoreSettings).home
    for time in range(1, times + 1):
        path = marker(home, name, time)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
