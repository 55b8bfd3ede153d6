"""Environments of the suites, apart from ours: their pins need not agree with it. Made once per lock file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from tools.build_llama_peers import PACKAGE, download_sources

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

    _once(folder, _digest(requirements), install)
    return folder / "bin" / "python"


def node_modules(folder: Path) -> None:
    """`npm ci`. Raises RuntimeError without npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("the suite of the Node SDK needs Node.js 20 or newer with npm")
    command = [npm, "ci", "--ignore-scripts", "--loglevel=error"]
    _once(folder / "node_modules", _digest(folder / "package-lock.json"), lambda: _run(command, folder))


def llama_cpp_folder(inside: str) -> Path:
    """One folder of llama.cpp, out of the source package of the installed version, which pip fetches or has."""
    folder = HOME / "llama.cpp"

    def unpack() -> None:
        folder.mkdir(parents=True)
        archive = download_sources(folder)
        with tarfile.open(archive) as tar:
            members = [member for member in tar if f"/llama.cpp/{inside}/" in member.name]
            tar.extractall(folder, members, filter="data")
        archive.unlink()

    _once(folder, f"{PACKAGE} {version(PACKAGE)} {inside}", unpack)
    (found,) = folder.glob(f"*/vendor/llama.cpp/{inside}")
    return found


def _once(folder: Path, made_from: str, install: Callable[[], None]) -> None:
    """Install unless the folder was made from the very same."""
    stamp = folder / "made-from"
    if stamp.exists() and stamp.read_text() == made_from:
        return
    shutil.rmtree(folder, ignore_errors=True)
    install()
    stamp.write_text(made_from)


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_LIMIT_S)
