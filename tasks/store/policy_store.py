"""What the policy remembers between ticks, what it counts, and what it decided."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from tasks.controller.decisions import Decision
from tasks.controller.policy_state import PolicyState
from tasks.store import keys
from tasks.store.connection import Client, load_script, translated
from tasks.store.gauges import decode_service

MAX_DECISIONS = 2000
MAX_READ = 10_000

_STATE = msgspec.json.Decoder(PolicyState)
_DECISION = msgspec.json.Decoder(Decision)


class PolicyStore:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._remember = load_script(client, "remember")

    @translated
    def state(self) -> PolicyState:
        """As the last leader left it. What an older or newer version wrote counts as nothing remembered."""
        payload = self._client.get(keys.POLICY)
        try:
            return _STATE.decode(payload) if payload else PolicyState()
        except msgspec.DecodeError:
            return PolicyState()

    @translated
    def take_arrivals(self) -> dict[tuple[str, int], int]:
        """Jobs admitted since the last call, by model and priority. A leader that dies right after loses a count."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hgetall(keys.ARRIVALS)
        pipe.delete(keys.ARRIVALS)
        counts, _ = pipe.execute()
        found = {}
        for name, count in counts.items():
            priority, model = name.decode().split(" ", 1)
            found[model, int(priority)] = int(count)
        return found

    @translated
    def service_ms(self) -> dict[str, float]:
        """Mean run time of a job, of every model that has served any."""
        times = self._client.hgetall(keys.SERVICE)
        return {model.decode(): decode_service(value).mean_ms for model, value in times.items()}

    @translated
    def remember(
        self, state: PolicyState | None, decisions: Sequence[Decision], leader_id: str, leader_epoch: int
    ) -> bool:
        """Keep the state (None: unchanged) and append the decisions; False when the leadership is gone."""
        payload = b"" if state is None else msgspec.json.encode(state)
        entries = [part for each in decisions for part in (f"{each.action} {each.code}", msgspec.json.encode(each))]
        return bool(
            self._remember(
                keys=[keys.POLICY, keys.DECISIONS, keys.LEADER, keys.LEADER_EPOCH, keys.DECISION_COUNTS],
                args=[leader_id, leader_epoch, payload, MAX_DECISIONS, *entries],
            )
        )

    @translated
    def note(self, decision: Decision) -> None:
        """Append what a worker decided on its own."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hincrby(keys.DECISION_COUNTS, f"{decision.action} {decision.code}", 1)
        pipe.xadd(keys.DECISIONS, {"d": msgspec.json.encode(decision)}, maxlen=MAX_DECISIONS, approximate=True)
        pipe.execute()

    @translated
    def decisions(self, limit: int, *, models: Collection[str] = ()) -> list[Decision]:
        """The newest first; of these models if any are given. What another version wrote unreadably is left out."""
        entries = self._client.xrevrange(keys.DECISIONS, count=MAX_READ if models else limit)
        found = [_decision(fields[b"d"]) for _, fields in entries]
        return [each for each in found if each is not None and (not models or each.model in models)][:limit]

    @translated
    def decision_counts(self) -> dict[tuple[str, str], int]:
        """How many decisions there were, by action and code, since the store exists."""
        counts = self._client.hgetall(keys.DECISION_COUNTS)
        named = [(*name.decode().split(" ", 1), int(count)) for name, count in counts.items()]
        return {(action, code): count for action, code, count in named}


def _decision(payload: bytes) -> Decision | None:
    try:
        return _DECISION.decode(payload)
    except msgspec.DecodeError:
        return None
