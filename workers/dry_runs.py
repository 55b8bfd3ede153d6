"""Dry runs of llama.cpp in throwaway processes, and their answers, kept over restarts.

An answer holds for one file, one configuration, one version of llama.cpp and of this program, and one device: all of it
is in the key. So nothing ever has to be thrown away but what is too much.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

import msgspec
import structlog

from workers.engine.base import EngineConfig
from workers.engine.dry_run import DryRun
from workers.idle_time import LOOK_S, give_way
from workers.shared_file import replace_file, sole_writer

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "workers.engine.dry_run")
TIME_LIMIT_S = 60.0
IDLE_TIME_LIMIT_S = 600.0  # of one that gives way to everybody
MAX_ANSWERS = 2000  # oldest go first


class DryRunStopped(Exception):
    """It gave way to others, who left it no time, or somebody waits for a dry run by now."""


def dry_run(
    config: EngineConfig, *, gives_way: bool = False, is_hurried: Callable[[], bool] = lambda: False
) -> DryRun | None:
    """None when it fails: the load itself will say what is wrong with the file.

    One that gives way to all others raises DryRunStopped as soon as `is_hurried`: it might take minutes more."""
    try:
        with tempfile.TemporaryFile() as question:
            question.write(msgspec.json.encode(config, enc_hook=str))
            question.seek(0)
            told = _told(question, is_hurried if gives_way else None)
        return msgspec.json.decode(told, type=DryRun)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        log.info("dry_run_failed", model=config.model_path.name, error=str(error))
        return None


def _told(question: IO[bytes], is_hurried: Callable[[], bool] | None) -> bytes:
    """The answer of a process. It gives way if it may have to hurry."""
    with subprocess.Popen(
        COMMAND,
        stdin=question,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    ) as process:
        try:
            if is_hurried is None:
                told, _ = process.communicate(timeout=TIME_LIMIT_S)
            else:
                give_way(process.pid)
                told = _told_in_idle_time(process, is_hurried)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return told


def _told_in_idle_time(process: subprocess.Popen[bytes], is_hurried: Callable[[], bool]) -> bytes:
    give_up_at_s = time.monotonic() + IDLE_TIME_LIMIT_S
    while not is_hurried() and time.monotonic() < give_up_at_s:
        with contextlib.suppress(subprocess.TimeoutExpired):
            told, _ = process.communicate(timeout=LOOK_S)
            return told
    raise DryRunStopped


def answer_key(identity: str, config: EngineConfig, device: str) -> str:
    """Everything that an answer depends on. `identity` is that of the files."""
    alone = dataclasses.replace(config, turns_path=None)  # who shares the cores changes no layout
    versions = [_version(package) for package in ("keepwarm", "llama-cpp-python")]
    asked = msgspec.json.encode([versions, device, identity, alone], enc_hook=str)
    return hashlib.blake2b(asked, digest_size=16).hexdigest()


class KnownAnswers:
    """Read by any thread, written by one. Workers of one home share the file, and learn at their start and at each
    writing what others found. A file that can't be read or written costs dry runs, never the worker."""

    def __init__(self, path: Path | None) -> None:
        """Without a path they last as long as the process."""
        self._path = path
        self._lock = threading.Lock()
        self._answers = _read(path) if path is not None else {}

    def get(self, key: str) -> DryRun | None:
        with self._lock:
            return self._answers.get(key)

    def put(self, key: str, answer: DryRun) -> None:
        self._take({key: answer})
        if self._path is not None:
            self._write(self._path, {key: answer})

    def _take(self, answers: dict[str, DryRun]) -> None:
        with self._lock:
            for key, answer in answers.items():
                self._answers.pop(key, None)
                self._answers[key] = answer  # at the end: the newest
            while len(self._answers) > MAX_ANSWERS:
                self._answers.pop(next(iter(self._answers)))

    def _write(self, path: Path, newest: dict[str, DryRun]) -> None:
        try:
            with sole_writer(path):
                self._take(_read(path))
                self._take(newest)
                replace_file(path, msgspec.json.format(msgspec.json.encode(self._answers)))
        except OSError as error:
            log.warning("dry_runs_not_saved", path=str(path), error=str(error), now="the next dry run writes them all")


@functools.cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(path: Path) -> dict[str, DryRun]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, DryRun])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("dry_runs_ignored", path=str(path), error=str(error))
        return {}
