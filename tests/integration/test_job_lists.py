"""Lists of jobs by metadata and batch, on a real store: what is found, what is read for it, what is cleared away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import httpx2
import pytest

from app.backend import connect_backend
from app.main import create_app
from app.settings import ApiSettings
from tasks.attachments import NOTHING, Attachments, tags
from tasks.errors import UnknownPlace
from tasks.generation import GenerationRequest
from tasks.job_filter import JobFilter
from tasks.jobs import Job, JobId, JobState, Priority, new_job_id
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.admission_store import AdmissionStore
from tasks.store.connection import Client
from tasks.store.job_lists import JobLists
from tasks.store.job_store import JobStore
from tasks.stream_events import End, Tokens
from tests.support.front_server import FrontServer
from tests.support.scripted_worker import ScriptedWorker

pytestmark = pytest.mark.integration


@pytest.fixture
def http(store_settings: StoreSettings, worker: ScriptedWorker) -> Iterator[httpx2.Client]:
    with (
        FrontServer(create_app(ApiSettings(), connect_backend(store_settings))) as server,
        httpx2.Client(base_url=server.url, timeout=20) as http,
    ):
        yield http


def admit(admissions: AdmissionStore, attached: Attachments = NOTHING, key: str | None = None) -> JobId:
    request = GenerationRequest(model="demo", prompt="x")
    admission = admissions.admit(
        new_job_id(), request, priority=Priority.DEFAULT, deadline_ms=None, idempotency_key=key, attached=attached
    )
    return admission.job_id


def ids(found: Sequence[Job]) -> list[JobId]:
    return [job.id for job in found]


def test_jobs_are_found_by_pairs_of_metadata_page_by_page(jobs: JobStore, admissions: AdmissionStore, lists: JobLists):
    red = [admit(admissions, Attachments(metadata={"team": "red", "n": str(n % 2)})) for n in range(6)]
    admit(admissions, Attachments(metadata={"team": "blue", "n": "0"}))
    admit(admissions)
    of_red = JobFilter(metadata={"team": "red"})
    assert sorted(ids(lists.recent(10, of_red).jobs)) == sorted(red)
    first = ids(lists.recent(4, of_red).jobs)
    assert sorted(first + ids(lists.recent(4, of_red, after=first[-1]).jobs)) == sorted(red)
    assert sorted(ids(lists.recent(9, JobFilter(metadata={"n": "1", "team": "red"})).jobs)) == sorted(red[1::2])
    assert lists.recent(9, JobFilter(metadata={"team": "green"})).jobs == []
    assert jobs.get(red[0]).metadata == {"team": "red", "n": "0"}


def test_only_the_shortest_index_is_read(jobs: JobStore, admissions: AdmissionStore, lists: JobLists, client: Client):
    for n in range(250):
        admit(admissions, Attachments(metadata={"app": "web", "user": str(n)}))
    wanted = JobFilter(metadata={"app": "web", "user": "7"})
    client.config_resetstat()
    assert len(lists.recent(10, wanted).jobs) == 1
    assert client.info("commandstats")["cmdstat_hmget"]["calls"] == 1


def test_a_page_is_cut_short_before_too_many_jobs_are_read_for_it(
    jobs: JobStore, admissions: AdmissionStore, lists: JobLists, client: Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tasks.store.job_lists.MAX_READ_PER_PAGE", 100)
    (rare, *_) = listed = [admit(admissions) for _ in range(250)]
    jobs.cancel(rare)
    client.zadd(keys.JOBS, {rare: 1})  # the last one of all
    found, after, pages = [], None, 0
    while pages == 0 or after is not None:
        client.config_resetstat()
        page = lists.recent(5, JobFilter(state=JobState.CANCELLED), after)
        assert client.info("commandstats")["cmdstat_hmget"]["calls"] <= 100
        found += ids(page.jobs)
        pages, after = pages + 1, page.next_after
    assert (found, pages) == ([rare], 3)
    everything = lists.recent(len(listed))
    assert (len(everything.jobs), everything.next_after) == (250, None)


def test_no_job_is_listed_twice_when_another_comes_while_the_list_is_read(
    jobs: JobStore, admissions: AdmissionStore, lists: JobLists, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(150):
        admit(admissions)
    for job in lists.recent(5).jobs:
        jobs.cancel(job.id)  # so that the first hundred do not fill the page
    read = lists.get_many

    def read_while_another_comes(job_ids: Sequence[JobId]) -> list[Job]:
        admit(admissions)
        return read(job_ids)

    monkeypatch.setattr(lists, "get_many", read_while_another_comes)
    listed = ids(lists.recent(99, JobFilter(state=JobState.QUEUED)).jobs)
    assert len(set(listed)) == len(listed) == 99


def test_a_batch_lets_go_of_its_jobs_in_every_index(
    jobs: JobStore, admissions: AdmissionStore, lists: JobLists, client: Client
):
    attached = Attachments(batch_id="batch_1", metadata={"a": "b"})
    ended, open_job = admit(admissions, attached, "batch_1/1"), admit(admissions, attached, "batch_1/2")
    assert sorted(ids(lists.recent(9, JobFilter(batch_id="batch_1")).jobs)) == sorted([ended, open_job])
    jobs.cancel(ended)
    admissions.forget({"batch_1/1": ended, "batch_1/2": open_job})
    for wanted in (JobFilter(batch_id="batch_1"), JobFilter(metadata={"a": "b"})):
        assert ids(lists.recent(9, wanted).jobs) == [open_job]
    (index,) = [keys.tagged(tag) for tag in tags(metadata=None, batch_id="batch_1")]
    assert client.zcard(index) == 1


def test_old_entries_leave_an_index_and_an_index_ends_by_itself(
    admissions: AdmissionStore, client: Client, store_settings: StoreSettings
):
    attached = Attachments(metadata={"a": "b"})
    (index,) = [keys.tagged(tag) for tag in tags(metadata=attached.metadata, batch_id=None)]
    client.zadd(index, {"job_old": 1})
    new = admit(admissions, attached)
    assert client.zrange(index, 0, -1) == [new.encode()]
    kept_ms = (store_settings.dead_retention_s + 24 * 3600) * 1000
    assert kept_ms - 10_000 < client.pttl(index) <= kept_ms


def test_list_goes_on_behind_a_job_that_is_forgotten_meanwhile(
    jobs: JobStore, admissions: AdmissionStore, lists: JobLists
):
    attached = Attachments(batch_id="batch_1")
    admitted = {f"batch_1/{n}": admit(admissions, attached, f"batch_1/{n}") for n in range(5)}
    for wanted in (JobFilter(batch_id="batch_1"), JobFilter()):
        page = lists.recent(2, wanted)
        (gone,) = [key for key, job_id in admitted.items() if job_id == page.jobs[-1].id]
        jobs.cancel(admitted[gone])
        admissions.forget({gone: admitted[gone]})
        rest = lists.recent(9, wanted, page.next_after)
        left = set(admitted.values()) - {job.id for job in page.jobs}
        assert (len(rest.jobs), {job.id for job in rest.jobs}, rest.next_after) == (len(left), left, None)
        with pytest.raises(UnknownPlace):
            lists.recent(9, wanted, after=admitted.pop(gone))


def test_job_without_metadata_is_in_no_further_index(admissions: AdmissionStore, client: Client):
    admit(admissions)
    assert client.keys("kw:tagged:*") == []


def test_route_takes_pairs_from_the_query(http: httpx2.Client, worker: ScriptedWorker):
    body = {"model": "demo", "prompt": "x", "metadata": {"team": "red", "ticket": "7"}}
    posted = http.post("/v1/jobs", json=body).json()
    other = http.post("/v1/jobs", json={"model": "demo", "prompt": "x"}).json()
    assert (posted["metadata"], posted["batch_id"], other["metadata"]) == (body["metadata"], None, None)
    worker.take().answer("a")
    worker.take().answer("b")
    query = {"metadata[team]": "red", "metadata[ticket]": "7"}
    assert [job["id"] for job in http.get("/v1/jobs", params=query).json()["data"]] == [posted["id"]]
    assert http.get("/v1/jobs", params=query | {"state": "queued"}).json()["data"] == []
    assert http.get("/v1/jobs", params={"metadata[team]": "blue"}).json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "next_after": None,
    }
    assert http.get("/v1/jobs", params={"metadata[k]": "x" * 513}).json()["param"] == "metadata"


def test_job_that_a_cached_answer_answers_is_listed_too(jobs: JobStore, admissions: AdmissionStore, lists: JobLists):
    answer = (Tokens("a", (1,)), End(state=JobState.SUCCEEDED, finish_reason="stop"))
    request = GenerationRequest(model="demo", prompt="x")
    attached = Attachments(metadata={"team": "red"}, batch_id="batch_1")
    job_id = new_job_id()
    assert admissions.write_answered(job_id, request, answer, priority=Priority.DEFAULT, attached=attached)
    for wanted in (JobFilter(metadata={"team": "red"}), JobFilter(batch_id="batch_1"), JobFilter()):
        assert ids(lists.recent(9, wanted).jobs) == [job_id]
    assert jobs.get(job_id).state is JobState.SUCCEEDED
