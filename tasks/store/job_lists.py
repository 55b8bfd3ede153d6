"""Lists of jobs: page by page, newest first, and the dead letters. Blocking; async callers use a thread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tasks.attachments import tags
from tasks.errors import UnknownPlace
from tasks.job_filter import ALL_JOBS, JobFilter, JobPage
from tasks.jobs import Job, JobId
from tasks.store import keys
from tasks.store.connection import Client, translated
from tasks.store.records import FIELDS, job_of

MAX_READ_PER_PAGE = 2000  # of a list, whether they fit or not
READ_AT_ONCE = 100  # or a whole page; far more than are ever admitted in the same millisecond


class Place(NamedTuple):
    """Where a job is on a list, or was: lists are sorted by it. Its text is what clients go on after."""

    created_ms: int
    job_id: str

    def __str__(self) -> str:
        return f"{self.created_ms}-{self.job_id}"


_PLACE = re.compile(r"(\d{1,15})-(job_[0-9a-f]{1,60})", re.ASCII)


class JobLists:
    def __init__(self, client: Client) -> None:
        self._client = client

    def recent(self, limit: int, wanted: JobFilter = ALL_JOBS, after: str | None = None) -> JobPage:
        """Newest first, from behind `after` on: the page before says it, or it is the id of a job that is listed. The
        former holds also when the job there was let go of meanwhile.

        Filters are applied while reading back, of the shortest index that lists all jobs which could fit, and over
        MAX_READ_PER_PAGE jobs at most; so a rare state costs more pages. Raises UnknownPlace."""
        index = self._shortest_index(wanted)
        place = None if after is None else self._place(after)
        at_once = max(limit + 1, READ_AT_ONCE)
        fitting: list[tuple[Place, Job]] = []
        for _ in range(-(-MAX_READ_PER_PAGE // at_once)):
            places, is_end = self._behind(index, place, at_once)
            jobs = {job.id: job for job in self.get_many([JobId(each.job_id) for each in places])}
            fitting += [(each, job) for each in places if (job := jobs.get(JobId(each.job_id))) and wanted.fits(job)]
            if len(fitting) > limit:
                return _page(fitting[:limit], fitting[limit - 1][0])
            if is_end:
                return _page(fitting, None)
            place = places[-1]
        return _page(fitting, place)

    def dead(self, limit: int, wanted: JobFilter = ALL_JOBS) -> list[Job]:
        """Dead letters, newest first: failed jobs that may be worth another try. A requeued one leaves the list."""
        return list(filter(wanted.fits, self.get_many(self._dead_ids())))[:limit]

    @translated
    def get_many(self, job_ids: Sequence[JobId]) -> list[Job]:
        """Records that still exist, in the order asked for."""
        pipe = self._client.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hmget(keys.job(job_id), FIELDS)
        found = zip(job_ids, pipe.execute(), strict=True)
        return [job for job_id, values in found if (job := job_of(job_id, values)) is not None]

    @translated
    def _shortest_index(self, wanted: JobFilter) -> str:
        indexes = [keys.tagged(tag) for tag in tags(metadata=wanted.metadata, batch_id=wanted.batch_id)]
        if len(indexes) < 2:
            return indexes[0] if indexes else keys.JOBS
        pipe = self._client.pipeline(transaction=False)
        for index in indexes:
            pipe.zcard(index)
        return min(zip(pipe.execute(), indexes, strict=True))[1]

    @translated
    def _dead_ids(self) -> list[JobId]:
        return [JobId(job_id.decode()) for job_id in self._client.zrevrange(keys.DEAD, 0, -1)]

    @translated
    def _place(self, after: str) -> Place:
        if told := _PLACE.fullmatch(after):
            return Place(int(told[1]), told[2])
        created_ms = self._client.zscore(keys.JOBS, after)
        if created_ms is None:
            raise UnknownPlace(after)
        return Place(int(created_ms), after)

    @translated
    def _behind(self, index: str, place: Place | None, count: int) -> tuple[list[Place], bool]:
        """Up to so many places further down, and whether the list ends there. By score and not by rank: jobs that come
        and go meanwhile move nothing."""
        newest: str | int = "+inf" if place is None else place.created_ms
        found = self._client.zrevrangebyscore(index, newest, "-inf", start=0, num=count, withscores=True)
        places = [Place(int(created_ms), job_id.decode()) for job_id, created_ms in found]
        return [each for each in places if place is None or each < place], len(found) < count


def _page(fitting: Sequence[tuple[Place, Job]], next_after: Place | None) -> JobPage:
    return JobPage(jobs=[job for _, job in fitting], next_after=None if next_after is None else str(next_after))
