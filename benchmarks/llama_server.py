"""llama-server, llama.cpp's own HTTP server, as a process with the settings that our runner has."""

from __future__ import annotations

import http.client
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from benchmarks import machine
from tests.support.stack import free_port, wait_until
from tools.build_llama_peers import PEERS
from workers.engine.base import EngineConfig
from workers.engine.kv_types import keys_and_values

BIN = PEERS / "build" / "bin"
_STOP_LIMIT_S = 20.0


class LlamaServer:
    """Use as a context manager. `port` and `model` are what a client needs."""

    def __init__(
        self, binary: Path, config: EngineConfig, log: Path, *, threads: int, extra: Sequence[str] = ()
    ) -> None:
        self.model = "any"  # it serves one, whatever the name
        self.port = free_port()
        self.command = [
            *(str(binary), "--model", str(config.model_path), "--host", "127.0.0.1", "--port", str(self.port)),
            *shared_flags(config, threads),
            *("--parallel", str(config.slots), "--no-kv-unified", "--no-ui", *extra),
        ]
        self._log = log

    def __enter__(self) -> LlamaServer:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(self._is_ready, "llama-server is ready")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far."""
        return {"llama-server": machine.process_cpu_s(self._process.pid)}

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"llama-server ended: {self._log.read_text(errors='replace')[-2000:]}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def shared_flags(config: EngineConfig, threads: int) -> list[str]:
    """What makes llama.cpp's programs compute as our engine does: context, threads, KV type, buffers."""
    keys, values = keys_and_values(config.kv_type)
    flags = [
        *("--ctx-size", str(config.context_length * config.slots)),
        *("--threads", str(threads)),
        *("--cache-type-k", keys, "--cache-type-v", values, "--flash-attn", "auto"),
    ]
    return flags if config.use_extra_bufts else [*flags, "--no-repack"]
