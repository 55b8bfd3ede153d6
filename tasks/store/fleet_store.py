"""Workers' heartbeats, the desired placement, queue depths: the controller's inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

from tasks.fleet import ClassBacklog, Fleet, LoadCounts, ModelOffer, Placement, QueueReport, RunnerReport, WorkerReport
from tasks.jobs import Priority, WorkerId
from tasks.routing import DOORBELL, worker_queue
from tasks.store import keys
from tasks.store.connection import Client, as_ms, load_script, now_ms, translated

DOORBELL_MS = 2_000  # a pop lasts a second
WORKER_TTL_MS = 5_000  # a worker without a heartbeat for this long is gone
SCORE_PER_PRIORITY = 10**13  # see kw:waiting in keys

Ask = Literal["warm", "evict"]

_REPORT = msgspec.json.Decoder(WorkerReport)
_OFFER = msgspec.json.Decoder(ModelOffer)
_PLACEMENT = msgspec.json.Decoder(Placement)


def _remove_offers(pipe: Client, models: Collection[str]) -> None:
    pipe.hdel(keys.OFFERS, *models)
    pipe.zrem(keys.OFFERS_SEEN, *models)


class FleetStore:
    def __init__(self, client: Client) -> None:
        self._client = client
        # What was decoded last, so that what has not changed stays the very same object (tasks.controller.fleet_view).
        self._reports: dict[bytes, tuple[bytes, WorkerReport]] = {}
        self._placement: tuple[bytes, Placement] = (b"", Placement())
        self._place = load_script(client, "place")
        self._lead = load_script(client, "lead")

    @translated
    def heartbeat(self, report: WorkerReport, withdrawn: Collection[str] = ()) -> None:
        """Publish what a worker holds; its offers outlive it so that jobs can be admitted while it restarts.

        `withdrawn` are models that it has offered and offers no more; another worker may offer them still, and does so
        again with its next heartbeat."""
        now = now_ms(self._client)
        pipe = self._client.pipeline(transaction=False)
        pipe.hset(keys.WORKERS, report.id, msgspec.json.encode(report))
        pipe.zadd(keys.WORKERS_SEEN, {report.id: now})
        if report.offers:
            pipe.hset(keys.OFFERS, mapping={offer.id: msgspec.json.encode(offer) for offer in report.offers})
            pipe.zadd(keys.OFFERS_SEEN, {offer.id: now for offer in report.offers})
        if withdrawn:
            _remove_offers(pipe, withdrawn)
        pipe.execute()

    @translated
    def forget_worker(self, worker_id: WorkerId) -> None:
        pipe = self._client.pipeline(transaction=False)
        pipe.hdel(keys.WORKERS, worker_id)
        pipe.zrem(keys.WORKERS_SEEN, worker_id)
        pipe.delete(*keys.queue_notes(worker_id))  # no later worker has this id
        pipe.execute()

    @translated
    def fleet(self) -> Fleet:
        """Workers with a fresh heartbeat, in order of their ids."""
        pipe = self._client.pipeline(transaction=False)
        pipe.time()
        pipe.zrange(keys.WORKERS_SEEN, 0, -1, withscores=True)
        pipe.hgetall(keys.WORKERS)
        time, seen, reports = pipe.execute()
        now = as_ms(time)
        alive = [worker_id for worker_id, seen_ms in seen if seen_ms >= now - WORKER_TTL_MS]
        self._reports = {each: self._report(each, reports[each]) for each in sorted(alive) if each in reports}
        return Fleet(now_ms=now, workers=tuple(report for _, report in self._reports.values()))

    def _report(self, worker_id: bytes, payload: bytes) -> tuple[bytes, WorkerReport]:
        known = self._reports.get(worker_id)
        if known is not None and known[0] == payload:
            return known
        report = _REPORT.decode(payload)
        if known is not None and known[1].offers == report.offers:
            report = msgspec.structs.replace(report, offers=known[1].offers)
        return payload, report

    @translated
    def silent_workers(self, for_ms: int = WORKER_TTL_MS) -> list[WorkerId]:
        """Workers without a heartbeat for this long, still on record."""
        ids = self._client.zrangebyscore(keys.WORKERS_SEEN, "-inf", f"({now_ms(self._client) - for_ms}")
        return [WorkerId(worker_id.decode()) for worker_id in ids]

    @translated
    def last_runners(self, worker_id: WorkerId) -> tuple[RunnerReport, ...]:
        """What a worker held at its last heartbeat."""
        report = self._client.hget(keys.WORKERS, worker_id)
        return _REPORT.decode(report).runners if report else ()

    @translated
    def known_offers(self) -> tuple[ModelOffer, ...]:
        """The last known offer of every model, also of models whose workers are away."""
        return tuple(_OFFER.decode(offer) for offer in self._client.hvals(keys.OFFERS))

    @translated
    def forget_old_offers(self, older_than_ms: int) -> tuple[str, ...]:
        """Remove the offers that no worker has made for so long; all stay while no worker is there to make any."""
        now = now_ms(self._client)
        if not self._client.zcount(keys.WORKERS_SEEN, now - WORKER_TTL_MS, "+inf"):
            return ()
        models = self._client.zrangebyscore(keys.OFFERS_SEEN, "-inf", f"({now - older_than_ms}")
        old = tuple(model.decode() for model in models)
        if old:
            pipe = self._client.pipeline(transaction=False)
            _remove_offers(pipe, old)
            pipe.execute()
        return old

    @translated
    def queues(self) -> tuple[QueueReport, ...]:
        """Depth and age of the oldest job of every model that has waiting jobs."""
        pipe = self._client.pipeline(transaction=False)
        pipe.time()
        pipe.smembers(keys.WAITING_MODELS)
        time, waiting = pipe.execute()
        now, models = as_ms(time), sorted(model.decode() for model in waiting)
        if not models:
            return ()
        pipe = self._client.pipeline(transaction=False)
        for model in models:
            for priority in Priority:
                low, high = priority * SCORE_PER_PRIORITY, f"({(priority + 1) * SCORE_PER_PRIORITY}"
                pipe.zcount(keys.waiting(model), low, high)
                pipe.zrangebyscore(keys.waiting(model), low, high, 0, 1, withscores=True)
        replies = iter(pipe.execute())
        reports = []
        for model in models:
            classes = []
            for priority in Priority:
                depth, head = next(replies), next(replies)
                if head:
                    age_ms = max(0, now - int(head[0][1]) % SCORE_PER_PRIORITY)
                    classes.append(ClassBacklog(priority=int(priority), depth=depth, oldest_age_ms=age_ms))
            if classes:
                depth, age_ms = sum(each.depth for each in classes), max(each.oldest_age_ms for each in classes)
                reports.append(QueueReport(model=model, depth=depth, oldest_age_ms=age_ms, classes=tuple(classes)))
        return tuple(reports)

    @translated
    def broken_attempts(self) -> dict[tuple[str, str], int]:
        """How many attempts broke, by error code and model, since the store exists."""
        counts = self._client.hgetall(keys.BROKEN_ATTEMPTS)
        named = [(*name.decode().split(" ", 1), int(count)) for name, count in counts.items()]
        return {(code, model): count for code, model, count in named}

    @translated
    def count_load(self, model: str, load_ms: int, swap_ms: int) -> None:
        """A model became ready on some worker, `swap_ms` after the placement began to want it there."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hincrby(keys.LOADS, f"n {model}", 1)
        pipe.hincrby(keys.LOADS, f"ms {model}", load_ms)
        pipe.hincrby(keys.LOADS, f"swap {model}", swap_ms)
        pipe.execute()

    @translated
    def count_cold_start(self, model: str) -> None:
        """A job came while no runner had its model ready."""
        self._client.hincrby(keys.LOADS, f"cold {model}", 1)

    @translated
    def loads(self) -> dict[str, LoadCounts]:
        """By model, since the store exists."""
        figures = {name.decode(): int(value) for name, value in self._client.hgetall(keys.LOADS).items()}
        models = {name.partition(" ")[2] for name in figures}
        return {
            model: LoadCounts(
                loads=figures.get(f"n {model}", 0),
                load_ms=figures.get(f"ms {model}", 0),
                swap_ms=figures.get(f"swap {model}", 0),
                cold_starts=figures.get(f"cold {model}", 0),
            )
            for model in models
        }

    @translated
    def ask(self, model: str, what: Ask) -> None:
        """Leave an operator's wish for the controller; the newest per model counts."""
        self._client.hset(keys.ASKS, model, what)

    @translated
    def asks(self) -> dict[str, Ask]:
        return {model.decode(): ask.decode() for model, ask in self._client.hgetall(keys.ASKS).items()}

    @translated
    def take_ask(self, model: str) -> None:
        """Remove a wish that was acted on."""
        self._client.hdel(keys.ASKS, model)

    @translated
    def placement(self) -> Placement:
        payload = self._client.get(keys.PLACEMENT)
        if not payload:
            return Placement()
        if payload != self._placement[0]:
            self._placement = (payload, _PLACEMENT.decode(payload))
        return self._placement[1]

    @translated
    def place(self, placement: Placement, leader_id: str, leader_epoch: int) -> bool:
        """Write the desired placement and tell the workers; False when the leadership is gone or it is stale."""
        payload = msgspec.json.encode(placement)
        written = self._place(
            keys=[keys.PLACEMENT, keys.LEADER, keys.LEADER_EPOCH],
            args=[leader_id, leader_epoch, payload, placement.epoch],
        )
        if written:
            self._placement = (payload, placement)
            pipe = self._client.pipeline(transaction=False)
            for worker_id in placement.workers:
                pipe.publish(keys.hints(WorkerId(worker_id)), "placement")
            pipe.execute()
        return bool(written)

    @translated
    def lead(self, leader_id: str, lease_ms: int) -> int:
        """Take or keep the leadership; its epoch, or 0 when another controller leads."""
        return int(self._lead(keys=[keys.LEADER, keys.LEADER_EPOCH], args=[leader_id, lease_ms]))

    @translated
    def ring(self, worker_id: WorkerId) -> None:
        """End the worker's pop in flight, so that the next one names the queues that are open by then."""
        pipe = self._client.pipeline(transaction=True)
        pipe.lpush(worker_queue(worker_id), DOORBELL)
        pipe.pexpire(worker_queue(worker_id), DOORBELL_MS)
        pipe.execute()

    @translated
    def now_ms(self) -> int:
        """The store's clock."""
        return now_ms(self._client)
