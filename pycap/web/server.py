"""Serving an application on this machine: its socket, uvicorn, the headers of every answer, the static files."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from importlib.resources import files
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from pycap.pages import stylesheet
from pycap.signals import SIGNALS
from pycap.web import WebError
from pycap.web.connections import Connection
from pycap.web.middleware import AnswerHeaders, Hosts, Lingering
from pycap.web.refusals import Refused, error, refused, shown

LOCAL = "127.0.0.1"
#: Names of this machine for itself.
LOCAL_NAMES = (LOCAL, "localhost", "::1")
BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any free one. WebError names the port and the remedy where there can be none."""
    listening: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as failure:
        if listening is not None:
            listening.close()
        taken = failure.errno == errno.EADDRINUSE
        reason = "another program listens there" if taken else failure.strerror or str(failure)
        remedy = "name another with --port, or --port 0 for any free one"
        if not taken and failure.errno != errno.EACCES:  # of a port below 1024
            remedy = "name an address of this machine with --host"
        raise WebError(f"{host}:{port}: {reason}; {remedy}") from failure
    return listening


def address(listening: socket.socket) -> str:
    """The address to open in a browser on this machine."""
    host, port = listening.getsockname()[:2]
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else f'[{host}]' if ':' in host else host}:{port}/"


def application(
    routes: Sequence[BaseRoute],
    *,
    hosts: Sequence[str] = LOCAL_NAMES,
    outermost: Sequence[Middleware] = (),
) -> Starlette:
    """An application with these routes, the static files, and the headers that every answer carries; errors are JSON.

    hosts: names under which it may be asked for ("*": any). outermost: what else all requests go through, first of all.
    """
    return Starlette(
        routes=[
            *routes,
            Route("/static/style.css", _style),
            Mount("/static", StaticFiles(packages=[("pycap.web", "static")])),
        ],
        middleware=[Middleware(Lingering), *outermost, Middleware(AnswerHeaders), Middleware(Hosts, names=hosts)],
        exception_handlers={Refused: refused, HTTPException: _wrong, Exception: _failed},
    )


def page(name: str) -> Route:
    """The page at `/`: a file of `pycap/web/static/`."""
    text = files("pycap.web").joinpath("static", name).read_text("utf-8")
    return Route("/", lambda request: Response(text, media_type="text/html"))


def serve(app: ASGIApp, listening: socket.socket, **options: Any) -> None:
    """Answer until Ctrl-C or SIGTERM. options: of `Server`."""
    Server(app, **options).run(sockets=[listening])


def _nothing() -> None:
    """What is done unless something else is asked for."""


class Server(uvicorn.Server):
    """uvicorn's server. The first signal lets it finish what was begun, with status 0; a second one ends it at once."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        grace_s: float = 10.0,
        started: Callable[[], None] = _nothing,
        stopping: Callable[[], None] = _nothing,
    ) -> None:
        """grace_s: how long it finishes at most. started: called when it answers. stopping: called, from a signal's handler,
        when it begins to end."""
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_config=None,
            lifespan="off",
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=max(1, math.ceil(grace_s)),
        )
        logging.getLogger("uvicorn").setLevel(
            logging.ERROR
        )  # its warnings are of requests: a client could fill the log
        super().__init__(config)
        self._started, self._stopping = started, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # tests; only the main thread may
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        self._stopping()


async def _style(request: Request) -> Response:
    return Response(stylesheet(), media_type="text/css")


async def _wrong(request: Request, exception: Exception) -> Response:
    """What Starlette itself refuses: paths and methods that there are not."""
    assert isinstance(exception, HTTPException)
    asked = f"{request.method} {shown(request.url.path)}"
    message = {404: f"{asked}: there is nothing here", 405: f"{asked}: this method is not served here"}
    said = exception.detail if exception.detail != HTTPStatus(exception.status_code).phrase else ""
    return error(
        exception.status_code,
        said or message.get(exception.status_code, exception.detail),
        dict(exception.headers or {}),
    )


async def _failed(request: Request, exception: Exception) -> Response:
    """A fault of ours; uvicorn logs it with its traceback."""
    return error(500, f"the server failed ({type(exception).__name__}); its log says more")
