"""What is answered instead of what was asked for: a status, and a reason in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response


class Refused(Exception):
    """A request that is not served. status: of HTTP. reason: names the value and the limit; plain text of ours, into which
    what the client said goes through `shown` alone."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason
        # Who is to come later comes anew: a connection kept meanwhile may be closed just as it is used again, and it takes a
        # place from others.
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after), "connection": "close"}


def shown(value: str | bytes) -> str:
    """What a client said, fit for a message or a log: quoted, ASCII, 60 characters at most."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def in_json(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON that no cache keeps; in ASCII, for a file name that is no UTF-8 has no other form."""
    kept = {"cache-control": "no-store", **(headers or {})}
    return Response(json.dumps(content), status, kept, "application/json")


def error(status: int, message: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """An error as every answer tells it. more: what else the page needs to know."""
    return in_json({"status": "error", "message": message, **more}, status, headers)


def number_in_path(request: Request, name: str) -> int:
    """A number in a request's path. HTTPException for what is none: 404, thousands of digits too."""
    text: str = request.path_params[name]
    if not re.fullmatch("[0-9]{1,9}", text):
        raise HTTPException(404)
    return int(text)


async def refused(request: Request, exception: Exception) -> Response:
    """Starlette's handler of Refused."""
    assert isinstance(exception, Refused)
    return error(exception.status, exception.reason, exception.headers)
