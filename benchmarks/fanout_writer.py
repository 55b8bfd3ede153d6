"""`python -m benchmarks.fanout_writer STREAMS STEP`: makes running jobs and writes their tokens, as workers do.

It prints the ids of the jobs as JSON, and for each line `RATE SECONDS` on its input writes that many events per second
into every stream, `STEP` streams per call of the token writer, evenly spread over time. The text of an event is the
moment before its call, in nanoseconds of the monotonic clock. It answers with what it managed.
"""

from __future__ import annotations

import json
import sys
import time

from tasks.generation import GenerationRequest
from tasks.jobs import JobId, Priority, WorkerId, new_job_id
from tasks.settings import StoreSettings, load_settings
from tasks.store.admission_store import AdmissionStore
from tasks.store.connection import connect
from tasks.store.lease_store import LeaseStore
from tasks.store.token_writer import Chunk, TokenWriter
from tasks.store.verdict import Verdict
from tasks.stream_events import Tokens

MODEL = "fanout"


class Writer:
    def __init__(self, streams: int, step: int) -> None:
        settings = load_settings(StoreSettings)
        client = connect(settings)
        admissions, leases = AdmissionStore(client, settings), LeaseStore(client, settings)
        self._writer = TokenWriter(client)
        self._seq = 0
        self.job_ids = [self._running_job(admissions, leases) for _ in range(streams)]
        self._groups = [self.job_ids[start : start + step] for start in range(0, streams, step)]

    def _running_job(self, admissions: AdmissionStore, leases: LeaseStore) -> JobId:
        request = GenerationRequest(model=MODEL, prompt="x")
        job_id = admissions.admit(
            new_job_id(), request, priority=Priority.DEFAULT, deadline_ms=None, idempotency_key=None
        ).job_id
        attempt = leases.claim(job_id, MODEL, WorkerId("fanout"))
        assert attempt is not None
        return job_id

    def write(self, rate: float, seconds: float) -> dict[str, float]:
        pause_s = 1 / rate / len(self._groups)
        began, cpu = time.perf_counter(), time.process_time()
        due, latest_s = began, 0.0
        for _ in range(round(rate * seconds)):
            self._seq += 1
            for group in self._groups:
                late_s = time.perf_counter() - due
                if late_s < 0:
                    time.sleep(-late_s)
                latest_s = max(latest_s, late_s)
                self._append(group)
                due += pause_s
        took_s = time.perf_counter() - began
        events = round(rate * seconds) * len(self.job_ids)
        return {
            "events": events,
            "events_per_s": events / took_s,
            "latest_s": latest_s,
            "cpu_s": time.process_time() - cpu,
        }

    def _append(self, group: list[JobId]) -> None:
        text = f"@{time.monotonic_ns()}@"
        verdicts = self._writer.append([Chunk(job_id, 1, self._seq, Tokens(text, (1,))) for job_id in group])
        if set(verdicts) != {Verdict.OK}:
            raise RuntimeError(f"the store refused tokens: {verdicts}")


if __name__ == "__main__":
    writer = Writer(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(writer.job_ids), flush=True)
    for line in sys.stdin:
        rate, seconds = map(float, line.split())
        print(json.dumps(writer.write(rate, seconds)), flush=True)
