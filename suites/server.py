"""The Keepwarm that the suites ask: every process real, on loopback, with a home that ends with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.stack import DEMO_MODELS, Api, Stack
from tests.support.tiny_encoder import MEAN, RANK, write_tiny_encoder

CHAT_MODEL, SECOND_CHAT_MODEL = "keepwarm-demo-q8_0", "keepwarm-demo-f16"
EMBEDDING_MODEL, RERANK_MODEL = "tiny-embed", "tiny-rerank"
ENCODER_CONTEXT = 512  # of letters, which is what their vocabulary has
# Names that suites ask for and don't let one choose.
_MODELS_YAML = f"""models:
  {CHAT_MODEL}: {{aliases: [gpt-demo, gpt-3.5-turbo, gpt-3.5-turbo-instruct, davinci-002, gpt-4.1]}}
  {EMBEDDING_MODEL}: {{aliases: [text-embedding-3-small], matryoshka: true}}
"""


@contextmanager
def keepwarm() -> Iterator[Api]:
    """Store, worker, controller, batcher and API, ready to serve a chat model twice, an embedder and a reranker."""
    with tempfile.TemporaryDirectory(prefix="keepwarm-suites-") as folder:
        models = Path(folder, "models")
        models.mkdir()
        for model in (CHAT_MODEL, SECOND_CHAT_MODEL):
            shutil.copy(DEMO_MODELS / f"{model}.gguf", models)
        write_tiny_encoder(models / f"{EMBEDDING_MODEL}.gguf", pooling=MEAN, context_length=ENCODER_CONTEXT)
        write_tiny_encoder(models / f"{RERANK_MODEL}.gguf", pooling=RANK, context_length=ENCODER_CONTEXT)
        (models / "models.yaml").write_text(_MODELS_YAML)
        with Stack(Path(folder, "home"), models) as stack:
            api = stack.start_all()
            stack.start_batcher()
            yield api
