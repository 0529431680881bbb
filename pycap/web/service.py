"""A captioner that answers requests: received, decoded, batched, captioned, within limits."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pycap import __version__, memory
from pycap.captioner import Captioner
from pycap.data.images import MAX_PIXELS
from pycap.device import cpu_count, decoding_threads
from pycap.web.admission import Admission
from pycap.web.batches import Answer, Batcher, Beams, Decoded, ModelError
from pycap.web.decoding import FORMATS, decode
from pycap.web.metrics import CONTENT_TYPE, Metrics
from pycap.web.openapi import document
from pycap.web.refusals import Refused, shown
from pycap.web.uploads import Form, check_head, read_form

T = TypeVar("T")

_STOPPED = "the model has stopped; the log of the service says why, and it must be started again"
# The pool may hold this times what the largest batch takes: batches of other sizes have blocks of their own.
_SPARE = 2
# What nginx calls the status of a request whose client has left; nobody sees it but the counters.
_GONE = 499


@dataclass(frozen=True)
class Limits:
    """What a service takes. beam_size: of a request that names none. max_batch: images that the model is given at once. queue:
    requests in hand. max_bytes, max_pixels: of an image. timeout_s: until every request is answered."""

    beam_size: int = 3
    max_beam_size: int = 10
    max_batch: int = 16
    queue: int = 64
    max_bytes: int = 10_000_000
    max_pixels: int = 40_000_000
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """ValueError for limits that contradict each other."""
        if self.beam_size > self.max_beam_size:
            raise ValueError(f"--beam-size {self.beam_size} is above --max-beam-size {self.max_beam_size}")
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"--max-pixels {self.max_pixels:,} is above {MAX_PIXELS:,}, the most that pycap decodes")


class Service:
    """A captioner that answers requests; entered with `with`, which warms it up, and at the end finishes what waits."""

    def __init__(
        self,
        captioner: Captioner,
        limits: Limits,
        name: str,
        digests: Sequence[str] = (),
        max_length: int | None = None,
    ) -> None:
        """name: what answers call the model. digests: of its checkpoints. max_length: words; None: as in training."""
        self.captioner, self.limits, self.name, self.digests = captioner, limits, name, digests
        self.max_length = captioner.config.max_length if max_length is None else max_length
        self.admission = Admission(limits.queue, limits.timeout_s)
        self._sizes = sorted({member.spec.resize for member in captioner.members})
        self._kept = math.inf
        build = {"version": __version__, "model": name, "checkpoint": " ".join(digests)}
        self.metrics = Metrics(build, lambda: len(self.batcher), lambda: self.admission.inside)
        self.batcher = Batcher(self._caption, limits.max_batch, self._batched, self._warm_up)
        self._pool = ThreadPoolExecutor(decoding_threads(cpu_count()), "pycap-decode")

    def __enter__(self) -> Self:
        self.batcher.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.drain()
        self.batcher.__exit__()
        self._pool.shutdown()

    def drain(self) -> None:
        """Take no more requests."""
        self.admission.closed = True

    # The model's thread ----------------------------------------------------------------------------------------------

    def _caption(self, images: Sequence[Decoded], beam_size: int) -> list[Beams]:
        read = {size: np.stack([image[size] for image in images]) for size in self._sizes}
        found = self.captioner.caption_batch(
            *self.captioner.arrays(read), beam_size=beam_size, max_length=self.max_length
        )
        if memory.pooled_bytes() > self._kept:
            memory.trim()
        return found

    def _batched(self, images: int, seconds: float) -> None:
        self.admission.each_s = seconds / images
        self.metrics.batched(images, seconds)

    def _warm_up(self) -> None:
        """The smallest batch and the largest, so that no request pays for what is made once, and to see what a batch takes."""
        blank = {size: np.zeros((size, size, 3), np.uint8) for size in self._sizes}
        memory.trim()
        self._caption([blank], self.limits.beam_size)
        began = time.perf_counter()
        self._caption([blank] * self.limits.max_batch, self.limits.beam_size)
        self.admission.each_s = (time.perf_counter() - began) / self.limits.max_batch
        self._kept = _SPARE * memory.pooled_bytes()

    # Requests --------------------------------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """The service's addresses."""
        return [
            Route("/model/predict", self.predict, methods=["POST"]),
            Route("/model/metadata", self.metadata),
            Route("/health", self.health),
            Route("/metrics", self.counters),
            Route("/openapi.json", self.openapi),
        ]

    async def predict(self, request: Request) -> Response:
        """`POST /model/predict`: the captions of one image."""
        if self.batcher.failed:
            raise Refused(503, _STOPPED)
        boundary = check_head(request.headers, "image", self.limits.max_bytes)
        limits = self.limits
        with self.admission.admitted():
            began, deadline = time.perf_counter(), asyncio.get_running_loop().time() + limits.timeout_s
            try:
                form = await read_form(request, boundary, "image", ("beam_size",), limits.max_bytes, deadline)
                beam_size = self._beam_size(form, request)
                received = time.perf_counter()
                async with asyncio.timeout_at(deadline):
                    answer, decoded_s = await _unless_gone(request, self._answer(form, beam_size))
            except TimeoutError as late:
                raise Refused(
                    504,
                    f"no caption within {limits.timeout_s:g} s: {self.admission.inside} requests are in hand",
                    self.admission.retry_after(),
                ) from late
            except ModelError as failed:
                raise Refused(503 if self.batcher.failed else 500, str(failed)) from failed
            except ClientDisconnect:
                return Response(status_code=_GONE)
            ended = time.perf_counter()
        self.metrics.seconds.observe(ended - began)
        spent = {
            "received": received - began,
            "decoded": decoded_s,
            "queued": answer.queued_s,
            "model": answer.model_s,
            "total": ended - began,
        }
        return JSONResponse(
            {
                "status": "ok",
                "predictions": [
                    {"index": str(number), "caption": text, "probability": math.exp(logprob)}
                    for number, (text, logprob) in enumerate(answer.beams)
                ],
                "model": self.name,
                "batch": answer.batch,
                "time": {f"{name}_ms": round(1000 * seconds, 3) for name, seconds in spent.items()},
            }
        )

    async def _answer(self, form: Form, beam_size: int) -> tuple[Answer, float]:
        """What the model says, and in how many seconds the image was decoded, a wait for its thread included."""
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._pool, decode, form.take(), self._sizes, self.limits.max_pixels)
        decoded_s = time.perf_counter() - began
        return await asyncio.wrap_future(self.batcher.submit(decoded, beam_size)), decoded_s

    def _beam_size(self, form: Form, request: Request) -> int:
        most = self.limits.max_beam_size
        asked = [*form.fields.values(), *request.query_params.getlist("beam_size")]
        if len(asked) > 1:
            raise Refused(422, f"beam_size is given {len(asked)} times; give it once, in the form or in the address")
        if not asked:
            return self.limits.beam_size
        if not re.fullmatch("[0-9]{1,9}", asked[0]) or not 1 <= int(asked[0]) <= most:
            raise Refused(422, f"beam_size is {shown(asked[0])}; it must be a whole number from 1 to {most}")
        return int(asked[0])

    async def metadata(self, request: Request) -> Response:
        """`GET /model/metadata`: which model this is, and what it takes."""
        captioner = self.captioner
        return JSONResponse(
            {
                "name": self.name,
                "checkpoints": list(self.digests),
                "version": __version__,
                "architectures": [f"{m.config.cnn} {m.config.model}" for m in captioner.members],
                "vocabulary": len(captioner.vocab),
                "image_size": captioner.spec.crop,
                "precision": captioner.precision,
                "device": captioner.device,
                "max_length": self.max_length,
                "limits": asdict(self.limits),
                "formats": list(FORMATS.values()),
            }
        )

    async def health(self, request: Request) -> Response:
        """`GET /health`: whether requests for captions are taken."""
        if self.batcher.failed:
            raise Refused(503, _STOPPED)
        if self.admission.closed:
            raise Refused(503, "the service is shutting down")
        return JSONResponse({"status": "ok"})

    async def counters(self, request: Request) -> Response:
        """`GET /metrics`: for Prometheus."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`: all of this, for programs."""
        limits = self.limits
        return JSONResponse(document(limits.beam_size, limits.max_beam_size, limits.max_bytes, limits.max_pixels))


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. ClientDisconnect where the client leaves before there is one; the work is cancelled then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass  # the rest of a body that has been read
