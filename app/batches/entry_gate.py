"""Few requests at once on their way into the queue.

Requests that begin together advance together, a step of each in turn, so the first of a whole window would be admitted
only when nearly all are: about a second during which no slot has work. What is behind the gate takes its turn instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class EntryGate:
    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)

    @asynccontextmanager
    async def entering(self) -> AsyncIterator[Callable[[], None]]:
        """Wait for a place. Call what this yields once the request is in; its place is free at the end in any case."""
        await self._places.acquire()
        is_in = False

        def came_in() -> None:
            nonlocal is_in
            if not is_in:
                is_in = True
                self._places.release()

        try:
            yield came_in
        finally:
            came_in()
