"""What `keepwarm batch submit` takes: a file of requests as it is, or prompts in a text or CSV file made into one."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.cli.client import ClientError

CHAT = "/v1/chat/completions"
PROMPT, SYSTEM, CUSTOM_ID = "prompt", "system", "custom_id"  # columns of a CSV file; only the first is required


class BadInput(ClientError):
    """The file can't be made into a batch."""

    code = "bad_input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What every prompt of a text or CSV file gets."""

    model: str | None = None
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def batch_file(path: Path, wish: Wish) -> Iterator[tuple[Path, str]]:
    """A file of requests, and the endpoint that they name. Raises BadInput.

    One that was made of prompts goes at the end of the block."""
    try:
        kind = path.suffix.lower()
        if kind not in {".txt", ".csv"}:
            if wish != Wish():
                raise BadInput(
                    f"{path}: prompts are read from .txt and .csv files. "
                    "Requests, as in a .jsonl file, say themselves which model they want, and how."
                )
            yield path, _endpoint(path)
            return
        if wish.model is None:
            raise BadInput(f"{path}: say with --model who shall answer these prompts.")
        with tempfile.TemporaryDirectory(prefix="keepwarm-") as folder:
            made = Path(folder) / f"{path.stem}.jsonl"
            with made.open("w", encoding="utf-8") as out:
                for request in requests_of(path, wish):
                    out.write(json.dumps(request, ensure_ascii=False) + "\n")
            yield made, CHAT
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def requests_of(path: Path, wish: Wish) -> Iterator[dict[str, Any]]:
    """One chat request per prompt. Raises BadInput."""
    prompts = _csv_prompts(path) if path.suffix.lower() == ".csv" else _text_prompts(path)
    num_prompts = 0
    for custom_id, prompt, system in prompts:
        num_prompts += 1
        messages = [{"role": "system", "content": system or wish.system}] if system or wish.system else []
        body = {"model": wish.model, "messages": [*messages, {"role": "user", "content": prompt}], **wish.options}
        yield {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    if not num_prompts:
        raise BadInput(f"{path}: there is no prompt in it.")


def _text_prompts(path: Path) -> Iterator[tuple[str, str, str | None]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"line-{number}", line.strip(), None


def _csv_prompts(path: Path) -> Iterator[tuple[str, str, str | None]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if PROMPT not in columns:
            raise BadInput(f"{path}: it needs a column '{PROMPT}', and has {', '.join(columns) or 'none'}.")
        for number, row in enumerate(reader, start=1):
            if row[PROMPT] and row[PROMPT].strip():
                yield row.get(CUSTOM_ID) or f"row-{number}", row[PROMPT], row.get(SYSTEM) or None


def _endpoint(path: Path) -> str:
    """Of the first request; whether the others agree is looked at by the API."""
    with path.open(encoding="utf-8-sig") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(
            f"{path}: its first line is no request of a batch, a JSON object with a url. "
            "Prompts go into .txt or .csv files."
        ) from None
    return str(url)
