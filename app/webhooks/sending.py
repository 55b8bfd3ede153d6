"""Send one webhook: resolve, check, connect to what was checked, post, and read no more than the status.

Over the bare transport of httpx, without its client: that one would keep cookies and give them to whoever is at the
same address next. Neither redirects nor proxies are followed: both would connect somewhere that nobody checked. No
connection is kept, since one that was opened for a name could be taken for another name at the same address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

import httpx2

from app.webhooks.addresses import Address, Reach, ascii_host, objection, parse_target
from tasks.webhooks import Delivered, NotDelivered, Outcome

MAX_ADDRESSES = 4  # of one name that are tried one after the other
HTTP_GONE = 410

_DEFAULT_PORTS = {"http": 80, "https": 443}


class _NotAllowed(Exception):
    """The name has an address that nothing may be sent to."""


class Sender:
    """Use as an async context manager."""

    def __init__(self, reach: Reach, *, timeout_s: float) -> None:
        """`timeout_s`: for all of it, from the look-up of the name to the status."""
        self._reach = reach
        self._timeout_s = timeout_s
        self._transport = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.aclose()

    async def post(self, target: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """Raises nothing that a receiver could cause."""
        try:
            url = parse_target(target)
            async with asyncio.timeout(self._timeout_s):
                return await self._post(url, body, headers)
        except (ValueError, _NotAllowed):
            return NotDelivered("address_refused", is_final=True)
        except (TimeoutError, httpx2.TimeoutException):
            return NotDelivered("timeout")
        except (httpx2.HTTPError, ssl.SSLError, OSError) as error:
            return NotDelivered("tls" if _is_of_tls(error) else "unreachable")

    async def _post(self, url: httpx2.URL, body: bytes, headers: Mapping[str, str]) -> Outcome:
        host = ascii_host(url)
        addresses = await self._addresses(url, host)
        for address in addresses[:-1]:
            with suppress(httpx2.ConnectError):
                return await self._post_to(address, host, url, body, headers)
        return await self._post_to(addresses[-1], host, url, body, headers)

    async def _post_to(
        self, address: Address, host: str, url: httpx2.URL, body: bytes, headers: Mapping[str, str]
    ) -> Outcome:
        request = httpx2.Request(
            "POST",
            url.copy_with(host=str(address), fragment=None),
            content=body,
            headers={
                "host": url.netloc.decode("ascii"),
                "connection": "close",
                "content-type": "application/json",
                "user-agent": "Keepwarm",
                **headers,
            },
            extensions={
                "sni_hostname": host,  # the certificate is checked against the name, too
                "timeout": httpx2.Timeout(self._timeout_s).as_dict(),
            },
        )
        response = await self._transport.handle_async_request(request)
        try:
            return outcome_of(response.status_code, response.headers.get("retry-after", ""))
        finally:
            await response.aclose()  # whatever it says is not read

    async def _addresses(self, url: httpx2.URL, host: str) -> list[Address]:
        """Where to connect. Raises _NotAllowed when a single one of the name's addresses is out of reach."""
        if objection(url, self._reach) is not None:
            raise _NotAllowed
        port = url.port or _DEFAULT_PORTS[url.scheme]
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0])) for entry in found))
        if not self._reach.names_host(host) and not all(map(self._reach.allows, addresses)):
            raise _NotAllowed
        return addresses[:MAX_ADDRESSES]


def _is_of_tls(error: BaseException | None) -> bool:
    """Whether a certificate or the handshake is at the bottom of it."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def outcome_of(status: int, retry_after: str) -> Outcome:
    """By the table of the specification: 2xx is success, a redirect is none, and 410 wants no more of it."""
    if 200 <= status < 300:
        return Delivered()
    if status == HTTP_GONE:
        return NotDelivered("gone", is_final=True)
    reason = "redirect" if 300 <= status < 400 else f"status_{status // 100}xx"
    asked_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 9 else 0.0
    return NotDelivered(reason, retry_after_s=asked_s)
