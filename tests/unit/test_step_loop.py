"""Slots, parking and shared prefixes of the step loop, on the fake backend whose text shows the slightest slip."""

from __future__ import annotations

from itertools import pairwise, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.generation import SamplingParams
from tasks.jobs import Priority
from tests.support.arrivals import arrivals
from tests.support.generating import Heard, listen, request, run_loop
from workers.engine.adapter_turns import TURN_STEPS
from workers.engine.backend import Interrupted, NoRoom
from workers.engine.fake import TOKEN_BYTES, FakeBackend, FakeState
from workers.engine.fake_behaviour import FakeBehaviour
from workers.engine.parked_states import ParkedStates
from workers.engine.sampling import Floats
from workers.engine.scheduler import PrefillPace
from workers.engine.slots import COMPUTED_PER_MOVED, WORTH_MOVING
from workers.engine.step_loop import StepLoop
from workers.messages import Generate

CHUNK, CONTEXT = 24, 200
SYSTEM = "You are a quiet river stone. "
PROMPTS = (SYSTEM + "Say one.", SYSTEM + "Say two.", SYSTEM * 3 + "Say three.", "short", "quite another matter " * 4)


class WatchedBackend(FakeBackend):
    """Checks every batch, counts what was computed and moved, and has room for so many tokens in all."""

    def __init__(self, slots: int, *, room: int = 10**6, cuts_tails: bool = True) -> None:
        super().__init__(slots, FakeBehaviour())
        self.cuts_tails = cuts_tails
        self.room = room
        self.num_slots = slots
        self.computed = self.copies = self.restores = self.saves = 0
        self.adapters: list[str] = []  # of each batch

    def decode(self, batch, adapter: str = "") -> Floats:
        self.adapters.append(adapter)
        slots = [part.slot for part in batch]
        assert slots == sorted(set(slots)) and set(slots) <= set(range(self.num_slots))
        assert sum(len(part.tokens) for part in batch if len(part.tokens) > 1) <= CHUNK
        tokens = sum(len(part.tokens) for part in batch)
        if tokens + sum(self.length(slot) for slot in range(self.num_slots)) > self.room:
            raise NoRoom
        self.computed += tokens
        return super().decode(batch, adapter)

    def keep_prefix(self, slot: int, length: int) -> int:
        cuts = self.cuts_tails or length == self.length(slot)
        return super().keep_prefix(slot, length if cuts else 0)

    def copy(self, source: int, target: int) -> None:
        self.copies += 1
        super().copy(source, target)

    def save(self, slot: int, limit_bytes: int) -> FakeState | None:
        self.saves += 1
        return super().save(slot, limit_bytes)

    def restore(self, slot: int, state) -> bool:
        self.restores += 1
        assert isinstance(state, FakeState)
        return super().restore(slot, state)


def loop_of(backend: WatchedBackend, *, parked_bytes: int = 10**6) -> StepLoop:
    return StepLoop(
        backend,
        slots=backend.num_slots,
        context_length=CONTEXT,
        prefill_chunk=CHUNK,
        parked_bytes=parked_bytes,
        monotonic_s=lambda: 0.0,
    )


def add(
    loop: StepLoop,
    key: int,
    prompt: str,
    priority: Priority = Priority.DEFAULT,
    *,
    max_tokens: int = 12,
    seed: int = 0,
    adapter: str = "",
) -> None:
    what = request(
        prompt,
        max_tokens=max_tokens,
        ignore_eos=True,
        sampling=SamplingParams(temperature=1.0 if seed else 0.0, seed=seed),
    )
    message = Generate(key=key, request=what, priority=priority, adapter=adapter)
    loop.add(loop.sequence(message, tuple(prompt.encode())))


def alone(prompt: str, **options) -> Heard:
    loop = loop_of(WatchedBackend(1))
    add(loop, 1, prompt, **options)
    return run_loop(loop)[1]


# ---- anything goes


@settings(max_examples=150, deadline=None)
@given(
    arrivals(PROMPTS, max_tokens=25, max_size=14, adapters=("", "", "formal", "rhyming")),
    st.integers(1, 4),
    st.sampled_from([0, 60 * TOKEN_BYTES, 10**6]),
    st.booleans(),
    st.sampled_from([150, 230, 10**6]),
)
def test_everybody_ends_with_the_text_that_it_would_have_alone(plan, slots, parked_bytes, cuts_tails, room):
    backend = WatchedBackend(slots, room=room, cuts_tails=cuts_tails)
    loop = loop_of(backend, parked_bytes=parked_bytes)
    heard: dict[int, Heard] = {}
    for step in range(2000):
        for key, each in enumerate(plan):
            if each.step == step:
                options = {"max_tokens": each.max_tokens, "seed": each.seed, "adapter": each.adapter}
                add(loop, key, each.prompt, each.priority, **options)
            if each.cancel_after is not None and each.step + each.cancel_after == step:
                loop.cancel(key)
        if loop.has_work:
            listen(loop, heard)
        elif step > 60:
            break
        check_slots(loop, slots, parked_bytes)
    assert set(heard) == set(range(len(plan)))
    for key, each in enumerate(plan):
        whole = alone(each.prompt, max_tokens=each.max_tokens, seed=each.seed, adapter=each.adapter)
        if heard[key].done.finish_reason is None:
            assert each.cancel_after is not None
            assert whole.ids[: len(heard[key].ids)] == heard[key].ids
        else:
            assert (heard[key].ids, heard[key].text) == (whole.ids, whole.text)


def check_slots(loop: StepLoop, count: int, parked_bytes: int) -> None:
    slots, waiting = loop._slots, loop._waiting
    taken = [sequence.slot for sequence in slots.running]
    assert taken == sorted(set(taken))
    assert slots.free.isdisjoint(taken) and len(slots.free) + len(taken) == count
    assert slots._parked.used_bytes == sum(entry.state.nbytes for entry in slots._parked) <= parked_bytes
    urgent = [each for each in waiting if each.priority is not Priority.BATCH and each.waits_for is None]
    if urgent and len(taken) == count and all(each.arrival < loop._arrivals for each in urgent):
        assert all(each.priority is not Priority.BATCH for each in slots.running)


# ---- priority and parking


def test_batch_sequence_is_parked_for_urgent_work_and_goes_on_from_memory():
    backend = WatchedBackend(2)
    loop = loop_of(backend)
    heard: dict[int, Heard] = {}
    for key in (1, 2):
        add(loop, key, PROMPTS[4][key:], Priority.BATCH, max_tokens=40)
    for _ in range(15):
        listen(loop, heard)
    said = len(heard[2].ids)
    add(loop, 3, "urgent", Priority.INTERACTIVE, max_tokens=5)
    for _ in range(5):
        listen(loop, heard)
    assert heard[3].done.finish_reason == "length"
    assert len(heard[1].ids) > said
    assert len(heard[2].ids) == said
    run_loop(loop, heard)
    assert backend.restores == 1
    prompts = sum(len(PROMPTS[4]) - key for key in (1, 2)) + len("urgent")
    assert backend.computed == prompts + 39 + 39 + 4  # nothing twice
    for key in (1, 2):
        assert heard[key].text == alone(PROMPTS[4][key:], max_tokens=40).text


def test_parked_sequence_whose_slot_was_left_alone_needs_no_copy():
    backend = WatchedBackend(1)
    loop = loop_of(backend)
    heard: dict[int, Heard] = {}
    add(loop, 1, "a batch job of some length", Priority.BATCH, max_tokens=10)
    listen(loop, heard)
    listen(loop, heard)
    add(loop, 2, "urgent", Priority.INTERACTIVE)
    loop.cancel(2)
    run_loop(loop, heard)
    assert (backend.restores, backend.computed) == (0, len("a batch job of some length") + 9)


def test_only_batch_work_makes_room():
    loop = loop_of(WatchedBackend(1))
    heard: dict[int, Heard] = {}
    add(loop, 1, "first", Priority.DEFAULT, max_tokens=9)
    listen(loop, heard)
    add(loop, 2, "second", Priority.INTERACTIVE, max_tokens=1)
    while 2 not in heard:
        listen(loop, heard)
    assert heard[1].done.completion_tokens == 9


def test_closed_slots_are_never_written_to_and_serve_once_they_are_open():
    backend = WatchedBackend(3)
    loop = loop_of(backend)
    loop.open_slots(1)
    for number, prompt in enumerate(PROMPTS[:3]):
        add(loop, number, prompt)
    heard = run_loop(loop)
    assert [heard[number].text for number in range(3)] == [alone(prompt).text for prompt in PROMPTS[:3]]
    assert [backend.length(slot) > 0 for slot in range(3)] == [True, False, False]
    loop.open_slots(2)
    for number, prompt in enumerate(PROMPTS[:3]):
        add(loop, number, prompt)
    heard = run_loop(loop)
    assert [heard[number].text for number in range(3)] == [alone(prompt).text for prompt in PROMPTS[:3]]
    assert [backend.length(slot) > 0 for slot in range(3)] == [True, True, False]


def test_waiting_line_serves_urgent_work_first_and_equals_in_order():
    loop = loop_of(WatchedBackend(1))
    ended: list[int] = []
    for key, priority in enumerate([Priority.BATCH, Priority.DEFAULT, Priority.BATCH, Priority.INTERACTIVE]):
        add(loop, key, f"number {key}", priority, max_tokens=2)
    while loop.has_work:
        ended += [output.key for output in loop.step() if not hasattr(output, "ids")]
    assert ended == [3, 1, 0, 2]


def test_batch_work_alone_does_not_shorten_the_chunk_of_an_urgent_prompt():
    now = [0.0]

    class SlowBackend(WatchedBackend):
        def decode(self, batch, adapter: str = "") -> Floats:
            now[0] += 0.01 * sum(len(part.tokens) for part in batch)
            return super().decode(batch, adapter)

    def steps_until_first_token(company: Priority) -> int:
        loop = StepLoop(SlowBackend(2), slots=2, context_length=1000, prefill_chunk=400, monotonic_s=lambda: now[0])
        heard: dict[int, Heard] = {}
        add(loop, 1, "company " * 20, company, max_tokens=100)
        for _ in range(10):
            listen(loop, heard)
        loop.add(loop.sequence(Generate(key=2, request=request("x")), tuple(b"x" * 500)))
        steps = 0
        while 2 not in heard:
            steps += 1
            listen(loop, heard)
        return steps

    globals()["CHUNK"], before = 400, CHUNK
    try:
        assert steps_until_first_token(Priority.BATCH) * 2 < steps_until_first_token(Priority.DEFAULT)
    finally:
        globals()["CHUNK"] = before


# ---- shared prefixes


@pytest.mark.parametrize(("step_s", "token_s", "median_of_last"), [(0.005, 0.001, 0.7), (0.004, 0.00001, 1.0)])
def test_of_a_burst_of_prompts_most_have_their_first_token_long_before_the_last_unless_steps_are_the_cost(
    step_s, token_s, median_of_last
):
    now = [0.0]

    class PacedBackend(FakeBackend):
        def decode(self, batch, adapter: str = "") -> Floats:
            now[0] += step_s + token_s * sum(len(part.tokens) for part in batch)
            return super().decode(batch, adapter)

    loop = StepLoop(
        PacedBackend(8, FakeBehaviour()), slots=8, context_length=1000, prefill_chunk=512, monotonic_s=lambda: now[0]
    )
    add(loop, 0, "m" * 100)
    add(loop, 1, "n" * 100)
    run_loop(loop)  # what steps and tokens cost is known
    for key in range(8):
        add(loop, key, f"{key}" * (33 + key), max_tokens=40)
    began, gaps_s = now[0], []
    first_s: dict[int, float] = {}
    latest_s: dict[int, float] = {}
    while loop.has_work:
        for output in loop.step():
            first_s.setdefault(output.key, now[0] - began)
            gaps_s.append(now[0] - latest_s.get(output.key, now[0]))
            latest_s[output.key] = now[0]
    last_s = max(first_s.values())
    assert sorted(first_s.values())[4] <= median_of_last * last_s
    assert last_s < 1.3 * (step_s + 8 * 37 * token_s)  # than all at once
    assert max(gaps_s) <= PrefillPace.LONGEST_S


def test_of_a_burst_on_a_slow_device_the_last_prompt_waits_for_few_steps_of_those_before_it():
    """Also when the newest step without a prompt was of one sequence, and took a tenth of what one of all takes."""
    now, token_s, step_s, clients = [0.0], 0.006, 0.01, 16

    class PacedBackend(FakeBackend):
        def decode(self, batch, adapter: str = "") -> Floats:
            now[0] += step_s + token_s * sum(len(part.tokens) for part in batch)
            return super().decode(batch, adapter)

    backend = PacedBackend(clients, FakeBehaviour())
    loop = StepLoop(backend, slots=clients, context_length=1000, prefill_chunk=512, monotonic_s=lambda: now[0])
    add(loop, 0, "m" * 100, max_tokens=20)
    add(loop, 1, "n" * 100, max_tokens=30)
    run_loop(loop)  # what steps and tokens cost is known
    for key in range(clients):
        add(loop, key, chr(65 + key) * 18, max_tokens=32)
    began = now[0]
    first_s: dict[int, float] = {}
    latest_s: dict[int, float] = {}
    gaps_s, tokens_before_last = [], 0
    while loop.has_work:
        for output in loop.step():
            first_s.setdefault(output.key, now[0] - began)
            gaps_s.append(now[0] - latest_s.get(output.key, now[0]))
            latest_s[output.key] = now[0]
            tokens_before_last += len(first_s) < clients
    assert tokens_before_last <= 3 * clients
    assert max(first_s.values()) < 1.25 * (step_s + clients * 18 * token_s)  # than all at once
    assert max(gaps_s) <= PrefillPace.LONGEST_S + step_s


def test_who_generates_waits_no_longer_for_prompts_because_others_run_under_another_adapter():
    now = [0.0]

    class PacedBackend(FakeBackend):
        def decode(self, batch, adapter: str = "") -> Floats:
            now[0] += 0.005 + 0.001 * sum(len(part.tokens) for part in batch)
            return super().decode(batch, adapter)

    loop = StepLoop(
        PacedBackend(12, FakeBehaviour()), slots=12, context_length=1000, prefill_chunk=512, monotonic_s=lambda: now[0]
    )
    add(loop, 0, "m" * 100)
    add(loop, 1, "n" * 100)
    heard = run_loop(loop)  # what steps and tokens cost is known
    add(loop, 2, "one", adapter="formal", max_tokens=500)
    add(loop, 3, "two", max_tokens=500)
    while not {2, 3} <= heard.keys():
        listen(loop, heard)
    for key in range(4, 14):
        add(loop, key, chr(60 + key) * 60, adapter="formal", max_tokens=2)
    latest_s, longest_s = now[0], 0.0
    while not all(key in heard for key in range(4, 14)):
        before = len(heard[2].ids)
        listen(loop, heard)
        if len(heard[2].ids) > before:
            latest_s, longest_s = now[0], max(longest_s, now[0] - latest_s)
    assert max(longest_s, now[0] - latest_s) <= 2 * PrefillPace.LONGEST_BESIDE_S


def test_identical_prompts_that_arrive_together_are_computed_once():
    backend = WatchedBackend(4)
    loop = loop_of(backend)
    prompt = SYSTEM * 3
    for key in range(4):
        add(loop, key, prompt, seed=key + 1)
    heard = run_loop(loop)
    assert backend.copies == 3
    assert backend.computed == len(prompt) + 3 + 4 * 11  # each copy decodes the last token again
    assert [heard[key].done.cached_tokens for key in range(4)] == [0, *[len(prompt) - 1] * 3]
    for key in range(4):
        assert heard[key].text == alone(prompt, seed=key + 1).text


def test_prompts_with_a_common_beginning_wait_for_it_and_copy_it():
    backend = WatchedBackend(3)
    loop = loop_of(backend)
    prompts = [SYSTEM * 3 + f"{number} and then some" for number in range(3)]
    for key, prompt in enumerate(prompts):
        add(loop, key, prompt)
    heard = run_loop(loop)
    shared = len(SYSTEM) * 3
    assert [heard[key].done.cached_tokens for key in range(3)] == [0, shared, shared]
    assert [heard[key].text for key in range(3)] == [alone(prompt).text for prompt in prompts]


def test_leader_that_is_cancelled_leaves_nobody_waiting():
    loop = loop_of(WatchedBackend(2))
    heard: dict[int, Heard] = {}
    for key in (1, 2):
        add(loop, key, SYSTEM * 4)
    listen(loop, heard)
    loop.cancel(1)
    assert run_loop(loop, heard)[2].text == alone(SYSTEM * 4).text


def test_urgent_prompt_does_not_wait_for_the_prefill_of_batch_work():
    loop = loop_of(WatchedBackend(2))
    heard: dict[int, Heard] = {}
    add(loop, 1, SYSTEM * 4, Priority.BATCH)
    listen(loop, heard)
    add(loop, 2, SYSTEM * 4, Priority.INTERACTIVE)
    while 2 not in heard:
        assert 1 not in heard
        listen(loop, heard)


class HurriedBackend(WatchedBackend):
    """In each decode somebody urgent arrives, and the client of sequence 9 leaves."""

    loop: StepLoop
    is_stopped = False

    def decode(self, batch, adapter: str = "") -> Floats:
        self.loop.hurry()
        self.loop.interrupt(9)
        if self.is_stopped:
            self.is_stopped = False
            raise Interrupted
        return super().decode(batch, adapter)

    def interrupt(self) -> None:
        self.is_stopped = True


def test_batch_work_gets_on_however_many_urgent_ones_hurry() -> None:
    backend = HurriedBackend(2)
    loop = backend.loop = loop_of(backend)
    add(loop, 1, PROMPTS[2], Priority.BATCH)
    add(loop, 2, "short", Priority.BATCH, adapter="tuned")
    heard = run_loop(loop)
    assert heard[1].text == alone(PROMPTS[2]).text
    assert heard[2].text == alone("short", adapter="tuned").text


def test_decode_of_states_that_can_not_be_cut_is_stopped_for_nobody() -> None:
    backend = HurriedBackend(2, cuts_tails=False)
    loop = backend.loop = loop_of(backend)
    add(loop, 1, PROMPTS[2], Priority.BATCH)
    add(loop, 9, PROMPTS[4], Priority.BATCH)
    assert run_loop(loop)[1].text == alone(PROMPTS[2]).text
    assert backend.computed == sum(len(prompt) + 11 for prompt in (PROMPTS[2], PROMPTS[4]))


def test_conversation_is_found_again_in_memory_after_its_slot_was_overwritten():
    backend = WatchedBackend(1)
    loop = loop_of(backend)
    heard: dict[int, Heard] = {}
    add(loop, 1, PROMPTS[4])
    run_loop(loop, heard)
    add(loop, 2, SYSTEM * 2)
    run_loop(loop, heard)
    turn = PROMPTS[4] + "and more"
    add(loop, 3, turn)
    run_loop(loop, heard)
    assert backend.restores == 1
    assert heard[3].done.cached_tokens == len(PROMPTS[4])
    assert heard[3].text == alone(turn).text


def test_conversation_that_the_next_newcomer_overwrites_is_saved_while_there_is_no_work():
    backend = WatchedBackend(2)
    loop = loop_of(backend)
    add(loop, 1, SYSTEM * 2)
    run_loop(loop)
    loop.rest()  # there is an empty slot
    add(loop, 2, PROMPTS[4])
    loop.rest()  # there is work
    run_loop(loop)
    assert backend.saves == 0
    loop.rest()
    loop.rest()
    saves = backend.saves
    assert saves == 1
    add(loop, 3, "something else altogether")
    run_loop(loop)
    assert backend.saves == saves, "the newcomer does not wait for that"
    add(loop, 4, SYSTEM * 2 + "and on")
    assert run_loop(loop)[4].done.cached_tokens >= len(SYSTEM) * 2


def test_finished_line_of_a_batch_serves_in_its_slot_but_takes_no_memory_from_conversations():
    backend = WatchedBackend(1)
    loop = loop_of(backend)
    heard: dict[int, Heard] = {}
    add(loop, 1, SYSTEM + "the first line of a batch", Priority.BATCH)
    run_loop(loop, heard)
    add(loop, 2, SYSTEM + "the second one", Priority.BATCH)
    run_loop(loop, heard)
    assert heard[2].done.cached_tokens == len(SYSTEM) + len("the ")
    add(loop, 3, "quite another matter")
    run_loop(loop, heard)
    add(loop, 4, SYSTEM + "the second one")
    run_loop(loop, heard)
    assert (backend.restores, heard[4].done.cached_tokens) == (0, 0)


@pytest.mark.parametrize(("limit_tokens", "found"), [(0, 0), (50, 0), (500, len(PROMPTS[4]))])
def test_memory_for_parked_states_is_bounded(limit_tokens, found):
    backend = WatchedBackend(1)
    loop = loop_of(backend, parked_bytes=limit_tokens * TOKEN_BYTES)
    for key, prompt in enumerate([PROMPTS[4], SYSTEM * 2]):
        add(loop, key, prompt)
        run_loop(loop)
    add(loop, 9, PROMPTS[4] + "?")
    assert run_loop(loop)[9].done.cached_tokens == found


# ---- adapters


def test_what_was_computed_under_one_adapter_is_never_used_under_another():
    backend = WatchedBackend(3)
    loop = loop_of(backend)
    prompt = SYSTEM * 3
    for key, adapter in enumerate(["", "formal", "rhyming"]):
        add(loop, key, prompt, adapter=adapter)  # together: nobody waits for another one's prefill
    heard = run_loop(loop)
    assert [heard[key].done.cached_tokens for key in range(3)] == [0, 0, 0]
    assert (backend.copies, backend.restores) == (0, 0)
    for key, adapter in enumerate(["", "formal", "rhyming"]):
        add(loop, 3 + key, prompt, adapter=adapter)  # from the idle slots
    heard = run_loop(loop, heard)
    assert [heard[3 + key].done.cached_tokens for key in range(3)] == [len(prompt) - 1] * 3
    for key, adapter in enumerate(["", "formal", "rhyming"]):
        assert heard[key].text == heard[3 + key].text == alone(prompt, adapter=adapter).text


def test_conversation_in_memory_is_found_under_its_own_adapter_only():
    backend = WatchedBackend(1)
    loop = loop_of(backend)
    heard: dict[int, Heard] = {}
    turn = PROMPTS[4] + "and more"
    for key, (prompt, adapter) in enumerate([(PROMPTS[4], "formal"), (SYSTEM * 2, ""), (turn, ""), (turn, "formal")]):
        add(loop, key, prompt, adapter=adapter)
        run_loop(loop, heard)
    assert [heard[key].done.cached_tokens for key in range(4)] == [0, 0, 0, len(PROMPTS[4])]
    assert heard[3].text == alone(turn, adapter="formal").text


def test_sequences_of_all_adapters_get_on_and_few_batches_change_the_adapter():
    backend = WatchedBackend(4)
    loop = loop_of(backend)
    heard: dict[int, Heard] = {}
    for key, adapter in enumerate(["", "", "formal", "rhyming"]):
        add(loop, key, f"number {key}", adapter=adapter, max_tokens=100)
    longest_wait = dict.fromkeys(range(4), 0)
    last_step = dict.fromkeys(range(4), 0)
    for step in range(150):
        spoken = {key: len(each.ids) for key, each in heard.items()}
        listen(loop, heard)
        for key in heard:
            if len(heard[key].ids) > spoken.get(key, 0):
                longest_wait[key] = max(longest_wait[key], step - last_step[key])
                last_step[key] = step
    assert max(longest_wait.values()) <= 2 * TURN_STEPS + 1
    changes = sum(one != other for one, other in pairwise(backend.adapters))
    assert len(backend.adapters) / TURN_STEPS - 1 <= changes <= len(backend.adapters) / TURN_STEPS + 1


def test_prompts_of_several_adapters_take_no_longer_together_than_one_alone():
    backend = WatchedBackend(3)
    loop = loop_of(backend)
    for key, adapter in enumerate(["", "formal", "rhyming"]):
        add(loop, key, f"{key}" * 150, adapter=adapter, max_tokens=1)
    for _ in range(10):
        before = backend.computed
        loop.step()
        assert backend.computed - before == CHUNK // 3  # so that a round of all adapters reads one chunk


def test_batch_work_under_one_adapter_sits_out_an_urgent_prompt_under_another():
    backend = WatchedBackend(2)
    loop = loop_of(backend)
    heard: dict[int, Heard] = {}
    add(loop, 1, "batch work", Priority.BATCH, adapter="formal", max_tokens=60)
    for _ in range(5):
        listen(loop, heard)
    add(loop, 2, "urgent " * 20, Priority.INTERACTIVE, max_tokens=40)
    backend.adapters.clear()
    while 2 not in heard:
        listen(loop, heard)
    assert set(backend.adapters) == {""}
    run_loop(loop, heard)
    assert heard[1].text == alone("batch work", adapter="formal", max_tokens=60).text


# ---- a KV cache without room


def test_exhausted_cache_parks_the_last_in_rank_and_fails_nobody():
    backend = WatchedBackend(3, room=130)
    loop = loop_of(backend)
    for key in range(3):
        add(loop, key, f"{key} " * 15, max_tokens=60)
    heard = run_loop(loop)
    assert [heard[key].done.completion_tokens for key in range(3)] == [60, 60, 60]
    assert [heard[key].text for key in range(3)] == [alone(f"{key} " * 15, max_tokens=60).text for key in range(3)]


def test_sequence_that_is_alone_in_a_full_cache_has_reached_its_length():
    loop = loop_of(WatchedBackend(2, room=40))
    add(loop, 1, "x" * 30, max_tokens=50)
    add(loop, 2, "y" * 10, max_tokens=5)
    heard = run_loop(loop)
    assert (heard[1].done.finish_reason, heard[1].done.completion_tokens) == ("length", 11)
    assert heard[2].done.completion_tokens == 5


def test_state_that_can_not_be_cut_does_not_stand_for_a_shorter_one():
    for cuts_tails, kept in ((True, [[1, 2, 3]]), (False, [[1, 2], [1, 2, 3]])):
        states = ParkedStates(10**6, cuts_tails=cuts_tails)
        for tokens in ([1, 2], [1, 2, 3], [1, 2, 3]):
            states.put(tokens, FakeState(tokens, tokens))
        assert [entry.tokens for entry in states] == kept


def test_prefix_is_saved_although_a_longer_one_that_can_not_be_cut_runs():
    prefix = "the beginning of both prompts"
    backend = WatchedBackend(2, cuts_tails=False)
    loop = loop_of(backend)
    heard: dict[int, Heard] = {}
    add(loop, 1, prefix, max_tokens=1)
    add(loop, 2, prefix, max_tokens=60)
    while 1 not in heard or heard[1].end is None:
        listen(loop, heard)
    add(loop, 3, "somebody else takes the idle slot", max_tokens=1)
    run_loop(loop, heard)
    add(loop, 4, prefix + " and more", max_tokens=1)
    run_loop(loop, heard)
    assert backend.restores == 1


texts = st.text("ab", max_size=40).map(lambda end: SYSTEM[:18] + end)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, st.sampled_from(["", "formal"])), max_size=12), texts, st.booleans())
def test_the_parked_state_that_saves_most_is_found_among_many_that_begin_alike(parked, prompt, cuts_tails):
    backend = WatchedBackend(1, cuts_tails=cuts_tails)
    loop = loop_of(backend)
    for text, adapter in parked:
        tokens = list(text.encode())
        loop._slots._parked.put(tokens, FakeState(tokens, tokens), adapter)
    wanted = request(prompt)
    sequence = loop.sequence(Generate(key=1, request=wanted, adapter="formal"), tuple(prompt.encode()))

    def saved_by(entry) -> float:
        pairs = zip(entry.tokens, sequence.tokens[:-1], strict=False)
        length = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        is_usable = entry.adapter == "formal" and length >= WORTH_MOVING
        if not is_usable or not (cuts_tails or length == len(entry.tokens)):
            return 0.0
        return length - len(entry.tokens) / COMPUTED_PER_MOVED

    found = loop._slots._best_source(sequence)
    assert found.saves == max(map(saved_by, loop._slots._parked), default=0.0)
    assert found.saves == (saved_by(found.parked) if found.parked else 0.0)
