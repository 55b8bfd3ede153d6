"""Hosts of a small network on one machine: network namespaces, joined by cables that can be cut. Linux, as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def why_not() -> str | None:
    """What keeps this machine from having such hosts; None when nothing does."""
    if sys.platform != "linux" or shutil.which("ip") is None or shutil.which("unshare") is None:
        return "needs Linux with iproute2 and util-linux"
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    trial = f"kw{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", trial], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no network namespaces here: {made.stderr.strip()}"
    _ip("netns", "delete", trial)
    return None


class Network:
    """A host `hub` with a cable to this machine and to every host that joins."""

    def __init__(self) -> None:
        self._tag = f"kw{os.getpid() % 100_000}"
        self._cables: dict[str, int] = {}  # host → number of its /30 network

    def enter(self, host: str) -> tuple[str, ...]:
        """The command prefix that starts a program on a host, under its name."""
        script = f'hostname {host}; exec "$@"'
        return ("ip", "netns", "exec", self._space(host), "unshare", "--uts", "sh", "-c", script, "sh")

    def hub_address(self, host: str) -> str:
        """How a host (or `here`, this machine) reaches the hub."""
        return f"10.213.{self._cables[host]}.1"

    def join(self, host: str) -> None:
        self._add_host(host)
        self._lay_cable(host, ("ip", "-n", self._space(host)))

    def cut(self, host: str) -> None:
        """Nothing gets through from now on, and nobody is told."""
        _ip("-n", self._space("hub"), "link", "set", self._plug(host, "h"), "down")

    def mend(self, host: str) -> None:
        _ip("-n", self._space("hub"), "link", "set", self._plug(host, "h"), "up")

    def _add_host(self, host: str) -> None:
        _ip("netns", "add", self._space(host))
        _ip("-n", self._space(host), "link", "set", "lo", "up")

    def _lay_cable(self, host: str, there: tuple[str, ...]) -> None:
        number = self._cables[host] = len(self._cables) + 1
        hub, near, far = self._space("hub"), self._plug(host, "h"), self._plug(host, "x")
        far_space = ["netns", there[2]] if len(there) > 1 else []
        _ip("-n", hub, "link", "add", near, "type", "veth", "peer", "name", far)
        if far_space:
            _ip("-n", hub, "link", "set", far, *far_space)
        else:
            _ip("-n", hub, "link", "set", far, "netns", str(os.getpid()))
        _ip("-n", hub, "address", "add", f"10.213.{number}.1/30", "dev", near)
        _ip("-n", hub, "link", "set", near, "up")
        subprocess.run([*there, "address", "add", f"10.213.{number}.2/30", "dev", far], check=True)
        subprocess.run([*there, "link", "set", far, "up"], check=True)

    def _space(self, host: str) -> str:
        return f"{self._tag}{host}"

    def _plug(self, host: str, end: str) -> str:
        return f"{self._tag}{host}{end}"[:15]  # the kernel's limit of an interface's name

    def _remove(self) -> None:
        for host in ("hub", *(host for host in self._cables if host != "here")):
            subprocess.run(["ip", "netns", "delete", self._space(host)], capture_output=True, check=False)


@contextmanager
def network() -> Iterator[Network]:
    """The hub and its cable to this machine; all of it is gone at the end."""
    net = Network()
    try:
        net._add_host("hub")
        net._lay_cable("here", ("ip",))
        yield net
    finally:
        net._remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
