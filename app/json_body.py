"""JSON bodies as routes read them: what makes validation slow or words errors badly is found before it.

Validation makes an object in Python of every object in the body, in the event loop that all streams share: a body of a
few MiB could have half a million. So they are counted first, which costs a hundredth of that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MAX_OBJECTS = 20_000  # in one body; a conversation of 4096 messages in parts has 8192


class JsonBodyRoute(APIRoute):
    """Give it to an APIRouter as its `route_class`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_checked(request: Request) -> Response:
            return await handle(_CheckedRequest(request.scope, request.receive))

        return handle_checked


class _CheckedRequest(Request):
    async def json(self) -> Any:
        """Raises HTTPException and json.JSONDecodeError, the errors that FastAPI does not reword."""
        value = parse(await self.body())
        if (found := num_objects(value)) > MAX_OBJECTS:
            raise HTTPException(400, f"The body has {found} JSON objects; {MAX_OBJECTS} are the most.")
        return value


def parse(body: bytes) -> Any:
    """Raises HTTPException, and json.JSONDecodeError for what is no JSON at a place that it names."""
    try:
        return json.loads(body)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        message = f"The body is no UTF-8: byte {error.start} is 0x{body[error.start]:02x}."
        raise HTTPException(400, message) from None
    except RecursionError:
        raise HTTPException(400, "The body's lists or objects are nested too deeply.") from None
    except ValueError:  # Python's bound on the digits of an integer
        raise HTTPException(400, "The body has a number with too many digits.") from None


def num_objects(value: Any) -> int:
    found, to_look_at = 0, [value]
    while to_look_at:
        match to_look_at.pop():
            case dict() as members:
                found += 1
                to_look_at.extend(each for each in members.values() if isinstance(each, dict | list))
            case list() as items:
                to_look_at.extend(each for each in items if isinstance(each, dict | list))
    return found
