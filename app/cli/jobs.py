"""`keepwarm jobs`: what was asked, where it stands, and how to stop it."""

from __future__ import annotations

from datetime import UTC, datetime

from app.cli.render import duration_text, print_table, say, without_control
from tasks.generation import JsonObject


def show_jobs(jobs: list[JsonObject], *, now: datetime) -> None:
    if not jobs:
        say("No jobs.")
        return
    print_table(
        ["JOB", "STATE", "MODEL", "PRIORITY", "AGE", "TOOK", "ATTEMPT", "WORKER"],
        [_row(job, now) for job in jobs],
    )


def show_job(job: JsonObject, *, now: datetime) -> None:
    """One job with its result or its error."""
    result = job["result"] or {}
    usage = result.get("usage") or {}
    facts = {
        "job": job["id"],
        "state": job["state"],
        "model": job["model"],
        "priority": job["priority"],
        "age": _age(job["created_at"], now),
        "took": _took(job, now),
        "attempt": str(job["attempt"]),
        "worker": job["worker"] or "",
        "in line": "" if job["position"] is None else str(job["position"]),
        "tokens": f"{usage['prompt_tokens']} in, {usage['completion_tokens']} out" if usage else "",
        "ended by": result.get("finish_reason") or "",
        "error": job["error"]["message"] if job["error"] else "",
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        if value:
            say(f"{name:<{width}}  {without_control(value)}")
    if result.get("text"):
        say("")
        say(without_control(result["text"]))


def _row(job: JsonObject, now: datetime) -> list[str]:
    return [
        job["id"],
        job["state"],
        job["model"],
        job["priority"],
        _age(job["created_at"], now),
        _took(job, now),
        str(job["attempt"]),
        job["worker"] or "",
    ]


def _age(timestamp: str, now: datetime) -> str:
    return duration_text((now - _time(timestamp)).total_seconds())


def _took(job: JsonObject, now: datetime) -> str:
    """From the start of the newest attempt to the end, or until now."""
    if job["started_at"] is None:
        return ""
    ended = _time(job["finished_at"]) if job["finished_at"] else now
    return duration_text((ended - _time(job["started_at"])).total_seconds())


def _time(timestamp: str) -> datetime:
    return datetime.fromisoformat(timestamp).astimezone(UTC)
