"""The `KEEPWARM_*` variables that somebody reads, so that a misspelt one is not ignored in silence.

A process reads the settings of its own package only, and may have been started with those of all others. So the names
of all packages are listed here, and a test holds this list against their settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import structlog

from tasks.settings import ENV_PREFIX, StoreSettings
from tasks.spelling import nearest

OF_API = """
    allow_open host port flower_port allowed_hosts max_connections max_head_bytes request_grace_s client_stall_s
    max_body_bytes max_file_bytes max_files_bytes batch_window max_messages max_tools max_tools_bytes
    max_choices max_stop max_stop_chars max_logit_bias max_schema_bytes max_schema_depth store_responses
    max_response_chain max_inputs max_result_bytes sync_timeout_s hold_back_s prompt_check_s max_wait_s
    keep_alive_s fleet_cache_ms webhook_secret webhook_allow webhook_timeout_s max_webhooks
"""
OF_WORKERS = """
    models_dir memory_budget parked_memory slots threads device gpu_layers main_gpu split_mode tensor_split
    engine fake frame_ms stall_s load_stall_s drain_s evict_drain_s
"""
OF_UP = """
    workers drain_s flower_port flower_basic_auth
"""
# Read elsewhere: by the command line, failpoints, supervised processes, docker-compose.yml, and a test's clock.
OTHERS = "url failpoints lifeline tag store_memory test_clock_skew_ms"
KNOWN = frozenset(
    ENV_PREFIX + name.upper()
    for name in (*StoreSettings.model_fields, *" ".join((OF_API, OF_WORKERS, OF_UP, OTHERS)).split())
)


def unknown_settings(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that nobody reads, each with the known one that is probably meant; case does not count."""
    names = sorted(name for name in environment if name.upper().startswith(ENV_PREFIX) and name.upper() not in KNOWN)
    return {name: nearest(name.upper(), KNOWN) for name in names}


def warn_of_unknown_settings() -> None:
    """Once, when a process begins. Values are not told: one may be a secret."""
    log = structlog.get_logger(__name__)
    for name, meant in unknown_settings(os.environ).items():
        log.warning("unknown_setting", variable=name, nearest=meant)
