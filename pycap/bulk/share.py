"""Which images a process captions, and in which batches: every batch is the same whoever makes it.

What a caption's last bits are depends on the other images of its batch: kernels divide a matrix by its shape. So the
images are cut into batches in one way only, by their number: batch number k holds images k*B to (k+1)*B - 1. Shard i of n makes
the batches i-1, i-1+n, i-1+2n, ...; and a job that is continued begins with the batch in which it was stopped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pycap.data.inputs import Inputs
from pycap.data.items import Reference


@dataclass(frozen=True)
class Shard:
    """Part number `number`, from 1, of `count`."""

    number: int = 1
    count: int = 1

    @classmethod
    def parsed(cls, text: str) -> Shard:
        """Of `i/n`. ValueError for others."""
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"{text!r} is not i/n, shard i of n, as 1/4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, position: int, batch_size: int) -> bool:
        """Whether the image number `position`, from 0, is in it."""
        return position // batch_size % self.count == self.number - 1

    def share(self, images: int, batch_size: int) -> int:
        """How many of so many images are in it."""
        rounds, rest = divmod(images, batch_size * self.count)
        return rounds * batch_size + min(max(rest - (self.number - 1) * batch_size, 0), batch_size)


WHOLE = Shard()


class Passed:
    """How many images were gone through, and a digest of their names in their order."""

    def __init__(self) -> None:
        self.images = 0
        self._names = hashlib.sha256()

    def add(self, name: str) -> None:
        """One more."""
        self.images += 1
        self._names.update(name.encode("utf-8", "surrogateescape") + b"\0")

    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        return self._names.hexdigest()


@dataclass(frozen=True)
class Share:
    """The images of one process: of the inputs those that `keep` wants, if given, and of these the shard's."""

    inputs: Inputs
    batch_size: int
    shard: Shard = WHOLE
    keep: Callable[[str], bool] | None = None

    def wanted(self) -> Iterator[Reference]:
        """The images of all shards, none of them read."""
        return (each for each in self.inputs.references() if self.keep is None or self.keep(each.name))

    def references(self, passed: Passed | None = None) -> Iterator[Reference]:
        """The shard's images, none of them read. passed: is told all images that are gone through, other shards' too."""
        for position, each in enumerate(self.wanted()):
            if passed is not None:
                passed.add(each.name)
            if self.shard.has(position, self.batch_size):
                yield each

    def count(self) -> int | None:
        """How many images the shard has; None where that would mean to decompress archives."""
        images = self.inputs.count()
        if images is not None and self.keep is not None:
            images = sum(1 for _ in self.wanted())
        return None if images is None else self.shard.share(images, self.batch_size)
