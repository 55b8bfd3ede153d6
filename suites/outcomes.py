"""What a suite found: its tests by how they ended, read from the JUnit file that all of them can write. Pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from xml.etree import ElementTree


@dataclass(frozen=True, slots=True, kw_only=True)
class TestEnd:
    __test__ = False  # no test of ours

    name: str
    ended: str  # passed, failed or skipped
    words: str = ""  # of a failure or skip, the first of them


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFailure:
    """Tests that fail for a reason that stays. In a pattern, `*` stands for anything."""

    reason: str
    tests: tuple[str, ...]

    def covers(self, name: str) -> bool:
        return any(_matches(pattern, name) for pattern in self.tests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The ends of a suite's tests, judged by what is known of them."""

    passed: list[TestEnd] = field(default_factory=list)
    failed: list[TestEnd] = field(default_factory=list)  # without a known reason
    known: dict[str, list[str]] = field(default_factory=dict)  # names of failed tests by reason
    skipped: list[TestEnd] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)  # patterns that no failure matches

    @property
    def is_good(self) -> bool:
        return bool(self.passed) and not self.failed and not self.outdated


def read_junit(text: str) -> list[TestEnd]:
    """Raises ElementTree.ParseError."""
    return [_end_of(case) for case in ElementTree.fromstring(text).iter("testcase")]


def read_known_failures(text: str) -> dict[str, list[KnownFailure]]:
    """By suite."""
    return {
        suite: [KnownFailure(reason=entry["reason"], tests=tuple(entry["tests"])) for entry in entries]
        for suite, entries in tomllib.loads(text).items()
    }


def judge(ends: Iterable[TestEnd], known: Iterable[KnownFailure]) -> Verdict:
    verdict = Verdict()
    known = list(known)
    for end in ends:
        if end.ended == "passed":
            verdict.passed.append(end)
        elif end.ended == "skipped":
            verdict.skipped.append(end)
        elif (why := next((failure.reason for failure in known if failure.covers(end.name)), None)) is None:
            verdict.failed.append(end)
        else:
            verdict.known.setdefault(why, []).append(end.name)
    failed = [name for names in verdict.known.values() for name in names]
    patterns = [pattern for failure in known for pattern in failure.tests]
    verdict.outdated.extend(each for each in patterns if not any(_matches(each, name) for name in failed))
    return verdict


def _end_of(case: ElementTree.Element) -> TestEnd:
    group, name = case.get("classname", ""), case.get("name", "")
    full_name = name if group in ("", "test") else f"{group}::{name}"
    for tag, ended in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (element := case.find(tag)) is not None:
            words = (element.get("message") or element.text or "").strip()
            return TestEnd(name=full_name, ended=ended, words=" ".join(words.split())[:300])
    return TestEnd(name=full_name, ended="passed")


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None
