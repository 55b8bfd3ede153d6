"""What clients send to the routes of embedding models and rerankers, and what they get."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.schemas.openai import FIRST_ERROR, PriorityName, Text
from tasks.jobs import Priority

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


_ONE_OR_MORE = Field(min_length=1)
_InputForms = (
    str
    | Annotated[list[str], _ONE_OR_MORE]
    | Annotated[list[TokenId], _ONE_OR_MORE]
    | Annotated[list[Annotated[list[TokenId], _ONE_OR_MORE]], _ONE_OR_MORE]
)


def _as_inputs(value: object) -> object:
    """One text, or one list of token ids, is a list of one input."""
    match value:
        case str():
            return [value]
        case [int(), *_]:
            return [value]
    return value


class _TextObject(BaseModel):
    text: str


def _as_document(value: object) -> object:
    return value["text"] if isinstance(value, dict) and "text" in value else value


class EncodingFields(BaseModel):
    """What both routes share. Rows of one request are computed together, so it is as urgent as a chat by default."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: Text = Field(min_length=1, max_length=256)
    priority: PriorityName = "interactive"

    @property
    def level(self) -> Priority:
        return Priority.named(self.priority)


class EmbeddingBody(EncodingFields):
    """POST /v1/embeddings"""

    input: Annotated[
        Annotated[list[Text], FIRST_ERROR] | Annotated[list[Annotated[list[TokenId], FIRST_ERROR]], FIRST_ERROR],
        BeforeValidator(_as_inputs, json_schema_input_type=_InputForms),
        Field(min_length=1),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, le=2**31)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(each for each in self.input if isinstance(each, str))

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(each) for each in self.input if not isinstance(each, str))


class RerankBody(EncodingFields):
    """POST /v1/rerank, as Jina, Cohere and llama-server have it."""

    query: Text = Field(min_length=1)
    documents: list[Annotated[Text, BeforeValidator(_as_document, json_schema_input_type=str | _TextObject)]] = Field(
        min_length=1, fail_fast=True
    )
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False
