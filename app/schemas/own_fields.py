"""Bodies of routes that are Keepwarm's own: a field that nobody reads is a mistake there.

OpenAI's routes take no offence at unknown fields, since clients send many that other servers know.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from tasks.spelling import MAX_COMPARED_CHARS, nearest

UNKNOWN_FIELD = "unknown_field"


class OwnFields(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, body: object) -> object:
        """`forbid` refuses them too, but doesn't say which field was meant."""
        if not isinstance(body, dict):
            return body
        unknown = next((name for name in body if name not in cls.model_fields), None)
        if unknown is None:
            return body
        meant = nearest(unknown, cls.model_fields)
        advice = "/docs lists those there are" if meant is None else f"did you mean '{meant}'?"
        error = PydanticCustomError(UNKNOWN_FIELD, "there is no such field; {advice}", {"advice": advice})
        where = unknown[:MAX_COMPARED_CHARS]
        raise ValidationError.from_exception_data(
            cls.__name__, [InitErrorDetails(type=error, loc=(where,), input=body[unknown])]
        )
