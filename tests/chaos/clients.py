"""Clients that don't give up: they post with an idempotency key until acknowledged, and read, cut and resume."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx2

from tests.chaos.checker import Connection, Transcript, Violation

PAUSE_S = 0.1
REQUEST_TIMEOUT_S = 15.0  # longer than any silence: streams are kept alive every 10 s
NOT_NOW = {429, 502, 503, 504}


@dataclass(slots=True)
class Clients:
    """Any number of clients of the same APIs. `violations` are answers that no client should get."""

    urls: list[str]
    rng: random.Random
    http: httpx2.AsyncClient = field(
        default_factory=lambda: httpx2.AsyncClient(
            timeout=REQUEST_TIMEOUT_S, limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        )
    )
    violations: list[Violation] = field(default_factory=list)

    async def submit(self, body: dict[str, object], key: str) -> str:
        """The id of the acknowledged job."""
        while True:
            response = await self._request("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key})
            if response is not None and response.status_code == 202:
                return str(response.json()["id"])
            if response is not None and response.status_code not in NOT_NOW:
                self._refused(key, response)
            await asyncio.sleep(PAUSE_S)

    async def cancel(self, job_id: str) -> None:
        while True:
            response = await self._request("DELETE", f"/v1/jobs/{job_id}")
            if response is not None and response.is_success:
                return
            if response is not None and response.status_code not in NOT_NOW:
                self._refused(job_id, response)
            await asyncio.sleep(PAUSE_S)

    async def read(self, job_id: str, reader: str, *, cut_chance: float, into: list[Transcript]) -> None:
        """Follow the job to its end; `into` gets the transcript, also when this is cancelled."""
        connections: list[Connection] = []
        try:
            await self._follow(job_id, cut_chance, connections)
        finally:
            into.append(Transcript(job_id=job_id, reader=reader, connections=tuple(connections)))

    async def _follow(self, job_id: str, cut_chance: float, connections: list[Connection]) -> None:
        seen, is_over = 0, False
        while not is_over:
            events: list[tuple[int, bytes]] = []
            try:
                is_over = await self._connect(job_id, seen, cut_chance, events)
            except httpx2.TransportError:
                await asyncio.sleep(PAUSE_S)
            finally:
                if events:
                    connections.append(Connection(after=seen, events=tuple(events)))
                    seen = events[-1][0]

    async def _connect(self, job_id: str, seen: int, cut_chance: float, events: list[tuple[int, bytes]]) -> bool:
        """One connection; True when the stream is over. Raises TransportError."""
        headers = {"Last-Event-ID": str(seen)} if seen else {}
        url = f"{self.rng.choice(self.urls)}/v1/jobs/{job_id}/events"
        async with self.http.stream("GET", url, headers=headers) as response:
            if response.status_code == 204:
                return True
            if not response.is_success:
                await response.aread()
                if response.status_code not in NOT_NOW:
                    self._refused(job_id, response)
                await asyncio.sleep(PAUSE_S)
                return False
            is_over = False
            async for kind, seq, payload in _events(response.aiter_bytes()):
                events.append((seq, payload))
                is_over = is_over or kind == b"end"
                if not is_over and self.rng.random() < cut_chance:
                    return False
            return is_over  # read on after the end: nothing may follow

    async def _request(self, method: str, path: str, **options: object) -> httpx2.Response | None:
        try:
            return await self.http.request(method, self.rng.choice(self.urls) + path, **options)  # type: ignore[arg-type]
        except httpx2.TransportError:
            return None

    def _refused(self, job_id: str, response: httpx2.Response) -> None:
        self.violations.append(Violation(job_id, "answer", f"{response.status_code} {response.text[:300]}"))


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, int, bytes]]:
    """(event, id, data) of the numbered events; one that was cut in the middle never arrived."""
    buffer = b""
    async for chunk in chunks:
        *blocks, buffer = (buffer + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
            if b"id" in fields:
                yield fields[b"event"], int(fields[b"id"]), fields[b"data"]
