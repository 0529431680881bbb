"""What every request goes through: names that we answer to, headers that every answer carries, bodies that nobody reads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pycap.web.connections import Connection
from pycap.web.refusals import error, shown

# Nothing from elsewhere, nothing inline; pictures may also be what the page has just made of a dropped file.
_POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    # Asked for again, and not sent again: else a browser may put an earlier version's script into a page for days.
    "cache-control": "no-cache",
}


class AnswerHeaders:
    """Adds the headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


class Hosts:
    """Refuses requests for other names than ours ("*": none): a page elsewhere may let its own name point to this machine."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self.names:
            asked = Headers(scope=scope).get("host", "")
            if re.sub(r":\d*$", "", asked).lower().strip("[]") not in self.names:
                await error(400, f"this is not {shown(asked)}, but {' or '.join(self.names)}")(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Lingering:
    """Takes what a client still sends after its answer, for a while: a connection that is closed on it is reset, and the answer
    may be lost with it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if scope["type"] != "http" or (
            "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        ):
            await self.app(scope, receive, send)
            return
        coming = True

        async def receiving() -> Message:
            nonlocal coming
            message = await receive()
            coming = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if coming and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(Connection.patience_s):
                        while coming:
                            await receiving()
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, receiving, sending)
