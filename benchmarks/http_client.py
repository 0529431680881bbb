"""A small HTTP/1.1 client on asyncio that costs little CPU, since it shares the CPUs with the service that it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import cast

Address = tuple[str, int]
_END = b"\r\n\r\n"
BOUNDARY = "----pycap-load"


class Dropped(ConnectionError):
    """A connection that ended before its answer was whole."""


@dataclass(frozen=True)
class Answer:
    """What came back. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether the connection cannot be asked again."""
        return self.headers.get("connection", "").lower() == "close"


def predict_request(
    image: bytes,
    *,
    host: str = "localhost",
    name: str = "image.jpg",
    media: str = "image/jpeg",
    boundary: str = BOUNDARY,
) -> bytes:
    """A whole `POST /model/predict` of one image."""
    return post(multipart(image, name, media, boundary), f"multipart/form-data; boundary={boundary}", host=host)


def multipart(image: bytes, name: str = "image.jpg", media: str = "image/jpeg", boundary: str = BOUNDARY) -> bytes:
    """The form's body: one file in the field `image`."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: {media}\r\n\r\n'
    return head.encode() + image + f"\r\n--{boundary}--\r\n".encode()


def post(body: bytes, content_type: str, path: str = "/model/predict", *, host: str = "localhost") -> bytes:
    """A whole request with a body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str, *, host: str = "localhost") -> bytes:
    """A whole request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


class Connection(asyncio.Protocol):
    """One connection, asked one thing after the other until it ends."""

    def __init__(self, timeout_s: float) -> None:
        """timeout_s: how long an answer may take."""
        self.timeout_s, self.ended = timeout_s, False
        self._received = bytearray()
        self._head: tuple[int, dict[str, str], int, int] | None = (
            None  # status, headers, where the body begins and ends
        )
        self._waiting: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, address: Address, timeout_s: float = 60.0) -> Connection:
        """A new one."""
        _, made = await asyncio.get_running_loop().create_connection(lambda: cls(timeout_s), *address)
        return made

    def send(self, data: bytes) -> None:
        """Write a part of a request, or what is none."""
        self._transport.write(data)

    async def ask(self, request: bytes) -> Answer:
        """The answer to a whole request. Dropped where the connection ends before it; TimeoutError where none comes."""
        self.send(request)
        return await self.answer()

    async def answer(self) -> Answer:
        """The next answer, as `ask` has it."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._look()
        if self.ended:
            self._lose(None)
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await self._waiting
        finally:
            self._waiting = None
        if answer.closes:
            self.close()
        return answer

    def close(self) -> None:
        """End it once all is sent."""
        self.ended = True
        self._transport.close()

    def abort(self) -> None:
        """End it now, as the system does for a program that is killed."""
        self.ended = True
        self._transport.abort()

    # What asyncio calls ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._look()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self._lose(error)

    def _look(self) -> None:
        """Hand over the answer, where one is wanted and whole."""
        if self._head is None:
            end = self._received.find(_END)
            if end < 0:
                return
            self._head = _parse(bytes(self._received[:end]), end + len(_END))
        status, headers, begin, end = self._head
        if len(self._received) >= end and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(Answer(status, headers, bytes(self._received[begin:end])))
            del self._received[:end]
            self._head = None

    def _lose(self, error: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            part = bytes(self._received[:200])
            self._waiting.set_exception(Dropped(f"the connection ended ({error}) after {part!r} of the answer"))


class Client:
    """Asks over one connection that stays open, or the next one where the service has ended it."""

    def __init__(self, address: Address, timeout_s: float = 60.0) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._connection: Connection | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    async def ask(self, request: bytes) -> Answer:
        """As `Connection.ask`."""
        if self._connection is None or self._connection.ended:
            self._connection = await Connection.open(self.address, self.timeout_s)
        return await self._connection.ask(request)


def _parse(head: bytes, begin: int) -> tuple[int, dict[str, str], int, int]:
    """The status, the headers, and where the body begins and ends."""
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split(" ", 2)[1]), headers, begin, begin + int(headers.get("content-length", 0))
