"""`python -m benchmarks`: list the benchmarks. `python -m benchmarks NAME [options]` runs one, `all` runs every one.

Results are on standard output. Of the product's log, warnings alone are shown, on standard error.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

from tasks.logs import configure_logs

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef main(" in path.read_text("utf-8"))
NAMES.remove("__main__")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(__doc__)
        for name in NAMES:
            print(f"  {name:12} {_purpose(name)}")
        return 0
    name, *options = arguments
    if name != "all" and name not in NAMES:
        print(f"There is no benchmark {name!r}; there are: {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    configure_logs(logging.WARNING)
    return max(run(each, options) for each in (NAMES if name == "all" else [name]))


def run(name: str, options: list[str]) -> int:
    return int(importlib.import_module(f"benchmarks.{name}").main(options))


def _purpose(name: str) -> str:
    return (importlib.import_module(f"benchmarks.{name}").__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
