"""`keepwarm batch` as a user types it, against a fake API; and how prompts become requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from app.cli.batch import watch
from app.cli.batch_input import BadInput, Wish, batch_file
from app.cli.batch_progress import Pace
from app.cli.client import ApiClient, ApiRefused, ApiUnreachable
from app.cli.main import main

CHAT = "/v1/chat/completions"


def batch(state: str = "in_progress", *, done: int = 0, failed: int = 0, total: int = 4, tokens: int = 0) -> dict:
    return {
        "id": "batch_1",
        "status": state,
        "endpoint": CHAT,
        "model": "demo",
        "request_counts": {"total": total, "completed": done, "failed": failed},
        "usage": {"input_tokens": 7, "output_tokens": tokens},
        "created_at": 1_700_000_000,
        "input_file_id": "file-in",
        "output_file_id": "file-out" if state == "completed" else None,
        "error_file_id": None,
        "errors": None,
    }


class FakeApi:
    """Answers a look at the batch with the next of `states`, and then with the last one."""

    def __init__(self) -> None:
        self.states: list[dict | int] = [batch("completed", done=4)]
        self.uploaded = b""
        self.seen: list[str] = []
        self.create_status = 200

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(f"{request.method} {request.url.path}")
        match (request.method, request.url.path):
            case ("POST", "/v1/files"):
                self.uploaded = request.read()
                return httpx2.Response(200, json={"id": "file-in"})
            case ("POST", "/v1/batches"):
                error = {"error": {"message": "endpoint: wrong"}}
                return httpx2.Response(self.create_status, json=batch() if self.create_status == 200 else error)
            case ("GET", "/v1/files/file-out/content"):
                return httpx2.Response(200, content=b'{"custom_id": "a"}\n')
            case ("GET", "/v1/batches"):
                return httpx2.Response(200, json={"data": [batch(done=3, failed=1)]})
            case ("POST", "/v1/batches/batch_1/cancel"):
                return httpx2.Response(200, json=batch("cancelling"))
            case ("GET", "/v1/batches/batch_1"):
                state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
                return httpx2.Response(state) if isinstance(state, int) else httpx2.Response(200, json=state)
            case ("DELETE", "/v1/files/file-in"):
                return httpx2.Response(200, json={})
        return httpx2.Response(404, json={"error": {"message": "No such Batch object: batch_2"}})

    def client(self) -> ApiClient:
        return ApiClient("http://127.0.0.1:1", transport=httpx2.MockTransport(self))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setattr("app.cli.client.ApiClient", lambda url: fake.client())
    return fake


def keepwarm(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["keepwarm", "batch", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            main()
    return int(exit_info.value.code or 0)


def made(path: Path, wish: Wish) -> list[dict]:
    with batch_file(path, wish) as (file, endpoint):
        assert endpoint == CHAT
        return [json.loads(line) for line in file.read_text().splitlines()]


# ---- input


def test_every_line_of_a_text_is_a_prompt(tmp_path: Path):
    (tmp_path / "p.txt").write_text("﻿First?\n\n  Zwölf? \n")
    first, second = made(tmp_path / "p.txt", Wish(model="demo", system="Be brief.", options={"temperature": 0.0}))
    assert first["body"] == {
        "model": "demo",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "First?"}],
        "temperature": 0.0,
    }
    assert (first["custom_id"], second["custom_id"], second["url"]) == ("line-1", "line-3", CHAT)


def test_rows_of_a_csv_may_have_ids_and_system_messages(tmp_path: Path):
    (tmp_path / "p.csv").write_text('custom_id,prompt,system\na,"two\nlines",Be kind.\n,plain,\n')
    first, second = made(tmp_path / "p.csv", Wish(model="demo"))
    assert (first["custom_id"], first["body"]["messages"][0]["content"]) == ("a", "Be kind.")
    assert first["body"]["messages"][1]["content"] == "two\nlines"
    assert (second["custom_id"], len(second["body"]["messages"])) == ("row-2", 1)


def test_requests_are_sent_as_they_are(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    path.write_text('\n{"custom_id": "a", "url": "/v1/embeddings", "body": {}}\nnonsense')
    with batch_file(path, Wish()) as found:
        assert found == (path, "/v1/embeddings")


@pytest.mark.parametrize(
    ("name", "content", "wish", "complaint"),
    [
        ("p.txt", "Hello?", Wish(), "--model"),
        ("p.txt", "\n \n", Wish(model="demo"), "there is no prompt"),
        ("p.txt", b"\xff\xfe", Wish(model="demo"), "codec can't decode"),
        ("p.csv", "question\nHello?", Wish(model="demo"), "a column 'prompt', and has question"),
        ("r.jsonl", '{"prompt": "Hello?"}', Wish(), "its first line is no request"),
        ("r.jsonl", "", Wish(), "its first line is no request"),
        ("r.jsonl", '{"url": "/x"}', Wish(model="demo"), "say themselves which model"),
        ("prompts.md", "Hello", Wish(model="demo"), "prompts are read from .txt and .csv files"),
        ("prompts.md", "Hello", Wish(), "Prompts go into .txt or .csv files"),
    ],
)
def test_unusable_input_is_refused_in_words(
    tmp_path: Path, name: str, content: str | bytes, wish: Wish, complaint: str
):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=complaint), batch_file(tmp_path / name, wish) as (path, _):
        path.read_bytes()


# ---- progress


def test_pace_is_that_of_the_last_half_minute():
    pace = Pace()
    assert pace.eta_s(batch()) is None
    for second in range(0, 101, 5):
        pace.saw(batch(done=second, total=200, tokens=(0 if second < 50 else second - 50) * 10), float(second))
    assert pace.tokens_per_s == pytest.approx(10, rel=0.2)
    assert pace.eta_s(batch(done=100, total=200)) == pytest.approx(100)


def test_standstill_has_no_eta():
    pace = Pace()
    pace.saw(batch(), 0)
    pace.saw(batch(), 10)
    assert (pace.eta_s(batch()), pace.tokens_per_s) == (None, 0)


def ticking() -> tuple[Callable[[], float], Callable[[float], None]]:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return lambda: now[0], sleep


def test_watch_says_each_state_once_and_progress_now_and_then(capsys: pytest.CaptureFixture[str]):
    api = FakeApi()
    api.states = [batch("validating", total=0), *[batch(done=n, total=40, tokens=n * 5) for n in range(24)], 503]
    api.states += [batch("completed", done=39, failed=1, total=40)]
    clock, sleep = ticking()
    assert watch(api.client(), "batch_1", is_quiet=False, clock=clock, sleep=sleep)["status"] == "completed"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "validating 0/0"
    assert lines[1] == "in_progress 0/40"
    assert lines[2].startswith("in_progress 10/40 5 tokens/s, about 3")
    assert lines[-1] == "completed 40/40 1 failed"
    assert len(lines) == 5


def test_watch_gives_up_on_an_api_that_stays_away_and_at_once_on_a_wrong_id():
    api = FakeApi()
    api.states = [503]
    clock, sleep = ticking()
    with pytest.raises(ApiRefused):
        watch(api.client(), "batch_1", is_quiet=True, clock=clock, sleep=sleep)
    assert 60 < clock() < 70
    with pytest.raises(ApiRefused, match="No such Batch"):
        watch(api.client(), "batch_2", is_quiet=True, clock=clock, sleep=sleep)


# ---- commands


def test_submit_uploads_creates_and_says_the_id(api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "p.txt").write_text("Hello?")
    assert keepwarm("submit", str(tmp_path / "p.txt"), "--model", "demo") == 0
    assert b'"content": "Hello?"' in api.uploaded and b'filename="p.jsonl"' in api.uploaded
    assert capsys.readouterr().out.startswith("batch_1 is taken in")


def test_refused_batch_leaves_no_file_behind(api: FakeApi, tmp_path: Path):
    (tmp_path / "p.txt").write_text("Hello?")
    api.create_status = 400
    assert keepwarm("submit", str(tmp_path / "p.txt"), "-m", "demo") == 1
    assert api.seen[-1] == "DELETE /v1/files/file-in"


@pytest.mark.parametrize(("state", "code"), [("completed", 0), ("failed", 1), ("cancelled", 1), ("expired", 1)])
def test_watch_ends_with_a_code_for_scripts(api: FakeApi, state: str, code: int):
    api.states = [batch(state)]
    assert keepwarm("watch", "batch_1") == code


def test_errors_of_the_input_are_shown_with_their_lines(api: FakeApi, capsys: pytest.CaptureFixture[str]):
    errors = [{"code": "invalid_json_line", "line": 7, "message": "This line is no JSON.", "param": None}]
    api.states = [batch("failed") | {"errors": {"data": errors}}]
    assert keepwarm("get", "batch_1") == 0
    assert "line 7: This line is no JSON." in capsys.readouterr().out


def test_get_saves_the_output(api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert keepwarm("get", "batch_1", "-o", str(tmp_path / "out"), "-e", str(tmp_path / "err")) == 0
    assert (tmp_path / "out").read_bytes() == b'{"custom_id": "a"}\n'
    assert not (tmp_path / "err").exists()
    assert "has no errors" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["missing/out", "."])
def test_place_that_cannot_be_written_is_told_in_words(
    api: FakeApi, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert keepwarm("get", "batch_1", "-o", str(tmp_path / where)) == 1
    assert f"{tmp_path / where} can't be written: " in capsys.readouterr().err.replace("\n", " ")


def test_ls_and_cancel(api: FakeApi, capsys: pytest.CaptureFixture[str]):
    assert keepwarm("ls") == 0
    assert "batch_1  in_progress  3     1       4      demo" in capsys.readouterr().out
    assert keepwarm("cancel", "batch_1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "cancelling"


def test_unreachable_api_is_said_in_words(tmp_path: Path):
    client = ApiClient("http://127.0.0.1:9")
    with pytest.raises(ApiUnreachable):
        client.upload(Path(__file__), purpose="batch", filename="x")
    with pytest.raises(ApiUnreachable):
        client.download("file-x", (tmp_path / "x").open("wb"))
