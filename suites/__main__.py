"""Run suites against a Keepwarm that this command starts: `python -m suites [--quick] [SUITE …]`; all by default."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from suites.catalog import HERE, SUITES, Suite, environment_of
from suites.outcomes import Verdict, judge, read_junit, read_known_failures
from suites.report import PAGE, keep, write_page
from suites.server import keepwarm

KNOWN_FAILURES = HERE / "known_failures.toml"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m suites", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="SUITE", help=", ".join(suite.name for suite in SUITES))
    parser.add_argument("--quick", action="store_true", help="only what is repeatable, and keep no results: for CI")
    given = parser.parse_args()
    if unknown := set(given.names) - {suite.name for suite in SUITES}:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    verdicts = [run(suite, is_quick=given.quick) for suite in SUITES if suite.name in (given.names or [suite.name])]
    if not given.quick:
        write_page()
        print(f"{PAGE} is written")
    passed = sum(len(verdict.passed) for verdict in verdicts)
    failed = sum(len(verdict.failed) for verdict in verdicts)
    skipped = sum(len(verdict.skipped) for verdict in verdicts)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if all(verdict.is_good for verdict in verdicts) else 1


def run(suite: Suite, *, is_quick: bool) -> Verdict:
    """Each suite has a Keepwarm of its own, so that none meets what another left behind."""
    print(f"== {suite.title}", flush=True)
    known = read_known_failures(KNOWN_FAILURES.read_text()).get(suite.name, [])
    with tempfile.TemporaryDirectory(prefix="keepwarm-results-") as folder, keepwarm() as api:
        results = Path(folder, "results.xml")
        plan = suite.prepare(api.url, results, is_quick=is_quick)
        environment = {**os.environ, **environment_of(api.url), **plan.environment}
        ended = subprocess.run(plan.command, cwd=plan.folder, env=environment, timeout=suite.limit_s, check=False)
        if not results.exists():
            sys.exit(f"{suite.name} ended with {ended.returncode} and wrote no results")
        verdict = judge(read_junit(results.read_text()), known)
        assert api.process.poll() is None, "the API has died under the suite"
    show(verdict)
    if not is_quick:
        keep(suite, verdict, datetime.now(UTC).strftime("%Y-%m-%d"))
    return verdict


def show(verdict: Verdict) -> None:
    for end in verdict.failed:
        print(f"FAILED {end.name}: {end.words}")
    for reason, names in verdict.known.items():
        print(f"{len(names)} failed for a known reason: {reason}")
    for pattern in verdict.outdated:
        print(f"OUTDATED {pattern}: listed as a known failure, and nothing by that name failed")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
