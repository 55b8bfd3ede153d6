"""One runner with two slots over a scripted process, and everything around it."""

from __future__ import annotations

from tasks.jobs import Priority
from tests.support.scripted_runner import Changes, ManualClock, MemorySink, Running, ScriptedLink, make_attempt
from workers.runner import Runner, RunnerLimits, RunnerSlot


class RunnerBench:
    def __init__(self) -> None:
        self.oom_kills = 3  # the kernel's counter, as it stood at the start
        self.link = ScriptedLink()
        self.sink = MemorySink()
        self.clock = ManualClock()
        self.changes = Changes()
        self.runner = Runner(
            model="m",
            link=self.link,
            slots=2,
            sink=self.sink,
            limits=RunnerLimits(stall_s=30, load_stall_s=60, publish_s=5),
            clock=self.clock.clock(),
            on_change=self.changes,
            oom_kills=lambda: self.oom_kills,
        )
        self.runner.start()

    def open(self) -> None:
        self.link.load()
        self.runner.wait_loaded()
        assert self.runner.open()

    def slot(self) -> RunnerSlot:
        slot = self.runner.take_slot(Priority.DEFAULT)
        assert slot is not None
        return slot

    def run(self, job_id: str = "job_1", **fields: object) -> tuple[Running, int]:
        """An attempt that has reached the runner, and its key."""
        before = len([message for message in self.link.sent if type(message).__name__ == "Generate"])
        running = Running(self.slot(), make_attempt(job_id, **fields), self.sink)  # type: ignore[arg-type]
        return running, self.link.await_generate(before + 1).key

    def close(self) -> None:
        self.link.exit(0)
        assert self.runner.wait_gone(10)
