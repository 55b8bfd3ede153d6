"""`sentinel://[:PASSWORD@]HOST[:PORT][,HOST[:PORT]…][/DB]?master=NAME`: one URL for both redis-py and kombu.

Pure. The password is the data servers'; sentinels are asked without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

SCHEME = "sentinel"
DEFAULT_PORT = 26379
DEFAULT_MASTER = "mymaster"  # as in Redis's own sample configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelUrl:
    hosts: tuple[tuple[str, int], ...]
    master: str
    db: int
    password: str | None

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Raises ValueError that says what is wrong."""
        parts = urlsplit(url)
        password, _, hosts = parts.netloc.rpartition("@")
        if parts.scheme != SCHEME or not hosts:
            raise ValueError("write it like sentinel://:PASSWORD@HOST:26379,HOST2:26379/0?master=NAME")
        db = parts.path.strip("/")
        if not db.isdigit() and db:
            raise ValueError(f"{db!r} is no database number")
        return cls(
            hosts=tuple(_host(host) for host in hosts.split(",")),
            master=parse_qs(parts.query).get("master", [DEFAULT_MASTER])[0],
            db=int(db or 0),
            password=unquote(password.lstrip(":")) or None,
        )

    def for_kombu(self) -> str:
        """One URL per sentinel, as kombu wants them; the master's name goes into its transport options."""
        credentials = f":{quote(self.password, safe='')}@" if self.password else ""
        return ";".join(f"{SCHEME}://{credentials}{host}:{port}/{self.db}" for host, port in self.hosts)


def _host(text: str) -> tuple[str, int]:
    name, _, port = text.partition(":")
    if not name or (port and not port.isdigit()):
        raise ValueError(f"{text!r} is no HOST:PORT of a sentinel")
    return name, int(port or DEFAULT_PORT)
