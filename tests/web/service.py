"""What the tests of `pycap serve` share: images, forms, requests in one process, a server on a port, a model to hold."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import numpy as np
from PIL import Image
from starlette.applications import Starlette

from pycap.captioner import Captioner
from pycap.web import server
from pycap.web.serve import build
from pycap.web.service import Limits, Service

T = TypeVar("T")
PREDICT = "/model/predict"


def picture(seed: int = 0, format: str = "JPEG", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    """A file of random colours in large patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(patches).resize(size).save(file, format, **options)
    return file.getvalue()


def form(image: bytes, name: str = "a.jpg", **fields: str) -> dict[str, Any]:
    """Arguments of httpx for a request."""
    return {"files": {"image": (name, image, "image/jpeg")}, "data": fields}


def together(app: Starlette, work: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
    """What `work` makes of a client of the application, in one event loop."""

    async def run() -> T:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await work(client)

    return asyncio.run(run())


def post(app: Starlette, **request: Any) -> httpx.Response:
    """One request for captions."""
    return together(app, lambda client: client.post(PREDICT, **request))


@contextmanager
def serving(captioner: Captioner, **limits: Any) -> Iterator[tuple[Service, Starlette]]:
    """A service with these limits, and its application."""
    with Service(captioner, Limits(**limits), "tiny", ["0" * 64]) as service:
        yield service, build(service, [])


class Held:
    """A model that stops before each batch until it is let go. sizes: of the batches it was given."""

    def __init__(self, service: Service) -> None:
        self.sizes: list[int] = []
        self.busy = threading.Semaphore(0)
        self._go = threading.Event()
        self._model = service.batcher._model
        service.batcher._model = self._call

    def _call(self, images: Sequence[Any], beam_size: int) -> Any:
        self.sizes.append(len(images))
        self.busy.release()
        assert self._go.wait(20)
        return self._model(images, beam_size)

    def let_go(self) -> None:
        """Every batch from now on runs."""
        self._go.set()

    async def is_busy(self) -> None:
        """Returns when the model has got a batch."""
        assert await asyncio.to_thread(self.busy.acquire, timeout=20)


async def until(true: Callable[[], bool]) -> None:
    """Lets the event loop run until something is so."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.001)


def later(seconds: float) -> None:
    """The running event loop's clock goes on by so much at once: what was to end meanwhile, ends."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]


@contextmanager
def listening(app: Starlette) -> Iterator[tuple[str, int]]:
    """The application on a port of its own."""
    with server.listen(server.LOCAL, 0) as bound:
        running = server.Server(app, grace_s=5)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
        address = bound.getsockname()[:2]
        thread.start()
        try:
            yield address
        finally:
            running.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def exchange(address: tuple[str, int], *sent: bytes) -> bytes:
    """What a server says to these bytes before it closes the connection."""
    with socket.create_connection(address, timeout=20) as connection:
        for each in sent:
            connection.sendall(each)
        said = b""
        while more := connection.recv(65536):
            said += more
        return said


def head(said: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer as it was on the wire."""
    start, _, body = said.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(body)
