"""What a client is told about the limit that its request met, in OpenAI's header names. Pure.

The limit is that of waiting jobs (`KEEPWARM_MAX_QUEUE_PER_MODEL`, or `…_TOTAL` when that one is nearer). There is none
on tokens or on requests per minute, so no header speaks of these.
"""

from __future__ import annotations

from tasks.forecast import QueueRoom

SDK_PATIENCE_S = 60  # official SDKs take a longer retry-after for none, and come back within seconds


def rate_limit_headers(room: QueueRoom | None) -> dict[str, str]:
    if room is None:
        return {}
    headers = {
        "x-ratelimit-limit-requests": str(room.limit),
        "x-ratelimit-remaining-requests": str(room.remaining),
    }
    if room.empty_in_s is not None:
        headers["x-ratelimit-reset-requests"] = duration(room.empty_in_s)
    return headers


def retry_headers(status: int, retry_after_s: int | None) -> dict[str, str]:
    """For a request that began no job. Official SDKs try 408, 409, 429 and 5xx again unless told otherwise: a conflict
    stays one, and what lasts for longer than they wait is not worth their two tries."""
    if retry_after_s is None:
        return {"x-should-retry": "false"} if status == 409 else {}
    return {
        "retry-after": str(retry_after_s),
        "retry-after-ms": str(retry_after_s * 1000),
        "x-should-retry": "true" if retry_after_s <= SDK_PATIENCE_S else "false",
    }


def duration(seconds: float) -> str:
    """As OpenAI's headers have it, which is Go's way: `20ms`, `1.5s`, `6m0s`, `1h0m30s`."""
    ms = round(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    tail = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if minutes < 60:
        return f"{minutes}m{tail}" if minutes else tail
    return f"{minutes // 60}h{minutes % 60}m{tail}"
