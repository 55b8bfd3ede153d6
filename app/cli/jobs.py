"""`keepwarm jobs`: what was asked, where it stands, how to stop it, and how to ask once more."""

from __future__ import annotations

from datetime import UTC, datetime

from app.cli.client import MAX_JOBS_PER_PAGE, ApiClient, ApiRefused, ClientError
from app.cli.render import complain, duration_text, print_table, remark, say, without_control
from tasks.generation import JsonObject


class BadPair(ClientError):
    """What was given as metadata is no pair."""

    code = "bad_pair"


def show_jobs(jobs: list[JsonObject], *, now: datetime) -> None:
    if not jobs:
        say("No jobs.")
        return
    print_table(
        ["JOB", "STATE", "MODEL", "PRIORITY", "AGE", "TOOK", "ATTEMPT", "WORKER"],
        [_row(job, now) for job in jobs],
    )


def show_dead_letters(jobs: list[JsonObject], *, now: datetime) -> None:
    if not jobs:
        say("No dead letters.")
        return
    print_table(
        ["JOB", "MODEL", "DIED", "FAILURES", "WORKERS", "CAUSE"],
        [
            [
                job["id"],
                job["model"],
                _age(job["finished_at"], now),
                str(job["failures"]),
                " ".join(dict.fromkeys(job["workers"])),
                _cause(job),
            ]
            for job in jobs
        ],
    )


def metadata_pairs(texts: list[str]) -> dict[str, str]:
    """`KEY=VALUE`, each. Raises BadPair."""
    if wrong := [text for text in texts if "=" not in text]:
        raise BadPair(f"--metadata {wrong[0]}: write it as KEY=VALUE.")
    return dict(text.split("=", 1) for text in texts)


def requeue_dead(client: ApiClient, *, is_quiet: bool) -> tuple[list[JsonObject], int]:
    """Ask once more what the dead letters asked, as many as the API tells at once.

    Returns the new jobs and how many were refused; why is said on standard error."""
    dead = client.jobs(dead=True, limit=MAX_JOBS_PER_PAGE)
    if not dead and not is_quiet:
        say("No dead letters.")
    requeued, num_refused = [], 0
    for job in reversed(dead):
        try:
            requeued.append(client.requeue(job["id"]))
        except ApiRefused as error:
            complain(f"{job['id']}: {error}")
            num_refused += 1
    if len(dead) == MAX_JOBS_PER_PAGE:
        remark(f"These were the newest {len(dead)} dead letters. There may be older ones: run this again.")
    return requeued, num_refused


def show_requeued(jobs: list[JsonObject]) -> None:
    for job in jobs:
        say(f"{job['requeued_from']} is asked once more as {job['id']}.")


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
        "failures": str(job["failures"]) if job["failures"] else "",
        "workers": " ".join(job["workers"]) if len(job["workers"]) > 1 else "",
        "error": job["error"]["message"] if job["error"] else "",
        "last error": job["last_error"]["message"] if job["last_error"] not in (None, job["error"]) else "",
        "asked before": job["requeued_from"] or "",
        "asked again": job["requeued_as"] or "",
        "batch": job.get("batch_id") or "",
        "metadata": ", ".join(f"{key}={value}" for key, value in (job.get("metadata") or {}).items()),
        "webhook": _webhook(job),
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


def _webhook(job: JsonObject) -> str:
    webhook = job.get("webhook")
    if not webhook:
        return ""
    told = {True: "delivered", False: "given up", None: "not delivered yet"}
    return f"{webhook['url']} ({told[webhook['delivered']]})"


def _cause(job: JsonObject) -> str:
    error = job["error"] or job["last_error"]
    return f"{error['code']}: {error['message']}" if error else ""


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
