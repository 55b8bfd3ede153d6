"""A pytest plugin that lets llama-server's own tests ask Keepwarm: where the routes are, and which model is meant.

llama-server serves one model per process, at `/` and at `/v1`; Keepwarm serves many, at `/v1` only. Nothing else of a
request or an answer is touched. DEBUG_EXTERNAL=1 and PORT, which are theirs, name the server.
"""

from __future__ import annotations

import os
from typing import Any

import utils  # llama-server's

_make_url = utils.ServerProcess.make_url
_make_request = utils.ServerProcess.make_request
_make_stream_request = utils.ServerProcess.make_stream_request


def _model_of(server: Any) -> str:
    if server.server_embeddings:
        return os.environ["SUITE_EMBEDDING_MODEL"]
    return os.environ["SUITE_RERANK_MODEL"] if server.server_reranking else os.environ["SUITE_CHAT_MODEL"]


def _named(server: Any, data: Any) -> Any:
    if isinstance(data, dict) and data.get("model") is None:
        return {**data, "model": _model_of(server)}
    return data


def make_url(self: Any, path: str, host: str | None = None) -> str:
    return _make_url(self, path if path.startswith("/v1/") else f"/v1{path}", host)


def make_request(self: Any, method: str, path: str, data: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _make_request(self, method, path, _named(self, data), *args, **kwargs)


def make_stream_request(self: Any, method: str, path: str, data: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _make_stream_request(self, method, path, _named(self, data), *args, **kwargs)


utils.ServerProcess.make_url = make_url
utils.ServerProcess.make_request = make_request
utils.ServerProcess.make_stream_request = make_stream_request
