"""What a model will take, asked of llama.cpp itself: it lays out weights and buffers without allocating them.

    python -m workers.engine.dry_run < CONFIG     an EngineConfig as JSON; prints a DryRun as JSON

Run in a throwaway process: a file that kills the loader kills nothing else, and llama.cpp's own memory goes with it.
"""

from __future__ import annotations

import os
import sys

import msgspec

from workers.engine.base import EngineConfig


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes, summed over devices."""

    weight_bytes: int
    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    draft_bytes: int = 0  # weights, caches and buffers of its draft model


def main() -> None:
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig, dec_hook=lambda kind, value: kind(value))
    answer = run(config)
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()
    os._exit(0)


def run(config: EngineConfig) -> DryRun:
    """Raises ModelLoadFailed."""
    from workers.engine.llama_draft import draft_engine_config

    answer = _run_one(config)
    if config.draft is None:
        return answer
    draft = _run_one(draft_engine_config(config, config.draft))
    draft_bytes = draft.weight_bytes + draft.kv_bytes + draft.compute_bytes + draft.output_bytes
    return msgspec.structs.replace(answer, draft_bytes=draft_bytes)


def _run_one(config: EngineConfig) -> DryRun:
    from tasks.fleet import ModelKind
    from workers.engine.llama_encoder import encoding_context, output_growth_bytes
    from workers.engine.llama_generating import drafted_bytes, generating_context
    from workers.engine.llama_log import LlamaLog
    from workers.engine.llama_model import load_model

    log = LlamaLog()
    model = load_model(config, log, is_dry=True)
    generates = config.model_kind is ModelKind.GENERATE
    create, growth_bytes = (generating_context, drafted_bytes) if generates else (encoding_context, output_growth_bytes)
    create(model, config, log)
    buffers = log.buffer_bytes()
    return DryRun(
        weight_bytes=model.weight_bytes,
        kv_bytes=log.cache_bytes(),
        compute_bytes=buffers["compute"],
        output_bytes=buffers["output"] + growth_bytes(model, config),
    )


if __name__ == "__main__":
    main()
