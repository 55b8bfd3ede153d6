"""What OpenAI clients send. Fields that Keepwarm does not know are ignored; those it can't honour are refused.

A field of type `Any` is looked at in `app.admission`, only to say that it is not supported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.service_tiers import ServiceTier, level_of
from tasks.jobs import Priority

PriorityName = Literal["interactive", "default", "batch"]
MAX_TOP_LOGPROBS = 20
FIRST_ERROR = Field(fail_fast=True)  # a list or object of a million wrong items would make as many errors


def _encodable(text: str) -> str:
    """JSON may escape half of a surrogate pair; nothing behind us could write that down."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


MetadataKey = Annotated[Text, Field(max_length=64)]
MetadataValue = Annotated[Text, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16, fail_fast=True)]


def _as_list(value: object) -> object:
    """A lone string is a list of one; null is an empty list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


_OneText = Annotated[list[str], Field(min_length=1, max_length=1)]


def _as_single(value: object) -> object:
    """The completion route's prompt: a list of one text is that text."""
    match value:
        case [str(text)]:
            return text
        case [str(), *_]:
            raise ValueError("one prompt per request, and this list has several")
        case [int() | list(), *_]:
            raise ValueError("token ids are not supported; send text")
    return value


def _minus_one_is_none(value: object) -> object:
    """llama-server, Ollama and LM Studio say -1 where OpenAI leaves a field out."""
    return None if value == -1 else value


_OpenTokens = Annotated[int, Field(ge=-1, le=2**31, json_schema_extra={"not": {"const": 0}})]
MaxTokens = Annotated[
    Annotated[int, Field(ge=1, le=2**31)] | None,
    BeforeValidator(_minus_one_is_none, json_schema_input_type=_OpenTokens | None),
]
# More than the 64 bits that clients have, because OpenAPI documents hold bounds as floats.
_AnySeed = Annotated[int, Field(ge=-(10**19), le=10**19)]
Seed = Annotated[_AnySeed | None, BeforeValidator(_minus_one_is_none, json_schema_input_type=_AnySeed | None)]


def _as_parts(value: object) -> object:
    if value is None:
        return []
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class ContentPart(BaseModel):
    """A piece of a message; only text can be served."""

    type: Text
    text: Text = ""


ToolName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class CalledFunction(BaseModel):
    name: ToolName
    arguments: Text = ""


class MessageToolCall(BaseModel):
    """A call that the assistant made, as it was sent."""

    id: Text = Field(max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[ContentPart],
        FIRST_ERROR,
        BeforeValidator(_as_parts, json_schema_input_type=str | list[ContentPart] | None),
    ] = []
    name: Text | None = Field(default=None, max_length=256)
    tool_calls: Annotated[list[MessageToolCall], FIRST_ERROR] | None = None
    tool_call_id: Text | None = Field(default=None, max_length=256)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class JsonSchemaFormat(BaseModel):
    name: Text | None = Field(default=None, max_length=64)
    definition: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None  # false: keywords that can't be enforced are ignored; otherwise they are refused


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    json_object_schema: dict[str, Any] | None = Field(default=None, alias="schema")  # llama.cpp's form


class FunctionDefinition(BaseModel):
    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # true: a schema that can't be enforced to the letter is refused


class ToolDefinition(BaseModel):
    type: Literal["function"]
    function: FunctionDefinition


class ToolNamed(BaseModel):
    name: ToolName


class NamedToolChoice(BaseModel):
    type: Literal["function"]
    function: ToolNamed


LogitBias = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]], FIRST_ERROR
]


class SamplingFields(BaseModel):
    """What all generating routes share. None means the default of `tasks.generation.SamplingParams`."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: Text = Field(min_length=1, max_length=256)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000)  # 0 and -1: off
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, gt=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    repeat_last_n: int | None = Field(default=None, ge=-1, le=1_000_000)  # -1: the whole context
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: LogitBias | None = None
    seed: Seed = Field(default=None, description="-1: another one each time, as without it.")
    stop: Annotated[
        list[Text], FIRST_ERROR, BeforeValidator(_as_list, json_schema_input_type=str | list[str] | None)
    ] = []
    max_tokens: MaxTokens = Field(default=None, description="-1: until the context is full, as without it.")
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    grammar: Text | None = Field(default=None, description="GBNF, llama.cpp's notation; the answer follows it.")
    n: int | None = Field(default=None, ge=1)


class StreamOptions(BaseModel):
    include_usage: bool = False


class StreamingFields(BaseModel):
    """How the answer is delivered, and how urgent it is."""

    stream: bool | None = False
    stream_options: StreamOptions | None = None
    priority: PriorityName | None = None
    service_tier: ServiceTier | None = None
    metadata: Metadata | None = None  # of the job; `store` says nothing about jobs, which are kept for a while anyway

    @property
    def level(self) -> Priority:
        """`priority` decides, else the tier; somebody waits for the answer, so it is urgent otherwise."""
        if self.priority is not None:
            return Priority.named(self.priority)
        return level_of(self.service_tier, Priority.INTERACTIVE)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatFields(SamplingFields):
    """Log probabilities in the chat form, the newer name of max_tokens, and what is refused."""

    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[ToolDefinition], FIRST_ERROR] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None


class ChatBody(ChatFields, StreamingFields):
    """POST /v1/chat/completions"""

    messages: Messages


class CompletionBody(SamplingFields, StreamingFields):
    """POST /v1/completions"""

    prompt: Annotated[Text, BeforeValidator(_as_single, json_schema_input_type=str | _OneText)]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    suffix: Text | None = None
    best_of: int | None = None
