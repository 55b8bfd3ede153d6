"""Which errors of the server mean "not now"."""

from __future__ import annotations

import pytest
import redis

from tasks.errors import StoreUnavailable
from tasks.store.connection import store_errors


@pytest.mark.parametrize(
    "said",
    [
        "NOREPLICAS Not enough good replicas to write. script: 1f, on @user_script:1.",
        "CLUSTERDOWN The cluster is down",
        "BUSY Valkey is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.",
        "READONLY You can't write against a read only replica. script: 1f, on @user_script:1.",
        "OOM command not allowed when used memory > 'maxmemory'. script: 1f, on @user_script:1.",
    ],
)
def test_server_that_refuses_writes_for_now_is_unavailable(said: str) -> None:
    with pytest.raises(StoreUnavailable, match=said.split()[0]), store_errors():
        raise redis.exceptions.ResponseError(said)


def test_error_in_a_script_is_none_of_the_server() -> None:
    with pytest.raises(redis.exceptions.ResponseError), store_errors():
        raise redis.exceptions.ResponseError("ERR user_script:12: attempt to index a nil value")
