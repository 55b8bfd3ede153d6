"""Send a schedule's requests at their times, whatever became of those before, and time the first token of each."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence

import httpx2
import msgspec

from benchmarks.swapping.schedule import Ask

_WORDS = ("the", "boat", "came", "home", "over", "a", "quiet", "river", "and", "we", "saw", "its", "lamp")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request. Seconds since it was due; a failure has a reason and no first token."""

    model: str
    first_token_s: float | None
    total_s: float
    failure: str | None = None
    prompt_tokens: int | None = None  # as the server counts them, with its template


def replay(
    url: str, schedule: Sequence[Ask], *, limit_s: float, advance: Callable[[], None] = lambda: None
) -> list[Answer]:
    """Answers in the order of the schedule. `limit_s` bounds each request."""
    return asyncio.run(_replay(url, schedule, limit_s, advance))


async def _replay(url: str, schedule: Sequence[Ask], limit_s: float, advance: Callable[[], None]) -> list[Answer]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx2.AsyncClient(base_url=url, timeout=limit_s, limits=limits) as http:
        began = time.monotonic()
        tasks = []
        for number, ask in enumerate(schedule):
            await asyncio.sleep(max(0.0, began + ask.at_s - time.monotonic()))
            tasks.append(asyncio.create_task(_ask(http, number, ask, limit_s, advance)))
        return list(await asyncio.gather(*tasks))


async def _ask(http: httpx2.AsyncClient, number: int, ask: Ask, limit_s: float, advance: Callable[[], None]) -> Answer:
    began = time.monotonic()
    first_s, failure, prompt_tokens = None, None, None
    try:
        async with asyncio.timeout(limit_s):
            first_s, failure, prompt_tokens = await _stream(http, number, ask, began)
    except TimeoutError:
        failure = f"no end within {limit_s:.0f} s"
    except httpx2.HTTPError as error:
        failure = f"{type(error).__name__}: {error}"
    advance()
    return Answer(
        model=ask.model,
        first_token_s=first_s if failure is None else None,
        total_s=time.monotonic() - began,
        failure=failure,
        prompt_tokens=prompt_tokens,
    )


async def _stream(
    http: httpx2.AsyncClient, number: int, ask: Ask, began: float
) -> tuple[float | None, str | None, int | None]:
    """Seconds to the first token, what went wrong, and the tokens of the prompt."""
    words = " ".join(_WORDS[(number + index) % len(_WORDS)] for index in range(ask.prompt_tokens // 2))
    body = {
        "model": ask.model,
        "messages": [{"role": "user", "content": f"{number}: {words}"}],
        "max_tokens": ask.num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first_s, num_tokens, prompt_tokens = None, None, None
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            return None, f"{response.status_code}: {(await response.aread())[:200]!r}", None
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return first_s, str(chunk["error"])[:200], None
            if first_s is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first_s = time.monotonic() - began
            if chunk.get("usage"):
                num_tokens = chunk["usage"]["completion_tokens"]
                prompt_tokens = chunk["usage"]["prompt_tokens"]
    if num_tokens != ask.num_tokens:
        return first_s, f"{num_tokens} tokens came instead of {ask.num_tokens}", prompt_tokens
    return first_s if first_s is not None else time.monotonic() - began, None, prompt_tokens
