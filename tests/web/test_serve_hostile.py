"""Requests that nobody should send: each is refused with a reason, in time, and the service goes on."""

from __future__ import annotations

import asyncio
import io
import re
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra `web` is not installed")

from starlette.applications import Starlette
from starlette.requests import Request

import pycap
from pycap.web import uploads
from pycap.web.connections import Connection
from pycap.web.decoding import decode
from pycap.web.refusals import Refused
from pycap.web.service import Service
from tests.train.conftest import _selection, data, trained
from tests.web.service import PREDICT, Held, exchange, form, head, later, listening, picture, post, serving, until

__all__ = ["_selection", "data", "trained"]

MOST = 100_000  # bytes of an image
POST = b"POST /model/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'


@pytest.fixture(scope="module")
def service(trained: Path) -> Iterator[tuple[Service, Starlette]]:
    with serving(pycap.load(trained), max_bytes=MOST, max_pixels=10_000, queue=2) as both:
        yield both


@pytest.fixture(scope="module")
def address(service: tuple[Service, Starlette]) -> Iterator[tuple[str, int]]:
    with listening(service[1]) as bound:
        yield bound


@pytest.fixture(autouse=True)
def alive(service: tuple[Service, Starlette]) -> Iterator[None]:
    """After each test nothing is in hand, and a caption is to be had."""
    yield
    assert service[0].admission.inside == 0
    assert post(service[1], **form(picture(0))).status_code == 200


def whole(image: bytes, extra: bytes = b"", part: bytes = PART) -> bytes:
    return part + image + b"\r\n" + extra + b"--b--\r\n"


def sent(body: bytes, **headers: str) -> dict[str, Any]:
    """Arguments of httpx for a body written by hand."""
    return {"content": body, "headers": {"content-type": "multipart/form-data; boundary=b"} | headers}


def field(name: str, value: str) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def png(width: int, height: int) -> bytes:
    """A PNG that says to be of this size."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(9999)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def scans(count: int) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    image = picture(0, progressive=True)
    last = image.rindex(b"\xff\xda")
    return image[:-2] + image[last:-2] * (count - image.count(b"\xff\xda")) + image[-2:]


REFUSED = {
    "oversize": (form(bytes(MOST + 20_000)), 413, f"the request has 120... bytes; a file may have {MOST:,}"),
    "a byte too many": (
        form(picture(0) + bytes(MOST + 1 - len(picture(0)))),
        413,
        f"the file has more than {MOST:,} bytes",
    ),
    "truncated image": (form(picture(0)[:-200]), 400, "the image cannot be used: corrupt or cut short"),
    "truncated header": (form(picture(0)[:40]), 4, ""),
    "bomb": (form(png(60_000, 60_000)), 413, "the image has more than the 10,000 pixels"),
    "large": (form(png(101, 100)), 413, "the image has 101 x 100 pixels; it may have 10,000"),
    "many scans": (form(scans(65)), 400, "the image is a JPEG of more than 64 scans"),
    "text": (form(b"GIF? no, \xff"), 415, "the file is not an image of a known format (JPEG, PNG, WEBP, GIF, BMP), or"),
    "a file's name": (form(b"photo.jpg"), 415, "is it a file's name in place of the file? (curl: -F image=@NAME)"),
    "another format": (form(picture(0, "TIFF")), 415, "the file is not an image of a known format"),
    "a phone's format": (form(b"\0\0\0\x24ftypheic" + bytes(300)), 415, "but HEIC or AVIF: save it as a JPEG"),
    "PostScript": (form(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 415, "the file is not an image"),
    "empty": (form(b""), 422, "the file in the field `image` is empty"),
    "no image": (sent(field("beam_size", "2") + b"--b--\r\n"), 422, "the field `image` is missing"),
    "no file": ({"data": {"image": "x"}}, 415, "the content type is 'application/x-www-form-urlencoded'"),
    "no form": ({"json": {}}, 415, "the content type is 'application/json'; send multipart/form-data"),
    "no type": ({"content": b"x"}, 415, "the content type is missing"),
    "no body": (sent(b""), 400, "the form ends after 0 bytes"),
    "gzip": (sent(b"x", **{"content-encoding": "gzip"}), 415, "the content encoding is 'gzip'"),
    "no boundary": (sent(b"x", **{"content-type": "multipart/form-data"}), 400, "names no boundary"),
    "long boundary": (
        sent(b"x", **{"content-type": "multipart/form-data; boundary=" + "b" * 300}),
        400,
        "the form's boundary is of no use",
    ),
    "another boundary": (sent(b"--c\r\n\r\n--c--"), 400, "the form is malformed: "),
    "cut short": (sent(whole(picture(0))[:-8]), 400, "without its last boundary: it is empty or cut short"),
    "two images": (sent(PART + b"x\r\n" + whole(b"x")), 422, "the form has the field `image` twice"),
    "an unknown field": (form(picture(0), beamsize="2"), 422, "a field 'beamsize'; it may have `image`, `beam_size`"),
    "many parts": (sent(field("beam_size", "1") * 1000), 422, "the form has the field `beam_size` twice"),
    "a nameless part": (sent(b"--b\r\nContent-Type: a/b\r\n\r\nx\r\n--b--"), 400, "a part of the form has no name"),
    "long part headers": (
        sent(b"--b\r\n" + b"A: b\r\n" * 9 + b"\r\n\r\n--b--"),
        400,
        "the form is malformed: Maximum header",
    ),
    "a long field": (sent(whole(picture(0), field("beam_size", "1" * 20_000))), 400, "16384 bytes beside the file"),
    "a long epilogue": (sent(whole(picture(0)) + bytes(17_000)), 400, "16384 bytes beside the file"),
    "beam_size 0": (form(picture(0), beam_size="0"), 422, "beam_size is '0'; it must be a whole number from 1 to 10"),
    "beam_size 11": (form(picture(0), beam_size="11"), 422, "beam_size is '11'"),
    "beam_size -1": (form(picture(0), beam_size="-1"), 422, "beam_size is '-1'"),
    "beam_size 1e3": (form(picture(0), beam_size="1e3"), 422, "beam_size is '1e3'"),
    "beam_size of digits elsewhere": (form(picture(0), beam_size="٣"), 422, "beam_size is '\\u0663'"),
    "beam_size of a long number": (form(picture(0), beam_size="1" * 5000), 422, "beam_size is '111"),
    "beam_size twice": (
        form(picture(0), beam_size="2") | {"params": {"beam_size": "2"}},
        422,
        "beam_size is given 2 times",
    ),
    "markup": (form(picture(0), beam_size="<script>\n\x1b[31m"), 422, "beam_size is '<script>\\n\\x1b[31m'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_a_reason(service: tuple[Service, Starlette], case: str) -> None:
    request, status, reason = REFUSED[case]
    answer = post(service[1], **request)
    said = answer.json()
    assert said.keys() == {"status", "message"} and said["status"] == "error"
    if status == 4:  # which one is the decoder's affair
        assert answer.status_code in (400, 411, 415)
    else:
        assert answer.status_code == status, said
    *before, after = reason.partition("...")[::2]
    assert all(part in said["message"] for part in (*before, after)), said
    assert said["message"].isascii() and said["message"].isprintable()
    assert len(said["message"]) < 300


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "a\x00b.jpg", "<img src=x>.jpg", "C:\\x.jpg", "n" * 3000]
)
def test_the_files_name_means_nothing(
    service: tuple[Service, Starlette], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: opened.append(args))
    answer = post(service[1], **form(picture(0), name))
    monkeypatch.undo()
    assert answer.status_code == 200 and not opened
    assert name not in answer.text


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_what_browsers_send_is_taken(service: tuple[Service, Starlette], format: str) -> None:
    assert post(service[1], **form(picture(0, format))).status_code == 200


def test_a_jpeg_may_be_followed_by_anything(service: tuple[Service, Starlette]) -> None:
    film = b"\xff\xda\x00\x02" * 20_000  # as phones do: a second picture, a film
    assert post(service[1], **form(picture(0) + film)).status_code == 200
    assert post(service[1], **form(scans(64))).status_code == 200


def test_ten_thousand_mutations() -> None:
    """Whatever is done to a file, it is decoded or refused."""
    grey = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60))
    wide = io.BytesIO()
    grey.save(wide, "PNG")
    files = [
        picture(1),
        picture(2, progressive=True),
        *(picture(3, f) for f in ("PNG", "WEBP", "GIF", "BMP")),
        wide.getvalue(),
    ]
    rng, outcomes = Random(0), dict.fromkeys((0, 400, 413, 415), 0)
    for number in range(10_000):
        file = bytearray(files[number % len(files)])
        for _ in range(rng.choice((1, 1, 2, 8))):
            at, how = rng.randrange(len(file)), rng.random()
            if how < 0.7:
                file[at] = rng.randrange(256)
            elif how < 0.8:
                file[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"))
            elif how < 0.9:
                file[at:at] = rng.randbytes(rng.randrange(1, 9))
            else:
                del file[max(at, 1) :]
        try:
            decode(file, [32], 10_000)
            outcomes[0] += 1
        except Refused as refused:
            assert refused.reason.isprintable()
            outcomes[refused.status] += 1
    assert min(outcomes.values()) > 10, outcomes


# -- on the wire ------------------------------------------------------------------------------------------------------


def test_garbage_is_answered_and_the_connection_closed(address: tuple[str, int]) -> None:
    for garbage in (
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00" * 20,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ):
        status, said = head(exchange(address, garbage))
        assert status == 400 and said == {"status": "error", "message": "Invalid HTTP request received."}


def test_a_head_without_end(address: tuple[str, int]) -> None:
    status, _ = head(exchange(address, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 70_000))
    assert status == 400


@pytest.mark.parametrize("begun", [b"", b"POST /model/pre", POST])
def test_a_slow_head_ends_the_connection(
    address: tuple[str, int], begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "patience_s", 0.1)
    assert exchange(address, begun) == b""


def test_a_slow_second_head_ends_the_connection(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "patience_s", 0.1)
    monkeypatch.setattr(Connection, "timeout_keep_alive_handler", lambda self: None)  # uvicorn's, which comes after 5 s
    said = exchange(address, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hea")
    assert said.count(b"HTTP/1.1 ") == 1 and said.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("body", [b"", PART + b"\xff\xd8\xff"])
def test_a_slow_body_is_refused(address: tuple[str, int], body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "GRACE_S", 0.1)
    monkeypatch.setattr(Connection, "patience_s", 0.1)
    status, said = head(exchange(address, POST + b"Content-Length: 5000\r\n\r\n" + body))
    assert status == 408
    told = rf"only {len(body)} bytes of the request came in \d+\.\d s; after 0\.1 s the least is 16384 a second"
    assert re.match(told, said["message"])


@pytest.mark.parametrize(
    ("size", "seconds", "taken"), [(400_000, 20, True), (400_000, 29.7, False), (900_000, 31, False)]
)
def test_a_body_may_take_as_long_as_its_bytes_are_worth_and_no_longer_than_all(
    size: int, seconds: float, taken: bool
) -> None:
    """400,000 bytes are worth 24.4 s beside the 5 of any body; 900,000 are worth 55, and 30 are left."""

    async def run() -> Refused | None:
        coming = [PART + bytes(size), b"\r\n--b--\r\n"]

        async def receive() -> dict[str, Any]:
            if len(coming) == 1:
                later(seconds)
                await asyncio.sleep(0.001)
            return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming)}

        request, deadline = Request({"type": "http"}, receive), asyncio.get_running_loop().time() + 30
        try:
            form = await uploads.read_form(request, b"b", "image", (), 10**6, deadline)
        except Refused as refused:
            return refused
        assert form.file == bytes(size)
        return None

    refused = asyncio.run(run())
    assert refused is None if taken else refused is not None and refused.status == 408


def test_a_body_in_chunks_is_counted(address: tuple[str, int]) -> None:
    def chunk(data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data)

    start = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    small = [chunk(whole(picture(0))[at : at + 7]) for at in range(0, len(whole(picture(0))), 7)]
    status, said = head(exchange(address, start, *small, b"0\r\n\r\n"))
    assert status == 200 and said["status"] == "ok"
    status, said = head(exchange(address, start, chunk(PART), *[chunk(bytes(10_000))] * 20, b"0\r\n\r\n"))
    assert status == 413 and said["message"] == f"the file has more than {MOST:,} bytes"


def test_a_broken_chunk(address: tuple[str, int]) -> None:
    status, said = head(exchange(address, POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n--b\r\n", b"zz\r\n"))
    assert status == 400 and said["message"] == "Invalid HTTP request received."


def test_what_is_no_http_after_what_is_no_form_is_answered_once(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """The application refuses the form just as the connection, having answered for it, is about to end."""
    status, _ = head(exchange(address, POST + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\nzz\r\n"))
    assert status == 400 and not caplog.records


def test_an_answer_under_way_is_a_connections_last_when_the_server_stops(
    service: tuple[Service, Starlette], address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, made, stopped, body = Held(service[0]), [], threading.Event(), whole(picture(0))
    begin = Connection.connection_made
    monkeypatch.setattr(Connection, "patience_s", 60)  # neither of the timers ends it
    monkeypatch.setattr(Connection, "timeout_keep_alive_handler", lambda self: None)
    monkeypatch.setattr(Connection, "connection_made", lambda self, on: (made.append(self), begin(self, on)))
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert held.busy.acquire(timeout=20)
        made[0].loop.call_soon_threadsafe(lambda: (made[0].shutdown(), stopped.set()))
        assert stopped.wait(20)
        held.let_go()
        said = b"".join(iter(lambda: client.recv(65536), b""))
    service[0].batcher._model = held._model
    assert head(said)[0] == 200


def test_a_length_that_lies(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    body = whole(picture(0))
    with monkeypatch.context() as hasty:
        hasty.setattr(uploads, "GRACE_S", 0.1)
        hasty.setattr(Connection, "patience_s", 0.1)
        status, said = head(exchange(address, POST + b"Content-Length: %d\r\n\r\n" % (len(body) + 9), body))
    assert status == 408, said
    said = exchange(address, POST + b"Content-Length: %d\r\n\r\n" % (len(body) - 9), body)
    first, _, second = said[1:].partition(b"HTTP/1.1 ")
    assert b" 400 " in first.splitlines()[0] and b"cut short" in first
    assert second.startswith(b"400 ")  # the rest is taken for a request
    status, said = head(exchange(address, POST + b"Connection: close\r\n\r\n"))
    assert status == 411 and said["message"].startswith(
        "the request has no body, or no Content-Length; send multipart/"
    )
    status, _ = head(exchange(address, POST + b"Content-Length: -1\r\n\r\n"))
    assert status == 400
    status, _ = head(exchange(address, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n"))
    assert status == 400


def test_a_refusal_is_readable_though_the_body_is_still_sent(address: tuple[str, int]) -> None:
    """A connection that is closed on unread bytes is reset, and the answer lost."""
    size = 5_000_000
    said = exchange(address, POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % size, *[bytes(50_000)] * 100)
    status, answer = head(said)
    assert status == 413 and answer["message"] == f"the request has {size:,} bytes; a file may have {MOST:,}"


def test_a_connection_outlives_a_refusal(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        for _ in range(2):
            assert client.post(PREDICT, **form(bytes(MOST * 3))).status_code == 413
            assert client.post(PREDICT, **form(picture(0))).status_code == 200
            assert client.post("/nothing", **form(picture(0))).status_code == 404


def test_where_there_is_no_room_a_body_is_not_asked_for(
    service: tuple[Service, Starlette], address: tuple[str, int]
) -> None:
    waiting = POST + b"Connection: close\r\nExpect: 100-continue\r\n"
    service[0].admission.inside += 2
    try:
        said = exchange(
            address, POST + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n", b"x" * 5000
        )
    finally:
        service[0].admission.inside -= 2
    status, answer = head(said)  # and no 100 before it
    assert status == 503 and answer["message"] == "2 requests are in hand, the most that are taken"
    body = whole(picture(0))
    said = exchange(address, waiting + b"Content-Length: %d\r\n\r\n" % len(body), body)
    assert said.startswith(b"HTTP/1.1 100 ") and b"HTTP/1.1 200 " in said


def test_a_client_that_leaves_is_forgotten(service: tuple[Service, Starlette], address: tuple[str, int]) -> None:
    held = Held(service[0])
    body = whole(picture(0))
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body

    async def work() -> None:
        _, first = await asyncio.open_connection(*address)
        first.write(request)
        await held.is_busy()
        _, second = await asyncio.open_connection(*address)
        second.write(request)
        await until(lambda: len(service[0].batcher) == 1)
        for each in (first, second):
            each.close()
        await until(lambda: service[0].admission.inside == 0)
        _, third = await asyncio.open_connection(*address)  # one that leaves in the middle of its body
        third.write(request[:-100])
        await until(lambda: service[0].admission.inside == 1)
        third.close()
        await until(lambda: service[0].admission.inside == 0)
        held.let_go()
        await until(lambda: len(service[0].batcher) == 0)

    asyncio.run(work())
    service[0].batcher._model = held._model
    assert held.sizes == [1]  # the second one's turn never came


@pytest.mark.parametrize("pieces", [1, 50])
def test_a_client_that_does_not_take_its_answer(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    from pycap.web.server import application

    monkeypatch.setattr(Connection, "patience_s", 0.1)
    large = [bytes(50_000_000 // pieces)] * pieces
    app = application([Route("/large", lambda request: StreamingResponse(iter(large)))])
    closed, lost = threading.Event(), Connection.connection_lost
    monkeypatch.setattr(Connection, "connection_lost", lambda *of: (lost(*of), closed.set()))

    async def work(bound: tuple[str, int]) -> int:
        reader, writer = await asyncio.open_connection(*bound, limit=1000)
        writer.write(b"GET /large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        reading = writer.transport
        reading.pause_reading()
        assert await asyncio.to_thread(closed.wait, 20)
        reading.resume_reading()
        received = 0
        try:
            while more := await reader.read(1 << 20):
                received += len(more)
        except ConnectionError:
            assert received
        return received

    with listening(app) as bound:
        assert asyncio.run(work(bound)) < 50_000_000


def test_too_many_connections_are_closed(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "most", 0)
    try:
        assert exchange(address, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") == b""
    except ConnectionError as error:
        assert "reset" in str(error)


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "127.0.0.1@evil.example"])
def test_another_name_is_not_ours(address: tuple[str, int], name: str) -> None:
    said = exchange(address, f"GET /health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 400 ")
    for own in ("localhost", "127.0.0.1:8000", "LOCALHOST:1", "[::1]:8000", "[::1]"):
        said = exchange(address, f"GET /health HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 200 "), own


@pytest.mark.parametrize(
    ("path", "status"),
    [("/static/../serve.py", 404), ("/static/%2e%2e/serve.py", 404), ("/static//etc/passwd", 404), ("/examples/0", 404)]
    + [("/examples/..%2f..%2fetc%2fpasswd", 404), ("/nothing", 404), ("/model/predict", 405), ("/static/", 404)],
)
def test_paths_that_there_are_not(address: tuple[str, int], path: str, status: int) -> None:
    said = exchange(address, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    found, answer = head(said)
    assert found == status and answer["status"] == "error"
    assert b"content-security-policy: " in said
