"""Sends with a bounded number of them under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.queue_peers.tally import IN_FLIGHT


async def send_all(texts: Sequence[str], send: Callable[[str], Awaitable[object]]) -> None:
    left = iter(texts)

    async def lane() -> None:
        for text in left:
            await send(text)

    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
