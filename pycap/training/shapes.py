"""What decides a training step's launches, and how several ranks, each with its share of the batch, agree on it.

Before each step ranks tell each other how many images, steps and targets they have, and all pad to the largest: none would be
done earlier with less. Equal shapes on one rank are equal shapes on all of them, so that they meet each for the first time
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pycap.models import targets

_CLASSES = 16  # sizes, between nothing and everything, to which the number of targets is rounded up


@dataclass(frozen=True)
class Shape:
    """What decides a step's launches. images, each an array of shape `image` (of uint8 pixels, or float32 features), worked off
    `micro` at a time; captions: of each image; length: T; sizes: K of each pass; parts: names of the parameters that each
    update takes. shares: images of each rank, of which this one's come after `before` others. padded: K of each pass of the
    largest share, to which the others pad theirs as far as they have positions."""

    images: int
    micro: int
    image: tuple[int, ...]
    captions: int
    length: int
    sizes: tuple[int, ...]
    words_only: bool
    parts: tuple[tuple[str, ...], ...]
    shares: tuple[int, ...]
    before: int
    padded: tuple[int, ...]

    def __str__(self) -> str:
        what = "words" if self.words_only else f"captions of {self.length} tokens"
        passes = f" in passes of {self.micro}" if self.micro < self.images else ""
        return f"{self.images} images{passes}, {self.captions} {what} each, {sum(self.sizes)} targets"

    def fields(self, layers: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of what such a step reads besides pixels and weights. layers: of dropout."""
        found: dict[str, tuple[tuple[int, ...], Any]] = {
            "crops": ((self.images, 3), np.int32),
            "seeds": ((layers, 2), np.uint32),
            "rates": ((len(self.parts), 3), np.float32),
        }
        for number, (part, size) in enumerate(zip(self.passes(), self.sizes, strict=True)):
            n = (part.stop - part.start) * self.captions
            own: dict[str, tuple[tuple[int, ...], Any]] = {"rows": ((size,), np.int32), "targets": ((size,), np.int32)}
            own["weights"] = (size,), np.float32
            if not self.words_only:
                own |= {"inputs": ((self.length - 1, n), np.int32), "image_of": ((n,), np.int32)}
                own |= {"runs": ((self.length, n), np.uint8), "places": (((self.length - 1) * n,), np.int32)}
            found |= {f"{name}.{number}": field for name, field in own.items()}
        return found

    @property
    def image_dtype(self) -> np.dtype:
        return np.dtype(np.float32 if len(self.image) == 1 else np.uint8)

    def passes(self) -> list[slice]:
        """The images of each pass."""
        return _passes(self.images, self.micro)

    def largest(self, length: int) -> Shape:
        """The one that takes most memory: with captions of `length` tokens, all of which count."""
        sizes = tuple((length - 1) * (some.stop - some.start) * self.captions for some in self.passes())
        return replace(self, length=length, sizes=sizes)


@dataclass(frozen=True)
class Offer:
    """What a rank says of its share of a batch. counts: targets of each pass. total: its part of what the sum of the losses is
    divided by. moved: whether something lies elsewhere than it was recorded."""

    images: int
    captions: int
    length: int
    counts: tuple[int, ...]
    total: int
    moved: bool


def offer(tokens: Any, images: int, micro: int, words_only: bool, factors: Any, moved: bool) -> Offer:
    """Of a share of `images` with captions tokens [T,N], `micro` a pass (0: all). factors: of each caption's loss, or None: the
    loss is then the mean over targets."""
    captions = tokens.shape[1] // max(images, 1)
    parts = [tokens[:, part.start * captions : part.stop * captions] for part in _passes(images, micro)]
    counts = tuple(targets.count(part, words_only) for part in parts)
    return Offer(images, captions, tokens.shape[0], counts, sum(counts) if factors is None else len(factors), moved)


def agreed(
    offers: Sequence[Offer],
    rank: int,
    micro: int,
    image: tuple[int, ...],
    longest: int,
    words_only: bool,
    parts: tuple[tuple[str, ...], ...],
) -> Shape:
    """The shape of this rank's share, from what all of them offer. longest: T of the longest captions there are."""
    shares = tuple(each.images for each in offers)
    captions, steps = max(each.captions for each in offers), max(each.length for each in offers)
    length = max(min(-(-steps // 4) * 4, longest), steps)
    padded = []
    for number, some in enumerate(_passes(max(shares), micro)):
        most = (length - 1) * (some.stop - some.start) * captions
        step = max(most // _CLASSES, 1)
        used = max(each.counts[number] for each in offers if number < len(each.counts))
        padded.append(min(-(-used // step) * step, most))
    own = _passes(shares[rank], micro)
    sizes = [
        min(size, (length - 1) * (some.stop - some.start) * captions) for some, size in zip(own, padded, strict=False)
    ]
    return Shape(
        images=shares[rank],
        micro=min(micro or shares[rank], shares[rank]),
        image=image,
        captions=captions,
        length=length,
        sizes=tuple(sizes),
        words_only=words_only,
        parts=parts,
        shares=shares,
        before=sum(shares[:rank]),
        padded=tuple(padded),
    )


def _passes(images: int, micro: int) -> list[slice]:
    size = min(micro or images, images)
    return [slice(first, min(first + size, images)) for first in range(0, images, size)] if images else []
