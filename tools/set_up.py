"""Create .venv from the lock file. Standard library only; parses on old Pythons, so that it can refuse them.

    python3 tools/set_up.py          what `make run` needs
    python3 tools/set_up.py --dev    and what `make test` needs

The second run finds its stamp and returns at once. The first one compiles llama.cpp, which takes minutes; pip
keeps the built wheel in its cache, so another checkout takes seconds.
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "set-up.log"
OLDEST_PYTHON = (3, 11)
OLDEST_PIP = (23, 1)  # older ones don't look into the wheel cache when hashes are required
NATIVE = "llama-cpp-python"
BUILD_NOTE = VENV / ".llama-cpp-cmake-args"
DEFAULT_CMAKE_ARGS = "-DLLAVA_BUILD=OFF"  # no multimodal: a fifth less to compile
TAIL_LINES = 40
SILENCE_S = 20  # say that we still live after this long without output


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", action="store_true", help="also what the tests and checks need")
    dev = parser.parse_args().dev
    stamps = [stamp_path(dev=True)] if dev else [stamp_path(dev=True), stamp_path(dev=False)]
    if any(stamp.exists() for stamp in stamps) and venv_python().exists():
        return
    refuse_if_tools_are_missing()
    started = time.monotonic()
    create_venv()
    install(lock_path(dev))
    for old in VENV.glob(".stamp-*"):
        old.unlink()
    stamp_path(dev).touch()
    say("ready after {}".format(duration(time.monotonic() - started)))


# ---- what is there already


def lock_path(dev):
    return ROOT / ("requirements-dev.lock" if dev else "requirements.lock")


def venv_python():
    return VENV / "bin" / "python"


def cmake_args():
    return os.environ.get("CMAKE_ARGS", DEFAULT_CMAKE_ARGS)


def stamp_path(dev):
    """A file whose name changes with everything that the environment is made from."""
    digest = hashlib.sha256()
    for path in (lock_path(dev), ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    digest.update("|".join((cmake_args(), str(ROOT), sys.version)).encode())
    return VENV / ".stamp-{}-{}".format("dev" if dev else "run", digest.hexdigest()[:16])


def refuse_if_tools_are_missing():
    """Name everything that is missing at once, with the command that installs it."""
    problems = []
    if sys.version_info < OLDEST_PYTHON:
        problems.append("Python 3.11 or newer (this is {}.{})".format(*sys.version_info[:2]))
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        problems.append("Python's venv module")
    if not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        problems.append("a C compiler (cc)")
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        problems.append("a C++ compiler (c++)")
    if not shutil.which("cmake"):
        problems.append("cmake")
    if not (shutil.which("make") or shutil.which("ninja")):
        problems.append("make")
    if problems:
        sys.exit("Set-up needs {}.\nInstall it first:\n{}".format(", ".join(problems), INSTALL_HINT))


INSTALL_HINT = """\
  Debian, Ubuntu:  sudo apt-get install python3 python3-venv build-essential cmake
  Fedora:          sudo dnf install python3 gcc gcc-c++ make cmake
  Arch:            sudo pacman -S python base-devel cmake
  macOS:           xcode-select --install && brew install python cmake"""


# ---- steps


def create_venv():
    version = pip_version()
    if version is None:
        say("creating .venv with Python {}.{}.{}".format(*sys.version_info[:3]))
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        version = pip_version()
    if version is None or version < OLDEST_PIP:
        say("replacing the old pip of this Python")
        pip("install", "--require-hashes", "--only-binary", ":all:", "-r", str(ROOT / "tools" / "pip.lock"))


def pip_version():
    """(major, minor) of the environment's pip; None when there is no whole environment yet."""
    try:
        shown = subprocess.run(
            [str(venv_python()), "-m", "pip", "--version"],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(int(part) for part in re.findall(r"\d+", shown.stdout.decode())[:2])


def install(lock):
    say("installing what {} names".format(lock.name))
    if not native_wheel_is_at_hand():
        say("llama.cpp has to be compiled once, about 6 minutes on 2 cores; log: " + str(LOG))
    if BUILD_NOTE.exists() and BUILD_NOTE.read_text() != cmake_args():
        say("removing the llama.cpp that was built with CMAKE_ARGS=" + BUILD_NOTE.read_text())
        pip("uninstall", "--yes", NATIVE)  # to pip it is the version that the lock names, however it was built
    BUILD_NOTE.write_text(cmake_args())
    pip("install", "--verbose", "--require-hashes", "-r", str(lock))
    pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def cache_folder():
    """pip's own cache, unless the user asked for another build: the cache does not look at CMAKE_ARGS."""
    if cmake_args() == DEFAULT_CMAKE_ARGS:
        return None
    digest = hashlib.sha256(cmake_args().encode()).hexdigest()[:12]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "keepwarm", "pip-" + digest)


def pip_environment():
    env = dict(os.environ, CMAKE_ARGS=cmake_args(), PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONUNBUFFERED="1")
    if cache_folder():
        env["PIP_CACHE_DIR"] = cache_folder()
    return env


def native_wheel_is_at_hand():
    listing = subprocess.run(
        [str(venv_python()), "-m", "pip", "cache", "list", NATIVE.replace("-", "_")],
        env=pip_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return b".whl" in listing.stdout


def pip(*arguments):
    """Run pip, its output in the log and a summary on the terminal; on failure show the end of the log."""
    command = [str(venv_python()), "-m", "pip", *arguments, "--progress-bar", "off"]
    with LOG.open("ab") as log:
        log.write("\n$ {}\n".format(" ".join(command)).encode())
        log.flush()
        written = LOG.stat().st_size
        process = subprocess.Popen(
            command, env=pip_environment(), stdout=log, stderr=log, cwd=str(ROOT), start_new_session=True
        )
        try:
            follow(process, written)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)  # the compiler is a child of a child
            process.wait()
            raise
    if process.returncode != 0:
        tail = LOG.read_bytes()[written:].decode(errors="replace").splitlines()[-TAIL_LINES:]
        sys.exit("{}\n\npip failed; the whole output is in {}".format("\n".join(tail), LOG))


def follow(process, offset):
    """Print what a person wants to know of pip's output: how far the compiler is, and signs of life."""
    started = said = time.monotonic()
    collected, tenth, unfinished = 0, 0, ""
    while True:
        ended = process.poll() is not None
        with LOG.open("rb") as log:
            log.seek(offset)
            chunk = log.read()
        offset += len(chunk)
        *lines, unfinished = (unfinished + chunk.decode(errors="replace")).split("\n")
        for line in lines:
            if line.startswith("Collecting "):
                collected += 1
                if collected % 25 == 0:
                    say("  {} packages found".format(collected))
                    said = time.monotonic()
            fraction = compiled_fraction(line)
            if fraction is not None and int(fraction * 10) > tenth:
                tenth = int(fraction * 10)
                say("  llama.cpp {} % compiled, {}".format(tenth * 10, duration(time.monotonic() - started)))
                said = time.monotonic()
        if ended:
            return
        if time.monotonic() - said > SILENCE_S:
            say("  still at it, {}".format(duration(time.monotonic() - started)))
            said = time.monotonic()
        time.sleep(0.2)


def compiled_fraction(line):
    """Progress of ninja (`[12/345] Building …`) or make (`[ 12%] Building …`), else None."""
    ninja = re.match(r"\s*\[(\d+)/(\d+)\]", line)
    if ninja:
        return int(ninja.group(1)) / int(ninja.group(2))
    make = re.match(r"\s*\[\s*(\d+)%\]", line)
    return int(make.group(1)) / 100 if make else None


def duration(seconds):
    minutes, rest = divmod(int(seconds), 60)
    return "{} min {:02d} s".format(minutes, rest) if minutes else "{} s".format(rest)


def say(text):
    print("set-up: " + text, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("set-up: stopped")
