"""Processes have names of their own, whatever their host and pid."""

from __future__ import annotations

import os
import socket

from tasks.process_name import process_name


def test_processes_of_one_host_name_and_pid_have_different_names() -> None:
    here, there = process_name.__wrapped__(), process_name.__wrapped__()  # as two containers would draw it
    assert here != there
    assert all(name.startswith(f"{socket.gethostname()}-{os.getpid()}-") for name in (here, there))


def test_process_keeps_its_name() -> None:
    assert process_name() == process_name()
