"""docs/conformance.md, from the kept results of all suites. Pure but for the files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from suites.catalog import SUITES, Suite
from suites.outcomes import Verdict

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = RESULTS.parent.parent / "docs" / "conformance.md"
_HEAD = """# Suites that others wrote, run against Keepwarm

Made by `make suites`, which starts a real Keepwarm on loopback with the demo models and tiny encoders. A failed test
without a reason in `suites/known_failures.toml` fails the target, and so does a reason that no failure needs any more.

The official Python SDK has no line here: the ordinary tests use it, above all
`tests/integration/test_api_openai_sdk.py`.

"""


def keep(suite: Suite, verdict: Verdict, date: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    result = {
        "date": date,
        "passed": len(verdict.passed),
        "failed": {end.name: end.words for end in verdict.failed},
        "known": verdict.known,
        "skipped": {end.name: end.words for end in verdict.skipped},
    }
    (RESULTS / f"{suite.name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def write_page() -> None:
    PAGE.write_text(page(_kept(SUITES)))


def page(kept: Iterable[tuple[Suite, dict]]) -> str:
    kept = list(kept)
    lines = ["| suite | run on | passed | failed for a known reason | failed | skipped |", "|---|---|---|---|---|---|"]
    for suite, result in kept:
        known = sum(len(names) for names in result["known"].values())
        counts = (result["passed"], known, len(result["failed"]), len(result["skipped"]))
        lines.append(f"| {suite.title} | {result['date']} | {' | '.join(map(str, counts))} |")
    sections = [_section(suite, result) for suite, result in kept]
    return _HEAD + "\n".join(lines) + "\n" + "".join(sections)


def _section(suite: Suite, result: dict) -> str:
    parts = [f"\n## {suite.title}\n", suite.about + "\n"]
    if suite.left_out:
        parts.append(f"Left out: {suite.left_out}\n")
    if result["known"]:
        parts.append("Failed for a known reason:\n")
        parts += [f"- {reason}\n" + _names(names) for reason, names in result["known"].items()]
    for heading, ends in (("Failed:", result["failed"]), ("Skipped:", result["skipped"])):
        if ends:
            by_words: dict[str, list[str]] = {}
            for name, words in ends.items():
                by_words.setdefault(words, []).append(name)
            parts.append(heading + "\n")
            parts += [f"- {words or 'without a word'}\n" + _names(names) for words, names in by_words.items()]
    return "\n".join(parts)


def _names(names: list[str]) -> str:
    return "".join(f"  - `{name}`\n" for name in names)


def _kept(suites: Iterable[Suite]) -> Iterable[tuple[Suite, dict]]:
    for suite in suites:
        path = RESULTS / f"{suite.name}.json"
        if path.exists():
            yield suite, json.loads(path.read_text())
