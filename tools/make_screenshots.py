"""Make the pictures of the README from a running Keepwarm: a terminal as SVG, the console and Flower as PNG.

    keepwarm up                          in one terminal
    python -m tools.make_screenshots     in another; --help shows the flags

Everything shown is real: commands are run, jobs are posted, pages are opened in a headless Chromium.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "img"
COLUMNS = 92
MAX_PNG_BYTES = 200 * 1024
NUM_JOBS = {"keepwarm-demo-q8_0": 11, "keepwarm-demo-f16": 5}  # more than the slots of one model
JOB_TOKENS = 3500  # long enough to be seen at work
BUSY_LIMIT_S = 30.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=4000",  # the page reads the pool once a second
)
QUESTION = "What is a warm pool?"
THEME = TerminalTheme(
    (30, 32, 38),
    (214, 216, 222),
    [
        (30, 32, 38),
        (224, 108, 117),
        (126, 192, 120),
        (229, 192, 123),
        (97, 155, 229),
        (198, 120, 221),
        (86, 182, 194),
        (214, 216, 222),
    ],
)


def main() -> None:
    """Terminal first, then the pages."""
    options = _options()
    IMAGES.mkdir(parents=True, exist_ok=True)
    api = httpx2.Client(base_url=options.url, timeout=60)
    os.environ["KEEPWARM_URL"] = options.url
    ask = ["keepwarm", "run", "keepwarm-demo-q8_0", QUESTION]
    scenes = [(ask, _output(ask))]
    with _busy(api):
        scenes += [(command, _output(command)) for command in (["keepwarm", "ls"], ["keepwarm", "ps"])]
        _terminal(IMAGES / "terminal.svg", scenes)
        if browser := options.browser or next(filter(None, map(shutil.which, BROWSERS)), None):
            _page(browser, f"{options.url}/", IMAGES / "console.png", "1100,560")
            _page(browser, f"{options.flower_url}/workers", IMAGES / "flower.png", "1200,620")
        else:
            print("No Chromium found: the pages are left out (--browser PATH).", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the API is")
    parser.add_argument("--flower-url", default="http://127.0.0.1:5555", help="where Flower is")
    parser.add_argument("--browser", help="path of a Chromium")
    return parser.parse_args()


@contextmanager
def _busy(api: httpx2.Client) -> Iterator[None]:
    """Long jobs in the background, more than the slots take; cancelled at the end."""
    bodies = [
        {"model": model, "prompt": f"Story {number}:", "max_tokens": JOB_TOKENS, "ignore_eos": True, "seed": number}
        for model, count in NUM_JOBS.items()
        for number in range(count)
    ]
    jobs = [api.post("/v1/jobs", json=body).raise_for_status().json()["id"] for body in bodies]
    try:
        _await_runners(api)
        yield
    finally:
        for job in jobs:
            api.delete(f"/v1/jobs/{job}")


def _await_runners(api: httpx2.Client) -> None:
    """Until each model has a runner at work."""
    deadline = time.monotonic() + BUSY_LIMIT_S
    while time.monotonic() < deadline:
        workers = api.get("/v1/pool").raise_for_status().json()["workers"]
        if NUM_JOBS.keys() <= {run["model"] for each in workers for run in each["runners"] if run["in_flight"]}:
            return
        time.sleep(0.1)
    raise SystemExit(f"Not all of {', '.join(NUM_JOBS)} were at work within {BUSY_LIMIT_S:.0f} s.")


def _output(command: list[str]) -> str:
    """Standard output as a terminal of our width would get it."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    program = [sys.executable, "-m", "app.cli.main", *command[1:]]
    return subprocess.run(program, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def _terminal(path: Path, scenes: list[tuple[list[str], str]]) -> None:
    from rich._export_format import CONSOLE_SVG_FORMAT

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for command, output in scenes:
        console.print(Text.assemble(("$ ", "bold green"), (shlex.join(command), "bold")))
        lines = re.sub(r"\n(\s*\n)+", "\n\n", "\n" + output.rstrip()).lstrip("\n")
        console.print(Text.from_ansi(lines))
        console.print()
    # No web font: a picture fetches nothing.
    local_fonts = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    local_fonts = local_fonts.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    svg = console.export_svg(title="keepwarm", theme=THEME, code_format=local_fonts, unique_id="keepwarm")
    path.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size // 1024} KiB")


def _page(browser: str, url: str, path: Path, size: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        flags = [*BROWSER_FLAGS, f"--user-data-dir={profile}", f"--window-size={size}", f"--screenshot={path}"]
        subprocess.run([browser, *flags, url], check=True, stderr=subprocess.DEVNULL, timeout=60)
    if path.stat().st_size > MAX_PNG_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes, more than {MAX_PNG_BYTES}.")
    print(f"{path.name}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
