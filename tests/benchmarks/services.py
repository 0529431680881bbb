"""In place of a `pycap serve` process: a server in the test's own event loop, whose answers the test decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from benchmarks.service import Usage

WELL = {"status": "ok", "predictions": [{"index": "0", "caption": "a", "probability": 0.5}]}


def http(status: int, body: object = WELL, **headers: str) -> bytes:
    """An answer as it is on the wire."""
    text = json.dumps(body)
    lines = [
        f"HTTP/1.1 {status} -",
        f"Content-Length: {len(text)}",
        *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + text).encode()


class StubService:
    """Quacks like `benchmarks.service.Service`. answer: makes of a request's number what is sent; empty: the connection is
    ended instead. files, memory: what it says that it has, by how many times it was asked."""

    def __init__(
        self,
        answer: Callable[[int], bytes],
        files: Callable[[int], int] = lambda asked: 5,
        memory: Callable[[int], float] = lambda asked: 50.0,
    ) -> None:
        self.address, self.host = ("127.0.0.1", 0), "127.0.0.1"
        self.tracebacks: list[str] = []
        self.requests = self._asked = 0
        self._answer, self._files, self._memory = answer, files, memory

    def usage(self) -> Usage:
        self._asked += 1
        return Usage(self._memory(self._asked), 60.0, self._files(self._asked), 4, 0.1 * self._asked)

    async def metrics(self) -> dict[str, float]:
        images = float(self.requests)
        return {"pycap_requests_in_hand": 0.0, "pycap_batch_images_count": images / 4, "pycap_batch_images_sum": images}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, found, length = head.partition(b"content-length:")
                if found:
                    await reader.readexactly(int(length.split(b"\r\n")[0]))
                self.requests += 1
                if not (said := http(200) if b"get /" in head else self._answer(self.requests)):
                    return
                writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client has left
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[StubService]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = server.sockets[0].getsockname()[:2]
        async with server:
            yield self
