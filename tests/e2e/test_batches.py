"""Batches through the public faces: every line once, the text of a direct request, whatever is killed in between."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from app.settings import ApiSettings
from tasks.failpoints import FAILPOINTS
from tests.support.stack import REPOSITORY, Api, Stack, kill, wait_until

pytestmark = pytest.mark.e2e

Q8 = "keepwarm-demo-q8_0"
LIMIT_S = 90.0
MAX_FILE_BYTES = ApiSettings().max_file_bytes
OF_WEBHOOKS = "webhook_posted"  # its own: tests/integration/test_webhooks.py
BATCHER_POINTS = [point for point, (process, _) in FAILPOINTS.items() if process == "batcher" and point != OF_WEBHOOKS]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("home"), KEEPWARM_LEASE_S="2") as stack:
        yield stack


@pytest.fixture(scope="module")
def api(stack: Stack) -> Api:
    api = stack.start_all()
    stack.start_batcher()
    return api


@pytest.fixture(scope="module")
def client(api: Api) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", _strict_response_validation=True)


def chat(number: int, *, model: str = Q8, max_tokens: int = 60) -> dict[str, Any]:
    question = f"Tell me a story about a fox and {number} boats."
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": True}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def start(client: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "a test"}
    )
    assert batch.status == "validating"
    return batch.id


def ended(client: openai.OpenAI, batch_id: str, state: str = "completed") -> Any:
    def has_ended() -> bool:
        try:
            return client.batches.retrieve(batch_id).status in {"completed", "failed", "expired", "cancelled"}
        except openai.APIError:
            return False

    wait_until(has_ended, f"the batch has ended: {client.batches.retrieve(batch_id)}", LIMIT_S)
    batch = client.batches.retrieve(batch_id)
    assert batch.status == state, batch
    return batch


def entries(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [] if file_id is None else [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def text_of(entry: dict[str, Any]) -> str:
    return entry["response"]["body"]["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def references(client: openai.OpenAI) -> dict[str, str]:
    """What direct requests answer."""
    return {
        line["custom_id"]: client.chat.completions.create(
            **{name: value for name, value in line["body"].items() if name != "ignore_eos"},
            extra_body={"ignore_eos": True},
        )
        .choices[0]
        .message.content
        or ""
        for line in map(chat, range(6))
    }


def test_lines_get_the_answers_and_the_refusals_of_direct_requests(
    client: openai.OpenAI, references: dict[str, str]
) -> None:
    wrong = chat(7)
    wrong["body"]["temperature"] = 9
    batch = ended(client, start(client, [*map(chat, range(6)), chat(6, model="nobody"), wrong]))
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (8, 6, 2)
    output = entries(client, batch.output_file_id)
    assert {entry["custom_id"]: text_of(entry) for entry in output} == references
    assert all(entry["error"] is None and entry["response"]["status_code"] == 200 for entry in output)
    assert batch.usage.output_tokens == 6 * 60
    errors = {entry["custom_id"]: entry["response"] for entry in entries(client, batch.error_file_id)}
    assert {custom_id: response["status_code"] for custom_id, response in errors.items()} == {"r6": 404, "r7": 400}
    assert errors["r6"]["body"]["error"]["code"] == "model_not_found"
    for entry in output:  # the very object of the SDK
        openai.types.chat.ChatCompletion.model_validate(entry["response"]["body"], strict=True)


def test_batcher_that_is_killed_at_every_failpoint_loses_and_repeats_no_line(
    stack: Stack, client: openai.OpenAI, references: dict[str, str]
) -> None:
    stop_batchers(stack)
    armed = ",".join(f"{point}=kill:1" for point in BATCHER_POINTS)
    doomed = stack.start_batcher(KEEPWARM_FAILPOINTS=armed)
    batch_id = start(client, [chat(number) for number in range(6)])
    for _ in BATCHER_POINTS:
        assert doomed.wait(LIMIT_S) == -signal.SIGKILL
        doomed = stack.start_batcher(KEEPWARM_FAILPOINTS=armed)  # a point that has killed does so no more
    batch = ended(client, batch_id)
    output = entries(client, batch.output_file_id)
    assert sorted(entry["custom_id"] for entry in output) == sorted(references)
    assert {entry["custom_id"]: text_of(entry) for entry in output} == references
    assert batch.error_file_id is None


def stop_batchers(stack: Stack) -> None:
    for process in stack.processes:
        if "app.batches" in process.args and process.poll() is None:  # type: ignore[operator]
            process.terminate()
            process.wait(20)


def test_worker_store_and_batcher_are_killed_under_a_batch(
    stack: Stack, api: Api, client: openai.OpenAI, references: dict[str, str]
) -> None:
    lines = [chat(number % 6) | {"custom_id": f"{number}"} for number in range(36)]
    batch_id = start(client, lines)
    wait_until(lambda: any(runner["in_flight"] for runner in api.runners()), "lines are being answered")
    for module, start_again in (
        ("workers", stack.start_worker),
        ("app.batches", stack.start_batcher),
        ("tasks.embedded_store", stack.start_store),
    ):
        for process in stack.processes:
            if module in process.args and process.poll() is None:  # type: ignore[operator]
                kill(process.pid)
                process.wait()
        start_again()
    api.wait_ready()
    batch = ended(client, batch_id)
    output = entries(client, batch.output_file_id)
    assert sorted(int(entry["custom_id"]) for entry in output) == list(range(36))
    for entry in output:
        assert text_of(entry) == references[f"r{int(entry['custom_id']) % 6}"]


def test_cancelled_batch_keeps_what_was_answered_and_names_every_line(api: Api, client: openai.OpenAI) -> None:
    batch_id = start(client, [chat(number, max_tokens=100) for number in range(100)])
    wait_until(lambda: client.batches.retrieve(batch_id).request_counts.completed > 0, "a line is answered", LIMIT_S)  # type: ignore[union-attr]
    assert client.batches.cancel(batch_id).status == "cancelling"
    batch = ended(client, batch_id, "cancelled")
    output, errors = entries(client, batch.output_file_id), entries(client, batch.error_file_id)
    assert len(output) == batch.request_counts.completed > 0
    assert sorted(entry["custom_id"] for entry in output + errors) == sorted(f"r{n}" for n in range(100))
    assert {entry["error"]["code"] for entry in errors} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError, match="it is cancelled"):
        client.batches.cancel(batch_id)
    wait_until(lambda: all(not runner["in_flight"] for runner in api.runners()), "no job is left running", 10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of a process's memory")
def test_largest_file_goes_in_and_out_in_bounded_memory_and_a_larger_one_does_not(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    before = peak_bytes(api.process.pid)
    for num_bytes, status in ((MAX_FILE_BYTES, 200), (MAX_FILE_BYTES + 1, 413)):
        with path.open("wb") as file:
            file.truncate(num_bytes)
        with path.open("rb") as file:
            reply = api.http.post("/v1/files", files={"file": file}, data={"purpose": "batch"})
        assert reply.status_code == status, reply.text
        if status == 200:
            kept = reply.json()["id"]
    with api.http.stream("GET", f"/v1/files/{kept}/content") as reply:
        assert sum(map(len, reply.iter_bytes())) == MAX_FILE_BYTES
    assert api.http.delete(f"/v1/files/{kept}").is_success
    assert peak_bytes(api.process.pid) - before < MAX_FILE_BYTES / 4


def peak_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_command_line_turns_prompts_into_answers(api: Api, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("What is Keepwarm?\n\nWhat is 3 plus 4?")

    def keepwarm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app.cli.main", "batch", *arguments, "--url", api.url]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S)

    options = ["--model", Q8, "--temperature", "0", "--max-tokens", "20", "--wait"]
    submitted = keepwarm("submit", str(tmp_path / "prompts.txt"), *options)
    assert submitted.returncode == 0, submitted.stderr
    assert "completed 2/2" in submitted.stdout
    batch_id = submitted.stdout.split()[0]
    fetched = keepwarm("get", batch_id, "-o", "-")
    assert {json.loads(line)["custom_id"] for line in fetched.stdout.splitlines()} == {"line-1", "line-3"}
    assert batch_id in keepwarm("ls").stdout
