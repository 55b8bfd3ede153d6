"""A prompt that kills its runner, in real processes: it is found out, kept away, and its neighbours live on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack import Api, Stack

pytestmark = pytest.mark.e2e

MODEL = "keepwarm-demo-q8_0"
POISON = {"model": MODEL, "prompt": "POISON", "max_tokens": 10}


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    behaviour = '{"step_ms": 10, "crash_on": "POISON"}'
    home = tmp_path_factory.mktemp("home")
    with Stack(home, KEEPWARM_ENGINE="fake", KEEPWARM_FAKE=behaviour, KEEPWARM_SLOTS="8") as stack:
        yield stack.start_all()


def test_poisonous_prompt_is_found_out_and_its_neighbours_live_on(api: Api) -> None:
    neighbours = [
        api.submit(model=MODEL, prompt=f"Neighbour {number}", max_tokens=200, ignore_eos=True) for number in range(6)
    ]
    with api.events(neighbours[-1]) as events:
        next(events)
        poison = api.submit(**POISON)
        job = api.finished(poison)
    assert (job["state"], job["error"]["code"]) == ("failed", "prompt_quarantined")
    assert 2 <= job["failures"] <= 3  # a third trial where the neighbours might be to blame
    assert job["last_error"]["code"] == "runner_crashed"
    ends = [api.finished(neighbour) for neighbour in neighbours]
    assert [end["state"] for end in ends] == ["succeeded"] * 6
    assert {end["result"]["usage"]["completion_tokens"] for end in ends} == {200}

    refused = api.http.post("/v1/jobs", json=POISON)
    assert (refused.status_code, refused.json()["code"]) == (422, "prompt_quarantined")
    (entry,) = api.http.get("/v1/quarantine").json()["data"]
    assert (entry["jobs"], entry["cause"]["code"]) == ([poison], "runner_crashed")
    assert [dead["id"] for dead in api.http.get("/v1/jobs?dead=true").json()["data"]] == [poison]
    assert api.http.delete(f"/v1/quarantine/{entry['id']}").status_code == 200
    assert api.http.post("/v1/jobs", json=POISON).status_code == 202


def test_culprit_is_told_from_those_that_came_with_it(api: Api) -> None:
    """All are in the same first batch, so that nobody has a token that would speak for it."""
    before = [api.submit(model=MODEL, prompt=f"Before {number}", max_tokens=20) for number in range(3)]
    poison = api.submit(**POISON)
    after = [api.submit(model=MODEL, prompt=f"After {number}", max_tokens=20) for number in range(3)]
    assert api.finished(poison)["error"]["code"] == "prompt_quarantined"
    assert [api.finished(job_id)["state"] for job_id in before + after] == ["succeeded"] * 6
    assert len(api.http.get("/v1/quarantine").json()["data"]) == 1
