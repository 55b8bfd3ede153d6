"""One simulated run of one policy, and its figures."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from benchmarks.simulation.cluster import Cluster, Policy
from benchmarks.simulation.parameters import Setting
from benchmarks.simulation.workload import BATCH, Request

WARM_UP_SHARE = 0.1  # of the run; its requests are not counted
PATIENCE_S = 1800.0  # after the last arrival; what has no token by then counts with the time that it waited


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds; `load_share` is the part of the workers' time that goes into loads."""

    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    ttft_mean_s: float
    batch_p95_s: float
    warm_share: float  # of interactive requests: first token within two seconds
    load_share: float
    loads: int
    longest_absence_s: float  # from the first waiting job of a model to its ready runner
    bound_share: float  # the longest wait past its target over the bound that `waiting_bound` gives it
    unfinished: int


def run(setting: Setting, requests: Sequence[Request], policy: Policy) -> Figures:
    cluster = Cluster(setting, list(requests), policy)
    end_ms = requests[-1].arrival_ms
    cluster.run(end_ms + PATIENCE_S * 1000)
    counted = [job for job in cluster.jobs if job.request.arrival_ms >= WARM_UP_SHARE * end_ms]
    now_ms = cluster.now_ms

    def ttft_s(is_batch: bool) -> np.ndarray:
        return np.array(
            [
                ((now_ms if job.first_token_ms is None else job.first_token_ms) - job.request.arrival_ms) / 1000
                for job in counted
                if (job.request.priority >= BATCH) == is_batch
            ]
        )

    times, batch = ttft_s(False), ttft_s(True)
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    return Figures(
        ttft_p50_s=float(p50),
        ttft_p95_s=float(p95),
        ttft_p99_s=float(p99),
        ttft_mean_s=float(times.mean()),
        batch_p95_s=float(np.percentile(batch, 95)) if len(batch) else 0.0,
        warm_share=float((times <= 2.0).mean()),
        load_share=sum(worker.loading_ms for worker in cluster.workers) / (len(cluster.workers) * max(now_ms, 1.0)),
        loads=cluster.loads,
        longest_absence_s=cluster.longest_absence_ms / 1000,
        bound_share=cluster.bound.worst_share,
        unfinished=sum(job.finished_ms is None for job in counted),
    )
