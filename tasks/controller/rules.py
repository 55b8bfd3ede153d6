"""The constants of the policy, each with its unit and its reason. Pure.

They were tuned on seeds 0 to 2 of the synthetic workloads of `benchmarks simulate`, which reports on other seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.jobs import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All times in ms of the store's clock."""

    # Class targets T: how long a job of this priority may wait before it counts as late. Somebody waits for a default
    # job too, since most clients never set a priority.
    interactive_target_ms: int = 10_000
    batch_target_ms: int = 60_000

    rate_window_ms: int = 120_000  # τ of the moving average of a model's arrivals
    keep_horizon_ms: int = 45_000  # H: below about 40 s a pool thrashes, above about 80 s it hoards
    batch_weight: float = 0.2  # of a job in the batch class: it can wait for about as much longer
    replica_share: float = 0.1  # of a model's keep-value, when another replica of it stays

    # Busy victims (rule 5c): a candidate whose slack is below the gate may displace models that have slack to spare,
    # have been ready for the residency floor, and whose worker has load time left in its bucket.
    slack_gate_ms: int = 9_000
    slack_margin_ms: int = 3_000
    slack_margin_per_load: float = 0.3
    load_share: float = 0.1  # φ: refill of the bucket, load time per time; also sets residency floor and frame
    bucket_cap_ms: int = 20_000  # a load that takes longer needs a full bucket and leaves a debt

    # Drain of a busy victim: work may end for some seconds, then it is parked (workers.warm_pool.PoolLimits).
    drain_ms: int = 2_000

    # A job that waits no more shows in the heartbeat of the worker that took it after a moment; until then its runner
    # is not idle, whatever it reports.
    report_ms: int = 3_000  # heartbeats come every second, on a machine that has time for them
    tick_ms: int = 500  # how far apart two looks at the arrivals are at most, while somebody leads

    # Replicas (rule 6).
    replica_wait_ms: int = 2_000  # the queue must outweigh the load by this much
    replica_gain: float = 1.3  # waiting saved per waiting caused
    replica_idle_ms: int = 90_000  # an extra replica that was idle for so long leaves

    # A load that failed is tried on another worker at once, then after pauses that double.
    first_pause_ms: int = 1_000
    last_pause_ms: int = 60_000
    max_failures: int = 3  # in a row, on whatever workers, before the waiting jobs are told

    search_width: int = 32  # workers that are looked at closely for a candidate; the most promising ones
    max_prefetches: int = 3  # per host

    def target_ms(self, priority: int) -> int:
        return self.batch_target_ms if priority >= Priority.BATCH else self.interactive_target_ms

    def weight(self, priority: int) -> float:
        """Of a job of this priority, where waiting is weighed."""
        return self.batch_weight if priority >= Priority.BATCH else 1.0

    def residency_floor_ms(self, load_ms: int) -> int:
        """½(1/φ − 1)·L: a displacement within slack and bucket may come after half of a fair frame."""
        return round(self.frame_ms(load_ms) / 2)

    def frame_ms(self, load_ms: int) -> int:
        """R = (1/φ − 1)·L: with frames of this length forced rotation spends at most the share φ of time on loads.

        The variable frame of biased MaxWeight: what costs L to bring in stays for a multiple of L."""
        return round((1 / self.load_share - 1) * load_ms)
