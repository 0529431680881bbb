"""Dynamic batching: one thread runs the model on what waits, as soon as the model is free."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from pycap.data.images import Pixels

log = logging.getLogger(__name__)

_ENDED = "the model's thread has ended; the log says why"

#: An image, uint8 [size, size, 3], by size: the members of an ensemble may want several.
Decoded = Mapping[int, Pixels]
#: (text, natural logarithm of its probability) of an image's captions, the most probable first.
Beams = list[tuple[str, float]]
#: Captions of images, searched for with so many beams.
Model = Callable[[Sequence[Decoded], int], list[Beams]]


class ModelError(RuntimeError):
    """The model failed on a batch, or its thread has ended; the log says why."""


class Answer(NamedTuple):
    """What the model says of an image. batch: images that it was given at once. queued_s, model_s: how long the image waited
    for it, and how long the batch took."""

    beams: Beams
    batch: int
    queued_s: float
    model_s: float


@dataclass(eq=False)
class _Waiting:
    image: Decoded
    beam_size: int
    answer: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """The model's thread and its queue. Entered with `with`: at the end what waits is finished first.

    An answer whose Future is cancelled before its turn is never computed: that is how callers drop what nobody waits for
    any more.
    """

    def __init__(
        self, model: Model, most: int, seen: Callable[[int, float], None], warm_up: Callable[[], None] = lambda: None
    ) -> None:
        """most: images at once. seen: called after each batch with its size and how many seconds it took. warm_up: what the
        thread does first; what it raises, `with` does."""
        self._model, self._most, self._seen, self._warm_up = model, most, seen, warm_up
        self._warm: Future[None] = Future()
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = self._failed = False
        # A daemon: a second Ctrl-C must not wait for a batch.
        self._thread = threading.Thread(target=self._run, name="pycap-model", daemon=True)

    def __enter__(self) -> Batcher:
        self._thread.start()
        self._warm.result()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def failed(self) -> bool:
        """Whether the thread has ended before its time."""
        return self._failed

    def __len__(self) -> int:
        """Images that wait for the model."""
        return len(self._queue)

    def submit(self, image: Decoded, beam_size: int) -> Future[Answer]:
        """Queue an image. The Future fails with ModelError where the model does."""
        waiting = _Waiting(image, beam_size)
        with self._changed:
            if self._closed:
                raise ModelError("the model takes no more images")
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.answer

    def _run(self) -> None:
        try:
            self._warm_up()
        except BaseException as error:
            self._warm.set_exception(error)
            return
        self._warm.set_result(None)
        try:
            while batch := self._next():
                self._caption(batch)
        except BaseException:
            self._fail()
            left, self._queue = self._queue, deque()
            for waiting in left:
                if waiting.answer.set_running_or_notify_cancel():
                    waiting.answer.set_exception(ModelError(_ENDED))
            log.critical("the model's thread has ended", exc_info=True)

    def _fail(self) -> None:
        """Take no more, and say so, before anyone is told."""
        with self._changed:
            self._closed = self._failed = True

    def _next(self) -> list[_Waiting]:
        """The image that waits longest with others of its beam size, once there is one; nothing when closed and done."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return []
                batch: list[_Waiting] = []
                left: deque[_Waiting] = deque()
                for waiting in self._queue:
                    fits = not batch or (len(batch) < self._most and waiting.beam_size == batch[0].beam_size)
                    if not fits:
                        left.append(waiting)
                    elif waiting.answer.set_running_or_notify_cancel():
                        batch.append(waiting)
                self._queue = left
            if batch:
                return batch

    def _caption(self, batch: list[_Waiting]) -> None:
        started = time.perf_counter()
        try:
            found = self._model([waiting.image for waiting in batch], batch[0].beam_size)
            took = time.perf_counter() - started
            answers = [
                Answer(beams, len(batch), started - waiting.since, took)
                for beams, waiting in zip(found, batch, strict=True)
            ]
            self._seen(len(batch), took)
        except Exception as error:
            log.exception("the model failed on a batch of %d", len(batch))
            for waiting in batch:
                waiting.answer.set_exception(ModelError(f"the model failed ({type(error).__name__})"))
            return
        except BaseException:
            self._fail()
            for waiting in batch:
                waiting.answer.set_exception(ModelError(_ENDED))
            raise
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.answer.set_result(answer)
