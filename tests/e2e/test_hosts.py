"""Workers on hosts of their own: one joins, one is cut off in the middle of its work and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import network_hosts
from tests.support.network_hosts import Network
from tests.support.stack import Api, Stack, free_port, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(network_hosts.why_not() is not None, reason=str(network_hosts.why_not())),
]

MODEL = "keepwarm-demo-q8_0"
BODY = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 800, "ignore_eos": True, "temperature": 0}
PASSWORD = "between-hosts"


@pytest.fixture
def net() -> Iterator[Network]:
    with network_hosts.network() as net:
        yield net


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory, net: Network) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("home"), KEEPWARM_LEASE_S="2") as stack:
        yield stack


class Fleet:
    """A store on the hub, a front and a controller here, workers on hosts of their own."""

    def __init__(self, stack: Stack, net: Network) -> None:
        self.stack, self.net, self._port = stack, net, free_port()
        stack.spawn_at(net.enter("hub"), "store", "tests.support.open_store", str(self._port), PASSWORD)
        here = self._url("here")
        stack.spawn("controller", "tasks.controller", KEEPWARM_REDIS_URL=here)
        port = free_port()
        self.api = Api(stack.spawn("api", "app.serve", KEEPWARM_PORT=str(port), KEEPWARM_REDIS_URL=here), port)

    def start_worker(self, host: str) -> None:
        self.net.join(host)
        home = self.stack.home / host
        settings = {"KEEPWARM_REDIS_URL": self._url(host), "KEEPWARM_HOME": str(home)}
        self.stack.spawn_at(self.net.enter(host), f"worker-{host}", "workers", **settings)

    def _url(self, host: str) -> str:
        return f"redis://:{PASSWORD}@{self.net.hub_address(host)}:{self._port}"

    def hosts(self) -> set[str]:
        return {worker["host"] for worker in self.api.pool()["workers"]}


def test_host_that_is_cut_off_loses_its_job_to_another_and_comes_back(stack: Stack, net: Network) -> None:
    fleet = Fleet(stack, net)
    fleet.start_worker("east")
    fleet.api.wait_ready()
    reference = fleet.api.finished(fleet.api.submit(**BODY))["result"]["text"]

    job_id = fleet.api.submit(**BODY)
    fleet.start_worker("west")
    with fleet.api.events(job_id) as events:
        first = [next(events) for _ in range(5)]
        net.cut("east")
        everything = [*first, *events]
    assert [seq for seq, _, _ in everything] == list(range(1, len(everything) + 1))
    assert "".join(json.loads(data)["text"] for _, kind, data in everything if kind == "tokens") == reference
    job = fleet.api.finished(job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    assert job["worker"].startswith("west")
    wait_until(lambda: fleet.hosts() == {"west"}, "the host that is cut off is given up")

    net.mend("east")
    wait_until(lambda: fleet.hosts() == {"east", "west"}, "it is back")
    again = fleet.api.finished(fleet.api.submit(**BODY | {"max_tokens": 20}))
    assert reference.startswith(again["result"]["text"])
