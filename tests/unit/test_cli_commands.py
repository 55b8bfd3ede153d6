"""The commands as a user types them, against a fake API: output, exit codes, and what is sent."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from app.cli.client import ApiClient
from app.cli.jobs import show_job
from app.cli.main import main
from app.cli.options import default_url
from app.cli.why import show_why
from tasks.jobs import JobError, JobState, Usage
from tasks.stream_events import End, Loading, Queued, Reset, StreamEvent, Tokens, encode_event

GOOD_END = End(state=JobState.SUCCEEDED, finish_reason="stop", usage=Usage(prompt_tokens=3, completion_tokens=2))
DETAILS = {"context_length": 4096, "slots": 8, "bytes": 3 * 1024**2, "aliases": ["demo"]}
MODELS = [
    {"id": "warm-one", "keepwarm": {**DETAILS, "state": "warm", "reason": None}},
    {"id": "cold-one", "keepwarm": {**DETAILS, "state": "cold", "reason": "loads on demand", "aliases": []}},
]
RUNNER = {"pid": 8, "model": "warm-one", "state": "ready", "bytes": 3 * 1024**2, "slots": 8, "in_flight": 2}
WORKER = {"id": "host-7", "pid": 7, "host": "host", "device": "cpu", "draining": False}
POOL = {
    "workers": [{**WORKER, "budget_bytes": 1024**3, "used_bytes": 3 * 1024**2, "runners": [RUNNER]}],
    "queues": [{"model": "warm-one", "depth": 4, "oldest_age_s": 2.5}, {"model": "x", "depth": 0, "oldest_age_s": 0}],
}
JOB = {
    "id": "job_1",
    "state": "failed",
    "model": "warm-one",
    "priority": "default",
    "attempt": 3,
    "failures": 3,
    "worker": "host-7",
    "workers": ["host-7", "host-7", "host-8"],
    "position": None,
    "created_at": (datetime.now(UTC) - timedelta(hours=5)).isoformat(),
    "started_at": "2026-01-01T00:00:00Z",
    "finished_at": "2026-01-01T00:00:07Z",
    "result": None,
    "error": {"code": "runner_crashed", "message": "The runner died.", "param": None},
    "last_error": {"code": "runner_crashed", "message": "The runner died.", "param": None},
    "requeued_from": None,
    "requeued_as": None,
}


DECISION = {
    "at": (datetime.now(UTC) - timedelta(minutes=3)).isoformat(),
    "action": "load",
    "reason": "idle_victims",
    "model": "warm-one",
    "worker": "host-7",
    "text": "needs 3.0 MiB; x makes room",
    "terms": {},
}
QUARANTINE = {
    "id": "prompt:0123456789abcdef",
    "kind": "prompt",
    "model": "warm-one",
    "until": (datetime.now(UTC) + timedelta(days=30)).isoformat(),
    "reason": "It cost two runners.",
    "workers": [],
}


DEAD_WEBHOOK = {
    "id": "job_1",
    "origin": "https://a.example",
    "state": "succeeded",
    "given_up_at": datetime.now(UTC).isoformat(),
    "attempts": 10,
    "last_status": "status_5xx",
}


class FakeKeepwarm:
    """Holds one script of events per submitted job."""

    def __init__(self) -> None:
        self.answers: list[list[StreamEvent]] = []
        self.submitted: list[dict] = []
        self.cancelled: list[str] = []
        self.queries: list[str] = []
        self.on_events: Callable[[], None] = lambda: None

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.queries.append(request.url.raw_path.decode())
        match (request.method, request.url.path):
            case ("POST", "/v1/jobs"):
                self.submitted.append(json.loads(request.content))
                return httpx2.Response(202, json={"id": f"job_{len(self.submitted)}"})
            case ("GET", path) if path.endswith("/events"):
                self.on_events()
                return httpx2.Response(
                    200, headers={"content-type": "text/event-stream"}, content=self._stream(self.answers.pop(0))
                )
            case ("GET", "/v1/webhooks/dead"):
                return httpx2.Response(200, json={"data": [DEAD_WEBHOOK]})
            case ("GET", "/v1/quarantine"):
                return httpx2.Response(200, json={"data": [QUARANTINE]})
            case ("DELETE", path) if path.startswith("/v1/quarantine/"):
                return httpx2.Response(200, json=QUARANTINE)
            case ("DELETE", path):
                self.cancelled.append(path.rsplit("/", 1)[1])
                return httpx2.Response(200, json={**JOB, "state": "cancelled"})
            case ("GET", "/v1/jobs"):
                return httpx2.Response(200, json={"data": [{**JOB, "id": "job_2"}, JOB]})
            case ("POST", path) if path.endswith("/requeue"):
                job_id = path.split("/")[3]
                if job_id == "job_2":
                    return httpx2.Response(422, json={"detail": "This prompt is quarantined."})
                return httpx2.Response(202, json={**JOB, "id": "job_9", "requeued_from": job_id})
            case ("GET", path) if path.startswith("/v1/jobs/"):
                return httpx2.Response(200, json=JOB)
            case ("GET", "/v1/models"):
                return httpx2.Response(200, json={"data": MODELS})
            case ("GET", "/v1/pool/decisions"):
                return httpx2.Response(200, json={"data": [DECISION]})
            case ("GET", "/v1/models/warm-one"):
                return httpx2.Response(200, json=MODELS[0])
            case ("POST", path):
                return httpx2.Response(202, json={"model": path.split("/")[3], "asked": "warm"})
            case ("GET", "/v1/pool"):
                return httpx2.Response(200, json=POOL)
        return httpx2.Response(404, json={"detail": "The model 'x' does not exist. Did you mean warm-one?"})

    @staticmethod
    def _stream(events: list[StreamEvent]) -> bytes:
        body, seq = b"", 0
        for event in events:
            if isinstance(event, Tokens | Reset | End):
                seq += 1
                body += b"id: %d\n" % seq
            body += b"data: %b\n\n" % encode_event(event)
        return body


@pytest.fixture
def keepwarm(monkeypatch: pytest.MonkeyPatch) -> FakeKeepwarm:
    fake = FakeKeepwarm()
    monkeypatch.setattr(
        "app.cli.client.ApiClient", lambda url: ApiClient("http://127.0.0.1:1", transport=httpx2.MockTransport(fake))
    )
    return fake


def keepwarm_command(*arguments: str) -> int:
    """Run the command line in this process. Returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["keepwarm", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            main()
    return int(exit_info.value.code or 0)


def words(*texts: str) -> list[StreamEvent]:
    return [Tokens(text=text, ids=(1,)) for text in texts]


# ---- run


def test_run_prints_the_answer_and_nothing_else(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    keepwarm.answers = [[Queued(position=1), Loading(model="warm-one", progress=0.5), *words("Hel", "lo."), GOOD_END]]
    assert keepwarm_command("run", "warm-one", "Say", "hello", "--system", "Be brief.", "--seed", "7") == 0
    assert capsys.readouterr().out == "Hello.\n"
    assert keepwarm.submitted == [
        {
            "model": "warm-one",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Say hello"},
            ],
            "priority": "interactive",
            "seed": 7,
        }
    ]


def test_run_takes_its_prompt_from_a_pipe(keepwarm: FakeKeepwarm, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    keepwarm.answers = [[*words("ok"), GOOD_END]]
    assert keepwarm_command("run", "warm-one") == 0
    assert keepwarm.submitted[0]["messages"][-1]["content"] == "from a pipe"


def test_an_empty_prompt_is_wrong_usage(keepwarm: FakeKeepwarm, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("  \n"))
    assert keepwarm_command("run", "warm-one") == 2
    assert not keepwarm.submitted


def test_a_failed_job_ends_with_its_reason(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    error = JobError(code="runner_crashed", message="The runner died three times.")
    keepwarm.answers = [[*words("Hel"), End(state=JobState.FAILED, error=error)]]
    assert keepwarm_command("run", "warm-one", "hello") == 1
    assert "The runner died three times." in capsys.readouterr().err


def test_an_answer_that_starts_over_says_so(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    keepwarm.answers = [[*words("Wrong"), Reset(attempt=2, reason="no resume"), *words("Right."), GOOD_END]]
    assert keepwarm_command("run", "warm-one", "hello") == 0
    printed = capsys.readouterr()
    assert printed.out == "Wrong\nRight.\n"
    assert "starts over: no resume" in printed.err


def test_ctrl_c_cancels_the_job(keepwarm: FakeKeepwarm):
    def interrupt() -> None:
        raise KeyboardInterrupt

    keepwarm.on_events = interrupt
    assert keepwarm_command("run", "warm-one", "hello") == 130
    assert keepwarm.cancelled == ["job_1"]


def test_run_as_json_prints_the_job_alone(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    keepwarm.answers = [[*words("Hello."), GOOD_END]]
    assert keepwarm_command("run", "warm-one", "hello", "--json") == 0
    assert json.loads(capsys.readouterr().out) == JOB


# ---- conversation


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str | type[BaseException]]:
    """Lines that the user types; an exception type is a key such as Ctrl-D. Ends with Ctrl-D."""
    lines: list[str | type[BaseException]] = []

    def read_line(prompt: str) -> str:
        line = lines.pop(0) if lines else EOFError
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read_line)
    monkeypatch.setattr("sys.stdin", None)
    return lines


def test_a_conversation_remembers_its_turns(keepwarm: FakeKeepwarm, typed: list):
    keepwarm.answers = [[*words("Hi."), GOOD_END], [*words("Ann."), GOOD_END]]
    typed += ["I am Ann", "Who am I?", "/bye"]
    assert keepwarm_command("run", "warm-one", "--system", "Be kind.") == 0
    assert [message["content"] for message in keepwarm.submitted[1]["messages"]] == [
        "Be kind.",
        "I am Ann",
        "Hi.",
        "Who am I?",
    ]


def test_clear_forgets_and_help_and_unknown_commands_ask_nobody(
    keepwarm: FakeKeepwarm, typed: list, capsys: pytest.CaptureFixture[str]
):
    keepwarm.answers = [[*words("Hi."), GOOD_END], [*words("No idea."), GOOD_END]]
    typed += ["I am Ann", "/clear", "/help", "/nonsense", "", KeyboardInterrupt, "Who am I?"]
    assert keepwarm_command("run", "warm-one") == 0
    assert len(keepwarm.submitted) == 2
    assert [message["content"] for message in keepwarm.submitted[1]["messages"]] == ["Who am I?"]
    assert "There is no /nonsense" in capsys.readouterr().err


def test_several_lines_are_one_message_between_quotes(keepwarm: FakeKeepwarm, typed: list):
    keepwarm.answers = [[*words("ok"), GOOD_END]]
    typed += ['"""', "first", "", "second", '"""']
    assert keepwarm_command("run", "warm-one") == 0
    assert keepwarm.submitted[0]["messages"][-1]["content"] == "first\n\nsecond"


def test_ctrl_c_in_an_answer_stops_it_and_the_conversation_goes_on(keepwarm: FakeKeepwarm, typed: list):
    keepwarm.answers = [[*words("Never sent"), GOOD_END], [*words("ok"), GOOD_END]]
    interruptions = [KeyboardInterrupt()]

    def interrupt_once() -> None:
        if interruptions:
            raise interruptions.pop()

    keepwarm.on_events = interrupt_once
    typed += ["first", "second"]
    assert keepwarm_command("run", "warm-one") == 0
    assert keepwarm.cancelled == ["job_1"]
    assert len(keepwarm.submitted) == 2


def test_a_conversation_with_an_unknown_model_ends_before_it_begins(
    keepwarm: FakeKeepwarm, typed: list, capsys: pytest.CaptureFixture[str]
):
    assert keepwarm_command("run", "x") == 1
    assert "Did you mean warm-one?" in capsys.readouterr().err


# ---- looking


def test_ps_shows_runners_workers_and_queues(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("ps") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["warm-one", "ready", "3.0", "MiB", "2", "of", "8", "host-7", "cpu", "8"] in lines
    assert ["host-7", "cpu", "3.0", "MiB", "of", "1.0", "GiB", "serving", "7"] in lines
    assert ["warm-one", "4", "2", "s"] in lines
    assert not any(line[:1] == ["x"] for line in lines)


def test_ps_says_what_was_taken_from_a_model_to_make_it_fit(
    keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    runner = {**RUNNER, "reduced": "2 of 8 slots, to fit into 1.0 GiB"}
    monkeypatch.setitem(POOL, "workers", [{**POOL["workers"][0], "runners": [runner]}])
    assert keepwarm_command("ps") == 0
    assert "warm-one has 2 of 8 slots, to fit into 1.0 GiB." in capsys.readouterr().out


def test_ps_shows_adapters_with_the_runner_that_serves_them(
    keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    runner = {**RUNNER, "adapters": {"formal": 1}}
    monkeypatch.setitem(POOL, "workers", [{**POOL["workers"][0], "runners": [runner]}])
    assert keepwarm_command("ps") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["formal", "ready", "in", "warm-one", "1", "of", "8", "host-7", "cpu", "8"] in rows


def test_why_of_an_adapter_tells_of_its_base(capsys: pytest.CaptureFixture[str]):
    adapter = {"id": "formal", "keepwarm": {"state": "cold", "reason": "loads on demand", "base": "warm-one"}}
    show_why(adapter, [DECISION], now=datetime.now(UTC))
    lines = capsys.readouterr().out.splitlines()
    assert "the runner of warm-one serves" in lines[1]
    assert "load warm-one" in lines[3]


def test_ps_of_a_host_without_a_worker_fails(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("ps", "--host", "host") == 0
    assert keepwarm_command("ps", "--host", "elsewhere") == 1
    assert "No worker is alive." in capsys.readouterr().out


@pytest.mark.parametrize("command", ["ps", "ls"])
def test_what_an_operator_should_mend_is_said(
    command: str, keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(POOL, "workers", [{**POOL["workers"][0], "warnings": ["models.yaml is wrong."]}])
    assert keepwarm_command(command) == 0
    assert "host-7: models.yaml is wrong." in capsys.readouterr().out.splitlines()


def test_ls_shows_models_with_state_and_aliases(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("ls") == 0
    assert capsys.readouterr().out.splitlines() == [
        "MODEL     STATE  MEMORY   CONTEXT  SLOTS  ALIASES  NOTE",
        "warm-one  warm   3.0 MiB  4096     8      demo",
        "cold-one  cold   3.0 MiB  4096     8               loads on demand",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ps"], POOL),
        (["ls"], MODELS),
        (["jobs"], [{**JOB, "id": "job_2"}, JOB]),
        (["quarantine", "ls"], [QUARANTINE]),
        (["webhooks"], [DEAD_WEBHOOK]),
        (["quarantine", "lift", "prompt:01234567"], QUARANTINE),
        (["jobs", "requeue", "job_1"], {**JOB, "id": "job_9", "requeued_from": "job_1"}),
        (["jobs", "show", "job_1"], JOB),
        (["warm", "warm-one"], {"model": "warm-one", "asked": "warm"}),
    ],
)
def test_json_is_what_the_api_says(
    keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: object
):
    assert keepwarm_command(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out) == expected


def test_jobs_are_filtered_by_the_api(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("jobs", "--state", "failed", "--model", "warm-one", "--limit", "5") == 0
    assert keepwarm.queries == ["/v1/jobs?state=failed&model=warm-one&limit=5"]
    assert capsys.readouterr().out.splitlines()[2].split() == [
        *("job_1", "failed", "warm-one", "default"),
        *("5", "h", "7", "s", "3", "host-7"),
    ]


def test_jobs_are_listed_by_batch_and_metadata(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("jobs", "--batch", "batch_1", "--metadata", "ticket=7", "--metadata", "why=a=b") == 0
    query = parse_qs(urlsplit(keepwarm.queries[-1]).query)
    assert query["batch_id"] == ["batch_1"]
    assert (query["metadata[ticket]"], query["metadata[why]"]) == (["7"], ["a=b"])
    assert keepwarm_command("jobs", "--metadata", "ticket") == 1
    assert "--metadata ticket: write it as KEY=VALUE." in capsys.readouterr().err


@pytest.mark.parametrize(("delivered", "told"), [(True, "delivered"), (False, "given up"), (None, "not delivered yet")])
def test_jobs_show_tells_what_a_client_attached(delivered: bool | None, told: str, capsys: pytest.CaptureFixture[str]):
    webhook = {"url": "https://example.com/hook", "delivered": delivered}
    job = {**JOB, "batch_id": "batch_1", "metadata": {"ticket": "7"}, "webhook": webhook}
    show_job(job, now=datetime.now(UTC))
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (rows["batch"], rows["metadata"]) == ("batch_1", "ticket=7")
    assert rows["webhook"] == f"https://example.com/hook ({told})"


def test_dead_letters_are_listed_with_cause_and_workers(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("jobs", "--dead") == 0
    assert keepwarm.queries == ["/v1/jobs?dead=true&limit=20"]
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith("job_1")
    assert line.endswith("3         host-7 host-8  runner_crashed: The runner died.")


def test_requeue_asks_once_more(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("jobs", "requeue", "job_1") == 0
    assert capsys.readouterr().out == "job_1 is asked once more as job_9.\n"
    assert keepwarm_command("jobs", "requeue", "job_2") == 1
    assert keepwarm_command("jobs", "requeue") == 2
    assert keepwarm_command("jobs", "requeue", "job_1", "--all-dead") == 2


def test_requeue_of_all_dead_goes_on_after_a_refusal(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("jobs", "requeue", "--all-dead") == 1
    assert [query for query in keepwarm.queries if "requeue" in query] == [
        "/v1/jobs/job_1/requeue",
        "/v1/jobs/job_2/requeue",
    ]
    printed = capsys.readouterr()
    assert printed.out == "job_1 is asked once more as job_9.\n"
    assert "job_2: This prompt is quarantined." in printed.err
    keepwarm_command("jobs", "requeue", "--all-dead", "--json")
    printed = capsys.readouterr()
    assert [job["id"] for job in json.loads(printed.out)] == ["job_9"]
    assert "newest" not in printed.err


def test_requeue_of_all_dead_says_that_more_may_be_left(
    keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.cli.jobs.MAX_JOBS_PER_PAGE", 2)
    keepwarm_command("jobs", "requeue", "--all-dead")
    assert "These were the newest 2 dead letters" in capsys.readouterr().err


def test_webhooks_that_were_given_up_are_listed(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("webhooks", "--limit", "7") == 0
    assert keepwarm.queries == ["/v1/webhooks/dead?limit=7"]
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[:2] == ["job_1", "succeeded"]
    assert row.split()[-4:] == ["ago", "10", "status_5xx", "https://a.example"]


def test_quarantine_is_listed_and_lifted(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("quarantine", "ls") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("prompt:0123456789ab  warm-one  30 d")
    assert keepwarm_command("quarantine", "lift", "prompt:01234567") == 0
    assert keepwarm.queries[-1] == "/v1/quarantine/prompt%3A01234567"
    assert capsys.readouterr().out == "prompt:0123456789ab is free again.\n"


def test_a_job_is_shown_with_its_error_and_cancelled_by_id(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("jobs", "show", "job_1") == 0
    assert "error         The runner died." in capsys.readouterr().out
    assert keepwarm_command("jobs", "cancel", "job_1") == 0
    assert keepwarm.cancelled == ["job_1"]


def test_nobody_at_the_url_is_an_error_with_advice(capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("ps", "--url", "http://127.0.0.1:1") == 1
    assert "keepwarm up" in capsys.readouterr().err


def test_the_default_url_follows_the_port():
    assert default_url({"KEEPWARM_PORT": "9000"}) == "http://127.0.0.1:9000"
    assert default_url({}) == "http://127.0.0.1:8000"


# ---- why


def test_why_tells_the_state_and_the_decisions(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("why", "warm-one", "--limit", "5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "warm-one is warm."
    assert lines[2].split(None, 4)[1:] == ["min", "load", "host-7", "idle_victims: needs 3.0 MiB; x makes room"]
    assert keepwarm.queries[-1] == "/v1/pool/decisions?model=warm-one&limit=5"


def test_why_of_an_unknown_model_names_the_nearest(keepwarm: FakeKeepwarm, capsys: pytest.CaptureFixture[str]):
    assert keepwarm_command("why", "x") == 1
    assert "Did you mean warm-one?" in capsys.readouterr().err
