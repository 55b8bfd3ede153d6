"""The checker finds every breach of the promise; each test breaks one thing in a flawless record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.jobs import JobState, Usage
from tasks.stream_events import End, NumberedEvent, Tokens, encode_event
from tests.chaos.checker import Connection, Evidence, Observation, Record, Reference, Submission, Transcript, check

JOB = "job_1"
REFERENCE = Reference(text="one two three", ids=(1, 2, 3), completion_tokens=3)
END = End(state=JobState.SUCCEEDED, finish_reason="length", usage=Usage(prompt_tokens=1, completion_tokens=3))


def stored(*events: NumberedEvent) -> tuple[tuple[int, bytes], ...]:
    return tuple((seq, encode_event(event)) for seq, event in enumerate(events, start=1))


WHOLE = stored(Tokens("one", (1,)), Tokens(" two", (2,)), Tokens(" three", (3,)), END)
RECORD = Record(state=JobState.SUCCEEDED, attempt=2, last_seq=4, text=REFERENCE.text, completion_tokens=3, stream=WHOLE)
SUBMISSION = Submission(job_id=JOB, reference=REFERENCE)
RESUMED = Transcript(
    job_id=JOB,
    reader="r",
    connections=(Connection(after=0, events=WHOLE[:2]), Connection(after=2, events=WHOLE[2:])),
)


def rules(
    record: Record | None = RECORD,
    *,
    submission: Submission = SUBMISSION,
    transcript: Transcript = RESUMED,
    seen: tuple[Observation, ...] = (),
) -> set[str]:
    evidence = Evidence(
        submissions=[submission],
        records={JOB: record} if record else {},
        transcripts=[transcript],
        observations={JOB: seen},
    )
    return {violation.rule for violation in check(evidence)}


def seen_by_reader(*connections: tuple[int, tuple[tuple[int, bytes], ...]]) -> Transcript:
    return replace(RESUMED, connections=tuple(Connection(after=after, events=events) for after, events in connections))


def was(state: JobState, attempt: int = 1, last_seq: int = 0) -> Observation:
    return Observation(state=state, attempt=attempt, last_seq=last_seq)


def test_flawless_record_has_no_violation():
    history = (was(JobState.QUEUED, 0), was(JobState.RUNNING), was(JobState.QUEUED, 1, 1), was(JobState.RUNNING, 2, 1))
    assert rules(seen=history) == set()


def test_missing_record_is_lost():
    assert rules(None) == {"lost"}


def test_job_that_never_ended_is_lost():
    record = replace(RECORD, state=JobState.RUNNING, stream=WHOLE[:3], last_seq=3, text=None, completion_tokens=None)
    assert rules(record, transcript=seen_by_reader((0, WHOLE[:3]))) == {"lost"}


def test_state_that_the_client_did_not_allow_is_lost():
    failed = stored(Tokens("one", (1,)), End(state=JobState.FAILED))
    record = replace(RECORD, state=JobState.FAILED, stream=failed, last_seq=2, text=None, completion_tokens=None)
    reader = seen_by_reader((0, failed))
    assert rules(record, transcript=reader) == {"lost"}
    allowed = replace(SUBMISSION, may_end=frozenset({JobState.SUCCEEDED, JobState.FAILED}))
    assert rules(record, transcript=reader, submission=allowed) == set()


def test_second_terminal_state_is_found():
    assert rules(seen=(was(JobState.FAILED, 2, 4),)) == {"ended-twice"}


@pytest.mark.parametrize(
    "history",
    [
        (was(JobState.RUNNING, 3), was(JobState.RUNNING, 2)),
        (was(JobState.RUNNING, 1, 3), was(JobState.RUNNING, 1, 2)),
        (was(JobState.QUEUED, 1), was(JobState.EXPIRED, 2, 4), was(JobState.QUEUED, 2, 4)),
    ],
)
def test_record_that_went_back_is_found(history: tuple[Observation, ...]):
    assert rules(seen=history) & {"went-back", "ended-twice"}


def test_gap_in_the_stream_is_found():
    record = replace(RECORD, stream=(WHOLE[0], *WHOLE[2:]))
    assert "stream-numbers" in rules(record)


def test_number_stored_twice_is_found():
    record = replace(RECORD, stream=(WHOLE[0], *WHOLE))
    assert "stream-numbers" in rules(record)


def test_record_that_counts_other_events_than_are_stored_is_found():
    assert rules(replace(RECORD, last_seq=5)) >= {"stream-numbers"}


def test_missing_end_is_found():
    assert "stream-end" in rules(
        replace(RECORD, stream=WHOLE[:3], last_seq=3), transcript=seen_by_reader((0, WHOLE[:3]))
    )


def test_second_end_is_found():
    twice = stored(Tokens(REFERENCE.text, (1, 2, 3)), END, END)
    assert rules(replace(RECORD, stream=twice, last_seq=3), transcript=seen_by_reader((0, twice))) == {"stream-end"}


def test_event_after_the_end_is_found():
    late = stored(Tokens("one two", (1, 2)), END, Tokens(" three", (3,)))
    assert rules(replace(RECORD, stream=late, last_seq=3), transcript=seen_by_reader((0, late))) == {"stream-end"}


def test_end_event_with_another_state_is_found():
    other = stored(Tokens(REFERENCE.text, (1, 2, 3)), End(state=JobState.CANCELLED))
    assert rules(replace(RECORD, stream=other, last_seq=2), transcript=seen_by_reader((0, other))) == {"stream-end"}


def test_repeated_token_is_found():
    doubled = stored(Tokens("one", (1,)), Tokens("one", (1,)), Tokens(" two three", (2, 3)), END)
    record = replace(RECORD, stream=doubled, text="oneone two three", completion_tokens=4)
    assert rules(record, transcript=seen_by_reader((0, doubled))) == {"text", "usage"}


def test_record_with_another_text_than_its_stream_is_found():
    assert rules(replace(RECORD, text="one two")) == {"text"}


def test_wrong_count_of_tokens_is_found():
    assert rules(replace(RECORD, completion_tokens=4)) == {"usage"}


def test_cancelled_job_may_have_part_of_the_text_and_no_other():
    either = replace(SUBMISSION, may_end=frozenset({JobState.SUCCEEDED, JobState.CANCELLED}))
    for text, expected in (("one", set()), ("two", {"text"})):
        events = stored(Tokens(text, (1,)), End(state=JobState.CANCELLED))
        record = Record(state=JobState.CANCELLED, attempt=1, last_seq=2, text=text, completion_tokens=1, stream=events)
        assert rules(record, submission=either, transcript=seen_by_reader((0, events))) == expected


@pytest.mark.parametrize(
    "transcript",
    [
        seen_by_reader((0, WHOLE[:2]), (2, WHOLE[1:])),  # what it had came again
        seen_by_reader((0, WHOLE[:1]), (1, WHOLE[2:])),  # a gap at the seam
        seen_by_reader((0, (WHOLE[0], WHOLE[2], WHOLE[1], WHOLE[3]))),  # out of order
        seen_by_reader((0, WHOLE[:3])),  # no end
        seen_by_reader(),  # nothing at all
    ],
)
def test_reader_that_did_not_see_every_number_once_is_found(transcript: Transcript):
    assert rules(transcript=transcript) == {"reader-numbers"}


def test_reader_that_left_on_purpose_may_have_part_of_the_stream():
    assert rules(transcript=replace(seen_by_reader((0, WHOLE[:2])), is_whole=False)) == set()


def test_reader_that_saw_other_content_is_found():
    forged = (*WHOLE[:2], (3, encode_event(Tokens(" four", (4,)))), WHOLE[3])
    assert rules(transcript=seen_by_reader((0, forged))) == {"reader-content"}
