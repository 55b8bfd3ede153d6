"""How the fake engine acts. Apart from `fake`, so that a worker can configure it without importing numpy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeBehaviour:
    """Pace and mishaps of a fake engine; the texts are searched in the rendered prompt."""

    load_s: float = 0.0
    step_ms: float = 0.0  # per decode
    prefill_us_per_token: float = 0.0
    weight_bytes: int = 1_000_000
    mean_tokens: int = 64  # of an answer without max_tokens
    load_error: str = ""  # not empty: loading fails with this reason
    crash_on: str = ""  # kills the process with SIGKILL when such a prompt is decoded
    stall_on: str = ""  # hangs when such a prompt is decoded
    fail_on: str = ""  # reports Fatal when such a prompt is decoded
