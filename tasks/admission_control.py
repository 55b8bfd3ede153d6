"""What speaks against a new job before its record is written, and what its client is told about time.

Decides from samples (`AdmissionGauges`) and the fleet as its caller knows it; the arithmetic is in `tasks.forecast`.
"""

from __future__ import annotations

from tasks.errors import DeadlineCannotBeMet, QueueFull, StoreFull
from tasks.fleet import Fleet, ModelOffer
from tasks.forecast import QueueRoom, Seats, ServiceTime, jobs_per_s, predicted_wait_ms, retry_after_s, seats
from tasks.jobs import Priority
from tasks.settings import StoreSettings
from tasks.store.gauges import AdmissionGauges

RETRY_AFTER_UNKNOWN_S = 5  # nothing was measured yet


class AdmissionControl:
    def __init__(self, gauges: AdmissionGauges, settings: StoreSettings) -> None:
        self._gauges = gauges
        self._max_fill = settings.max_store_fill
        self._known_seats: tuple[Fleet | None, dict[str, Seats]] = (None, {})
        self._max_per_model = settings.max_queue_per_model
        self._max_total = settings.max_queue_total

    def store_full(self) -> StoreFull | None:
        """Admission stops while there is still room for the streams that run to finish."""
        fill = self._gauges.store_fill()
        if fill < self._max_fill:
            return None
        return StoreFull(fill=fill, limit=self._max_fill, retry_after_s=RETRY_AFTER_UNKNOWN_S)

    def too_late(
        self, offer: ModelOffer, fleet: Fleet, priority: Priority, *, ahead: int, deadline_ms: int, now_ms: int
    ) -> DeadlineCannotBeMet | None:
        """Only when what was measured says that the job can't even start before its deadline."""
        service = self._service(offer.id)
        if service is None or not service.is_trusted:
            return None
        wait_ms = predicted_wait_ms(ahead=ahead, seats=seats(offer, fleet, priority), service=service)
        if wait_ms is None or now_ms + wait_ms < deadline_ms:
            return None
        return DeadlineCannotBeMet(
            ahead=ahead, predicted_wait_s=wait_ms / 1000, deadline_in_s=(deadline_ms - now_ms) / 1000
        )

    def predicted_wait_s(self, offer: ModelOffer, fleet: Fleet, priority: Priority, *, ahead: int) -> float | None:
        """Until a job with `ahead` jobs before it starts; None when that can't be said."""
        where = seats(offer, fleet, priority)
        wait_ms = predicted_wait_ms(ahead=ahead, seats=where, service=self._service(offer.id))
        return None if wait_ms is None else round(wait_ms / 1000, 1)

    def room(self, offer: ModelOffer, fleet: Fleet, *, depth: int, total: int) -> QueueRoom:
        """Under the bound that is nearer, with `depth` jobs of the model and `total` in all waiting."""
        own, of_all = self._max_per_model - depth, self._max_total - total
        if of_all < own:
            return QueueRoom(limit=self._max_total, remaining=max(0, of_all))
        service = self._service(offer.id)
        wait_ms = None
        if service is not None and service.is_trusted:
            wait_ms = predicted_wait_ms(ahead=depth, seats=self._seats(offer, fleet), service=service)
        empty_in_s = None if wait_ms is None else wait_ms / 1000
        return QueueRoom(limit=self._max_per_model, remaining=max(0, own), empty_in_s=empty_in_s)

    def with_retry_after(self, full: QueueFull, fleet: Fleet) -> QueueFull:
        """The same refusal with the time in which the line will have moved."""
        times, offers = self._gauges.service_times(), fleet.offers()
        models = [full.model] if full.model is not None else sorted(offers)
        rate = jobs_per_s((seats(offers[model], fleet), times.get(model)) for model in models if model in offers)
        seconds = retry_after_s(depth=full.depth, rate=rate, unknown_s=RETRY_AFTER_UNKNOWN_S)
        return QueueFull(scope=full.scope, depth=full.depth, limit=full.limit, retry_after_s=seconds, model=full.model)

    def _seats(self, offer: ModelOffer, fleet: Fleet) -> Seats:
        """Counted once per sight of the fleet: every admission asks."""
        seen, known = self._known_seats
        if seen is not fleet:
            known = {}
            self._known_seats = (fleet, known)
        if offer.id not in known:
            known[offer.id] = seats(offer, fleet)
        return known[offer.id]

    def _service(self, model: str) -> ServiceTime | None:
        return self._gauges.service_times().get(model)
