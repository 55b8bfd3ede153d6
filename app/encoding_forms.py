"""JSON of embeddings (OpenAI's) and rankings (Jina's, Cohere's and llama-server's). Pure."""

from __future__ import annotations

import base64
import struct

from app.following import Transcript
from app.schemas.encoding import EmbeddingBody, RerankBody
from tasks.generation import JsonObject
from tasks.jobs import Job
from tasks.stream_events import End


class EmbeddingForm:
    def __init__(self, job: Job, body: EmbeddingBody) -> None:
        self._model = job.model
        self._word = _base64 if body.encoding_format == "base64" else _floats

    def whole(self, transcript: Transcript, end: End) -> JsonObject:
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": self._word(row)}
                for index, row in enumerate(transcript.rows)
            ],
            "model": self._model,
            "usage": usage_object(end),
        }


class RankingForm:
    """Best first, equal scores in the order of the documents."""

    def __init__(self, job: Job, body: RerankBody) -> None:
        self._job = job
        self._body = body

    def whole(self, transcript: Transcript, end: End) -> JsonObject:
        scores = [_floats(row)[0] for row in transcript.rows]
        ranking = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: self._body.top_n]
        return {
            "id": "rerank-" + self._job.id.removeprefix("job_"),
            "object": "list",
            "model": self._job.model,
            "results": [self._result(index, scores[index]) for index in ranking],
            "usage": usage_object(end),
        }

    def _result(self, index: int, score: float) -> JsonObject:
        result: JsonObject = {"index": index, "relevance_score": score}
        if self._body.return_documents:
            result["document"] = {"text": self._body.documents[index]}
        return result


def usage_object(end: End) -> JsonObject:
    tokens = end.usage.prompt_tokens if end.usage else 0
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _floats(row: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(row) // 4}f", row))


def _base64(row: bytes) -> str:
    return base64.b64encode(row).decode()
