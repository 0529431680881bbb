"""What a client sends, read within limits: a multipart form as it arrives, byte by counted byte."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request

from pycap.web.refusals import Refused, shown

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

#: What a form may take beside the file in it: boundaries, the parts' headers, fields.
FRAME_BYTES = 16 << 10
# A body may take so many seconds, and one more for each so many bytes of it that have come.
GRACE_S, BYTES_A_SECOND = 5.0, 16 << 10

_FORM = "send multipart/form-data with a file in the field `{}`"
# The parser logs a warning for each malformed body; the client is told, and the log would be the client's to fill.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass
class Form:
    """What came. file: the bytes of the one file; fields: text by name."""

    file: bytearray | None = None
    fields: dict[str, str] = field(default_factory=dict)

    def take(self) -> bytearray:
        """The file, which the form then no longer holds."""
        file, self.file = self.file, None
        assert file is not None
        return file


def check_head(headers: Headers, name: str, most: int) -> bytes:
    """The form's boundary, from a request's headers. Refused where they announce what `read_form` would not take."""
    kind, options = parse_options_header(headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Refused(415, f"the content type is {shown(kind) if kind else 'missing'}; " + _FORM.format(name))
    if not options.get(b"boundary"):
        raise Refused(400, "the content type multipart/form-data names no boundary")
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Refused(415, f"the content encoding is {shown(encoding)}; send the form as it is")
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        raise Refused(411, "the request has no body, or no Content-Length; " + _FORM.format(name))
    if length is not None and int(length) > most + FRAME_BYTES:  # digits: h11 has seen to it
        raise Refused(413, f"the request has {int(length):,} bytes; a file may have {most:,}")
    return options[b"boundary"]


async def read_form(
    request: Request, boundary: bytes, name: str, fields: Collection[str], most: int, deadline: float
) -> Form:
    """The form that a request brings, with one file of at most `most` bytes in the field `name`.

    fields: what else it may hold. deadline: when all of it must have come, by the event loop's clock. Refused says what is
    wrong with it; Starlette's ClientDisconnect: the client has left.
    """
    reading = _Reading(boundary, name, fields, most)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with asyncio.timeout_at(min(begun + GRACE_S, deadline)) as patience:
            async for chunk in request.stream():
                reading.write(chunk)
                patience.reschedule(min(begun + GRACE_S + reading.received / BYTES_A_SECOND, deadline))
    except TimeoutError as error:
        raise Refused(
            408,
            f"only {reading.received} bytes of the request came in {loop.time() - begun:.1f} s; after {GRACE_S:g} s the least "
            f"is {BYTES_A_SECOND} a second, and all must come within {deadline - begun:.0f} s",
        ) from error
    return reading.finish()


class _Reading:
    """A multipart form on its way."""

    def __init__(self, boundary: bytes, name: str, fields: Collection[str], most: int) -> None:
        self._name, self._known, self._most = name, fields, most
        self.received = 0
        self._form = Form()
        self._ended = False
        self._header, self._disposition = bytearray(), b""
        self._value = bytearray()
        self._key = ""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._part_begin,
            "on_header_begin": self._header_begin,
            "on_header_field": self._header_data,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise Refused(400, f"the form's boundary is of no use: {error}") from error

    def write(self, chunk: bytes) -> None:
        """Take what came next."""
        self.received += len(chunk)
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Refused(400, f"the form is malformed: {error}") from error
        if self.received - len(self._form.file or b"") > FRAME_BYTES:
            raise Refused(400, f"the form has more than {FRAME_BYTES} bytes beside the file in it")

    def finish(self) -> Form:
        """All that came. Refused where the form is not complete."""
        if not self._ended:
            raise Refused(
                400, f"the form ends after {self.received} bytes without its last boundary: it is empty or cut short"
            )
        if self._form.file is None:
            raise Refused(422, f"the field `{self._name}` is missing; " + _FORM.format(self._name))
        if not self._form.file:
            raise Refused(422, f"the file in the field `{self._name}` is empty")
        return self._form

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_begin(self) -> None:
        self._header, self._value = bytearray(), bytearray()

    def _header_data(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        key = options.get(b"name")
        if kind != b"form-data" or key is None:
            raise Refused(400, "a part of the form has no name (Content-Disposition: form-data; name=...)")
        self._key = key.decode("utf-8", "replace")
        file = self._key == self._name
        if not file and self._key not in self._known:
            known = ", ".join(f"`{each}`" for each in (self._name, *self._known))
            raise Refused(422, f"the form has a field {shown(self._key)}; it may have {known}")
        if self._form.file is not None if file else self._key in self._form.fields:
            raise Refused(422, f"the form has the field `{self._key}` twice; send one request an image")
        self._value = bytearray()
        if file:
            self._form.file = self._value

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._value += memoryview(data)[start:end]
        if self._key == self._name and len(self._value) > self._most:
            raise Refused(413, f"the file has more than {self._most:,} bytes")

    def _part_end(self) -> None:
        if self._key != self._name:
            self._form.fields[self._key] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True
