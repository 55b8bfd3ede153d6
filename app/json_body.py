"""JSON bodies as routes read them: what makes validation slow or words errors badly is found before it.

Parsing and validation make an object in Python of every object and list in the body, in the event loop that all streams
share: a body of a few MiB could have millions. So they are counted in the text first, which costs a hundredth of that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MAX_CONTAINERS = 20_000  # objects and lists in one body; a conversation of 4096 messages in parts has 12 290
# Looks at each character once, whatever the text: it gives nothing back, and a string without an end goes to the end.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


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
        return parse(await self.body())


def parse(body: bytes) -> Any:
    """Raises HTTPException, and json.JSONDecodeError for what is no JSON at a place that it names."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"The body is no UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}."
        raise HTTPException(400, message) from None
    if (found := num_containers(text)) > MAX_CONTAINERS:
        raise HTTPException(400, f"The body has {found} JSON objects and lists; {MAX_CONTAINERS} are the most.")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise HTTPException(400, "The body's lists or objects are nested too deeply.") from None
    except ValueError:  # Python's bound on the digits of an integer
        raise HTTPException(400, "The body has a number with too many digits.") from None


def num_containers(text: str) -> int:
    """How many objects and lists begin in a JSON text; an upper bound where it is at most MAX_CONTAINERS."""
    found = _num_brackets(text)
    return found if found <= MAX_CONTAINERS else _num_brackets(_STRING.sub("", text))


def _num_brackets(text: str) -> int:
    return text.count("{") + text.count("[")
