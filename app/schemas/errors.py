"""The two shapes of errors, for the OpenAPI document; `app.error_handlers` words them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class OpenAIErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """OpenAI's shape, which its clients raise as exceptions."""

    error: OpenAIErrorFields


class Problem(BaseModel):
    """RFC 9457. Further members are the numbers behind the error."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="urn:keepwarm:error:CODE")
    title: str
    status: int
    detail: str
    instance: str
    code: str
    param: str | None = None
