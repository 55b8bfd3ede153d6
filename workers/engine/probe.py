"""Do llama.cpp's extra buffer types (weights repacked for AMX) work on this machine? Asked in a throwaway process.

On CPUs with AMX in some virtual machines every quantised model dies of SIGSEGV in `ggml_backend_amx_mul_mat`
(llama.cpp#20824, #26954). F16 and F32 are not affected, and other CPUs have no AMX, so most loads never come here.

    python -m workers.engine.probe MODEL     loads the model, decodes one token, exits with 0 if it lives
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from workers.gguf_header import BrokenModelFile, read_header
from workers.gguf_types import FLOATS

PROBE_TIMEOUT_S = 600
# Signals that say "this code can't run here"; SIGKILL says "out of memory", which proves nothing.
_FAULTS = {signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE}


def extra_buffers_are_safe(model_path: Path, *, cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """False only where a probe died of a fault. The answer is cached per host, library version and file type."""
    if not has_amx(cpu_info):
        return True
    file_type = file_type_of(model_path)
    if file_type is None or file_type in FLOATS:
        return True
    answer = cache_path(file_type)
    try:
        return bool(json.loads(answer.read_text())["safe"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    safe = survives_probe([sys.executable, "-m", "workers.engine.probe", str(model_path)])
    if safe is not None:
        _remember(answer, safe=safe)
    return safe is not False


def file_type_of(model_path: Path) -> str | None:
    """`Q8_0` and the like; None for a broken file, of which the load itself will say what is wrong."""
    try:
        return read_header(model_path).file_type
    except (BrokenModelFile, OSError):
        return None


def has_amx(cpu_info: Path) -> bool:
    """Whether the CPU flags name AMX; False on systems without /proc (no AMX Mac exists)."""
    try:
        return re.search(r"^flags\s*:.*\bamx_(int8|tile|bf16)\b", cpu_info.read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def survives_probe(command: list[str]) -> bool | None:
    """True: exited with 0. False: died of a fault. None: anything else proves nothing."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return True
    return False if -done.returncode in _FAULTS else None


def cache_path(file_type: str) -> Path:
    """Where the answer is kept: a home on a shared disk serves several hosts, so the host is part of the name."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    identity = f"{platform.node()} {platform.machine()} {version('llama-cpp-python')} {file_type}"
    return root / "keepwarm" / f"extra-buffers-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def _remember(path: Path, *, safe: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"safe": safe}))
    except OSError as error:  # without a cache the next load probes again
        print(f"probe: can't write {path}: {error}", file=sys.stderr)


def main(model_path: Path) -> None:
    from workers.engine.backend import Slice
    from workers.engine.base import EngineConfig
    from workers.engine.llama_generating import LlamaContext
    from workers.engine.llama_log import LlamaLog
    from workers.engine.llama_model import LlamaModel

    log = LlamaLog()
    config = EngineConfig(model_path=model_path, context_length=256, slots=1, threads=2, prefill_chunk=32)
    model = LlamaModel(model_path, log)
    context = LlamaContext(model, config, log)
    # A batch and a single token: AMX has a kernel for each.
    context.decode([Slice(0, 0, [0] * 32, True)])
    context.decode([Slice(0, 32, [0], True)])
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
