"""How many requests are taken at once, and when one that is turned away should come again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from pycap.web.refusals import Refused


class Admission:
    """At most `most` requests are in hand; memory is bounded by that, since none is read before it is admitted.

    Belongs to one event loop's thread.
    """

    def __init__(self, most: int, longest_s: float) -> None:
        """longest_s: within which every request that was admitted is answered. `each_s`: what the model takes an image; who
        knows it sets it, again and again."""
        self.most, self.longest_s = most, longest_s
        self.each_s = 0.0
        self.inside = 0
        self.closed = False
        self._begun = 0.0
        self._ended: deque[float] = deque(maxlen=2 * most)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Within this, one more is in hand. Refused with 503 where `most` are already, or as many as the model can answer in
        time, or none is taken any more."""
        if self.closed:
            raise Refused(503, "the service is shutting down", self.retry_after())
        if self.inside >= self.most:
            raise Refused(503, f"{self.inside} requests are in hand, the most that are taken", self.retry_after())
        if self.inside * self.each_s > self.longest_s:  # better told now than after a wait in vain
            why = f"{self.inside} requests are in hand, and the model takes {self.each_s:.2g} s an image"
            raise Refused(503, f"{why}: another is not answered within {self.longest_s:g} s", self.retry_after())
        if self.inside == 0:  # the rate is that of work without a pause
            self._begun = time.monotonic()
            self._ended.clear()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            self._ended.append(time.monotonic())

    def retry_after(self) -> int:
        """Seconds, 1 or more, until those in hand are answered at the rate of the latest ones."""
        each_s = self.each_s
        if self._ended:
            since = self._begun if len(self._ended) < self.most * 2 else self._ended[0]
            each_s = (time.monotonic() - since) / len(self._ended)
        return max(1, math.ceil(min(self.inside * each_s, self.longest_s)))
