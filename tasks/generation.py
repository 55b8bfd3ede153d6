"""What a job asks the engine for. Validated at the HTTP edge, stored as JSON in the job record. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

MAX_SEED = 2**63


class ToolCall(msgspec.Struct, frozen=True):
    """A call that an assistant made earlier in the conversation; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn, text only; `role` is system, developer, user, assistant or tool."""

    role: str
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # of a tool's turn: the call that it answers


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are drawn; the defaults are llama-server's. Temperature 0 is greedy and ignores the filters.

    `seed` is drawn at admission when the client gives none, so that a later attempt continues the same
    random stream: token number n of a job always uses the uniform number (seed, n).
    """

    temperature: float = 0.8
    top_k: int = 40  # 0 = off
    top_p: float = 0.95  # 1 = off
    min_p: float = 0.05  # 0 = off
    typical_p: float = 1.0  # 1 = off
    repeat_penalty: float = 1.0  # 1 = off
    repeat_last_n: int = 64  # tokens that the penalties look back on
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = {}  # token id (decimal) → added to its logit
    seed: int = 0  # 0 ≤ seed < MAX_SEED


class AnswerFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form that an answer is kept to: a JSON schema with `x-guidance` options (see `tasks.grammars`), or GBNF."""

    kind: Literal["json_schema", "gbnf"]
    text: str


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call. Both JSON texts are parsed only where they are needed."""

    name: str
    definition: str  # OpenAI's function object, as templates show it to the model
    parameters: str  # schema of its arguments, with the options of `tasks.grammars.json_schema_format`


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="generate"):
    """The whole request of one job: exactly one of `messages` and `prompt` is set."""

    model: str
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    sampling: SamplingParams = SamplingParams()
    max_tokens: int | None = None  # None: until the context is full
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: off; 0: of the chosen token only; n: and the n most likely
    answer_format: AnswerFormat | None = None  # None: free text
    tools: tuple[Tool, ...] = ()
    must_call_tool: bool = False
    only_tool: str | None = None  # the one that may be called
    parallel_tool_calls: bool = True  # several in one answer


FinishReason = Literal["stop", "length"]


class TokenLogprob(msgspec.Struct, frozen=True, omit_defaults=True):
    """Natural-log probability of one token, and of the likeliest ones at its place."""

    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    data: bytes | None = None  # the token's bytes where they are no whole characters, and so not what `text` says

    @property
    def token_bytes(self) -> bytes:
        return self.text.encode() if self.data is None else self.data


JsonObject = dict[str, Any]
