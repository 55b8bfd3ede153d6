"""Does what is on record keep the promise? Pure: no store, no clock, no processes.

The promise: *an acknowledged job reaches exactly one terminal state, and its stream shows every sequence number
once*. In rules, each with its name as it appears in a Violation:

| rule | what must hold |
|---|---|
| lost | every acknowledged job is on record and ended in a state that its client allowed |
| ended-twice | nobody ever saw two terminal states of one job, and none was ever left |
| went-back | attempt and seq of a record only grow; its state moves only as `tasks.jobs.NEXT` allows |
| stream-numbers | the stored stream is numbered 1..n, and n is what the record says |
| stream-end | exactly one end event, it is the last one, and its state is the record's |
| text | the record's text is the concatenation of the stream's, and both equal the reference |
| usage | as many tokens were counted as the undisturbed generation makes, and their ids are in the stream |
| reader-numbers | each reader saw 1..n once over all its connections, none of them sent what it had already |
| reader-content | each reader saw what is stored, byte for byte |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tasks.jobs import NEXT, JobState
from tasks.stream_events import End, NumberedEvent, Reset, Tokens, decode_numbered

SUCCEEDED_ONLY = frozenset({JobState.SUCCEEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What an undisturbed run of the request produces."""

    text: str
    ids: tuple[int, ...]  # as published; an end token that makes no text is counted but not among them
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job whose admission was acknowledged to its client."""

    job_id: str
    reference: Reference
    may_end: frozenset[JobState] = SUCCEEDED_ONLY


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A record as somebody saw it at some moment."""

    state: JobState
    attempt: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The record and the stream as they are when everything has come to rest."""

    state: JobState
    attempt: int
    last_seq: int
    text: str | None
    completion_tokens: int | None
    stream: tuple[tuple[int, bytes], ...]  # (number, event as stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What one connection of a reader brought, after the number from which it asked to go on."""

    after: int
    events: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """One reader's view of one job, over all its connections; `is_whole` unless it left before the end on purpose."""

    job_id: str
    reader: str
    connections: tuple[Connection, ...]
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Violation:
    job_id: str
    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.job_id} {self.rule}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a run left behind."""

    submissions: Sequence[Submission]
    records: Mapping[str, Record]
    transcripts: Sequence[Transcript] = ()
    observations: Mapping[str, Sequence[Observation]] = field(default_factory=dict)


def check(evidence: Evidence) -> list[Violation]:
    """Every breach of the promise, by job; an empty list when it was kept."""
    violations: list[Violation] = []
    for submission in evidence.submissions:
        job_id = submission.job_id
        record = evidence.records.get(job_id)
        seen = evidence.observations.get(job_id, ())
        if record is None:
            violations.append(Violation(job_id, "lost", "there is no record"))
            continue
        for rule, detail in _breaches(submission, record, seen):
            violations.append(Violation(job_id, rule, detail))
    for transcript in evidence.transcripts:
        record = evidence.records.get(transcript.job_id)
        for rule, detail in _reader_breaches(transcript, record) if record else ():
            violations.append(Violation(transcript.job_id, rule, f"{transcript.reader}: {detail}"))
    return violations


Breaches = Iterator[tuple[str, str]]  # (rule, detail)


def _breaches(submission: Submission, record: Record, seen: Sequence[Observation]) -> Breaches:
    if not record.state.is_terminal:
        yield "lost", f"it is still {record.state}"
    elif record.state not in submission.may_end:
        yield "lost", f"it ended as {record.state}"
    last = Observation(state=record.state, attempt=record.attempt, last_seq=record.last_seq)
    yield from _history_breaches([*seen, last])
    events = [(seq, decode_numbered(payload)) for seq, payload in record.stream]
    yield from _stream_breaches(record, events)
    yield from _text_breaches(submission.reference, record, [event for _, event in events])


def _history_breaches(seen: Sequence[Observation]) -> Breaches:
    for before, after in pairwise(seen):
        if before.state.is_terminal and after.state is not before.state:
            yield "ended-twice", f"{before.state}, then {after.state}"
        elif not _is_reachable(before, after):
            yield "went-back", f"{before.state} → {after.state} within attempt {before.attempt}"
        if after.attempt < before.attempt:
            yield "went-back", f"attempt {before.attempt} → {after.attempt}"
        if after.last_seq < before.last_seq:
            yield "went-back", f"seq {before.last_seq} → {after.last_seq}"


def _is_reachable(before: Observation, after: Observation) -> bool:
    """Observations have gaps: queued → succeeded is fine when an attempt came in between."""
    if after.state is before.state or after.state in NEXT[before.state] or after.attempt > before.attempt:
        return True
    return before.state is JobState.RUNNING and after.state.is_terminal


def _stream_breaches(record: Record, events: Sequence[tuple[int, NumberedEvent]]) -> Breaches:
    numbers = [seq for seq, _ in events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield "stream-numbers", f"stored are {_abridged(numbers)}"
    if record.last_seq != len(numbers):
        yield "stream-numbers", f"the record says {record.last_seq}, stored are {len(numbers)}"
    ends = [(seq, event) for seq, event in events if isinstance(event, End)]
    if record.state.is_terminal and len(ends) != 1:
        yield "stream-end", f"{len(ends)} end events"
    if not record.state.is_terminal and ends:
        yield "stream-end", f"an end event in a job that is {record.state}"
    if ends and ends[-1][0] != numbers[-1]:
        yield "stream-end", f"event {numbers[-1]} comes after the end {ends[-1][0]}"
    for _, end in ends:
        if end.state is not record.state:
            yield "stream-end", f"the end event says {end.state}, the record {record.state}"


def _text_breaches(reference: Reference, record: Record, events: Sequence[NumberedEvent]) -> Breaches:
    text, ids = _content(events)
    if record.text is not None and record.text != text:
        yield "text", f"the record has {_tail(record.text)}, the stream {_tail(text)}"
    if record.state is JobState.SUCCEEDED:
        if record.text is None:
            yield "text", "a succeeded job has no text"
        if text != reference.text:
            yield "text", f"{_difference(text, reference.text)}"
        if record.completion_tokens != reference.completion_tokens:
            yield "usage", f"{record.completion_tokens} tokens counted, {reference.completion_tokens} expected"
        if ids != reference.ids:
            yield "usage", f"{len(ids)} ids in the stream, {len(reference.ids)} expected, or others"
    elif not reference.text.startswith(text):
        yield "text", f"{_difference(text, reference.text)}"
    if record.completion_tokens is not None and record.completion_tokens < len(ids):
        yield "usage", f"{record.completion_tokens} tokens counted, but {len(ids)} ids in the stream"


def content(record: Record) -> tuple[str, tuple[int, ...]]:
    """Text and token ids in the stored stream."""
    return _content([decode_numbered(payload) for _, payload in record.stream])


def _content(events: Sequence[NumberedEvent]) -> tuple[str, tuple[int, ...]]:
    pieces: list[str] = []
    ids: list[int] = []
    for event in events:
        if isinstance(event, Tokens):
            pieces.append(event.text)
            ids.extend(event.ids)
        elif isinstance(event, Reset):
            pieces, ids = [], []
    return "".join(pieces), tuple(ids)


def _reader_breaches(transcript: Transcript, record: Record) -> Breaches:
    numbers: list[int] = []
    for connection in transcript.connections:
        repeated = [seq for seq, _ in connection.events if seq <= connection.after]
        if repeated:
            yield "reader-numbers", f"asked to go on after {connection.after}, got {_abridged(repeated)}"
        numbers += [seq for seq, _ in connection.events]
    first = transcript.connections[0].after + 1 if transcript.connections else 1
    if numbers != list(range(first, first + len(numbers))):
        yield "reader-numbers", f"saw {_abridged(numbers)}"
    if transcript.is_whole and record.state.is_terminal and (not numbers or numbers[-1] != record.last_seq):
        yield "reader-numbers", f"stopped at {numbers[-1] if numbers else 'nothing'} of {record.last_seq}"
    stored = dict(record.stream)
    for connection in transcript.connections:
        for seq, payload in connection.events:
            if stored.get(seq) != payload:
                yield "reader-content", f"event {seq} was {payload[:80]!r}, stored is {stored.get(seq, b'')[:80]!r}"
                return


def _difference(text: str, expected: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), min(len(text), len(expected))
    )
    return f"differs at character {at} of {len(expected)}: {text[at : at + 30]!r}, expected {expected[at : at + 30]!r}"


def _tail(text: str) -> str:
    return f"{len(text)} characters …{text[-30:]!r}"


def _abridged(numbers: Sequence[int]) -> str:
    """Runs of consecutive numbers, the first few of them."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(f"{first}–{last}" if last > first else str(first) for first, last in runs[:8])
    return shown + (" …" if len(runs) > 8 else "") if runs else "none"
