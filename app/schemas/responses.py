"""What OpenAI clients send to `/v1/responses`.

The input is read leniently here, so that `app.responses.items` can name what is wrong by its place in the request.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from app.schemas.openai import FIRST_ERROR, MAX_TOP_LOGPROBS, Metadata, SamplingFields, StreamingFields, Text, ToolName
from app.service_tiers import level_of
from tasks.jobs import Priority

INCLUDE_LOGPROBS = "message.output_text.logprobs"


def _as_parts(value: object) -> object:
    if value is None:
        return []
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class InputPart(BaseModel):
    """A piece of an item; only text can be served."""

    type: Text
    text: Text = ""
    refusal: Text = ""


Parts = Annotated[
    list[InputPart], FIRST_ERROR, BeforeValidator(_as_parts, json_schema_input_type=str | list[InputPart] | None)
]


class InputItem(BaseModel):
    """A message, a call that the model made, or what a call gave; told by its type, which messages may leave out."""

    type: Text = "message"
    id: Text | None = None
    role: Text | None = None
    content: Parts = []
    call_id: Text | None = Field(default=None, max_length=256)
    name: Text | None = None
    arguments: Text = ""
    output: Parts = []


class TextFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Text | None = Field(default=None, max_length=64)
    description: Text | None = None
    definition: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None  # false: keywords that can't be enforced are ignored; otherwise they are refused


class TextConfig(BaseModel):
    format: TextFormat | None = None


class ResponseTool(BaseModel):
    type: Text
    name: ToolName | None = None
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(BaseModel):
    type: Text
    name: ToolName | None = None


class ToolChoiceObject(NamedTool):
    """One function, or with type allowed_tools a selection of them."""

    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[list[NamedTool], FIRST_ERROR] = []


class ResponseBody(SamplingFields, StreamingFields):
    """POST /v1/responses. A field of type `Any` is looked at only to say that it is not supported."""

    input: Annotated[
        list[InputItem], FIRST_ERROR, BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem])
    ] = Field(min_length=1)
    instructions: Text | None = None
    previous_response_id: Text | None = Field(default=None, max_length=64)
    background: bool | None = None
    store: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=2**31)
    text: TextConfig | None = None
    tools: Annotated[list[ResponseTool], FIRST_ERROR] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceObject | None = None
    parallel_tool_calls: bool | None = None
    include: Annotated[list[Text], Field(max_length=16, fail_fast=True)] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    user: Text | None = Field(default=None, max_length=512)
    conversation: Any = None
    context_management: Any = None
    prompt: Any = None

    @property
    def level(self) -> Priority:
        """Nobody waits for an answer in the background."""
        if self.background and self.priority is None:
            return level_of(self.service_tier, Priority.DEFAULT)
        return super().level
