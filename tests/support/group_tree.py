"""Control groups in a folder: what /proc and the mounted hierarchies would say of a process."""

from __future__ import annotations

from pathlib import Path


class GroupTree:
    """`group_v1` and `group_v2` make one level below the mount point, `own_*` say where the process is."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.cpu_v1, self.memory_v1, self.v2 = root / "cpu", root / "memory", root / "unified"  # where they are mounted
        (self.proc / "self").mkdir(parents=True)

    def own_v2(self, path: str, *, mounted: str = "/") -> None:
        self._own(f"0::{path}", f"31 23 0:28 {mounted} {self.v2} rw,relatime - cgroup2 cgroup2 rw")

    def own_v1(self, path: str, *, mounted: str = "/") -> None:
        for number, name in enumerate(("cpu", "memory"), start=1):
            point = self.memory_v1 if name == "memory" else self.cpu_v1
            self._own(f"{number}:{name}:{path}", f"3{number} 31 0:32 {mounted} {point} rw - cgroup cgroup rw,{name}")

    def group_v2(
        self,
        path: str,
        *,
        limit: int | None = None,
        high: int | None = None,
        used: int = 0,
        inactive: int = 0,
        active: int = 0,
    ) -> None:
        self.write(self.v2, path, "memory.max", "max" if limit is None else str(limit))
        self.write(self.v2, path, "memory.high", "max" if high is None else str(high))
        self.write(self.v2, path, "memory.current", str(used))
        self.write(self.v2, path, "memory.stat", f"anon 5\ninactive_file {inactive}\nactive_file {active}")

    def group_v1(
        self, path: str, *, limit: int = 9223372036854771712, used: int = 0, inactive: int = 0, active: int = 0
    ) -> None:
        self.write(self.memory_v1, path, "memory.limit_in_bytes", str(limit))
        self.write(self.memory_v1, path, "memory.usage_in_bytes", str(used))
        stat = f"inactive_file 3\nactive_file 4\ntotal_inactive_file {inactive}\ntotal_active_file {active}"
        self.write(self.memory_v1, path, "memory.stat", stat)

    def write(self, mount: Path, path: str, name: str, content: str) -> None:
        file = mount / path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")

    def _own(self, group: str, mount: str) -> None:
        for name, line in (("cgroup", group), ("mountinfo", mount)):
            with (self.proc / "self" / name).open("a") as file:
                file.write(f"{line}\n")
