"""Shapes that ranks agree on: what is one step to one of them is one step to all, and each has room for its own."""

from __future__ import annotations

import numpy as np
import pytest

from pycap.models import targets
from pycap.training.shapes import Shape, agreed, offer

CAPTIONS, LONGEST = 2, 11


def tokens(rng: np.random.Generator, images: int) -> np.ndarray:
    """Captions of up to 9 words, cut to the longest; where there is no image, of one step."""
    lengths = rng.integers(3, LONGEST + 1, images * CAPTIONS)
    return (np.arange(lengths.max(initial=1))[:, None] < lengths).astype(np.int32) * 3


def shapes(rng: np.random.Generator, ranks: int, micro: int) -> tuple[list[Shape], list[np.ndarray]]:
    given = [tokens(rng, images) for images in rng.integers(0, 4, ranks)]
    offers = [offer(own, own.shape[1] // CAPTIONS, micro, False, None, False) for own in given]
    found = [agreed(offers, rank, micro, (8, 8, 3), LONGEST, False, (("a",),)) for rank in range(ranks)]
    return found, given


@pytest.mark.parametrize("micro", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_shape_is_the_same_step_to_all(ranks: int, micro: int) -> None:
    rng = np.random.default_rng([ranks, micro])
    keys: list[dict[Shape, int]] = [{} for _ in range(ranks)]
    repeated = 0
    for number in range(1500):
        found, _ = shapes(rng, ranks, micro)
        first = {known.setdefault(shape, number) for known, shape in zip(keys, found, strict=True)}
        assert len(first) == 1, found  # met at the same time by all, or not before by any
        repeated += first != {number}
    assert repeated > 100


@pytest.mark.parametrize("micro", [0, 2])
def test_each_has_room_for_its_targets(micro: int) -> None:
    rng = np.random.default_rng(micro)
    for _ in range(300):
        found, given = shapes(rng, 3, micro)
        assert len({shape.length for shape in found}) == 1
        for shape, own in zip(found, given, strict=True):
            passes = shape.passes()
            assert sum(part.stop - part.start for part in passes) == shape.images == own.shape[1] // CAPTIONS
            for part, size in zip(passes, shape.sizes, strict=True):
                columns = own[:, part.start * CAPTIONS : part.stop * CAPTIONS]
                targets.caption_targets(
                    part.stop - part.start, columns, shape.length, size, 1
                )  # raises where it is short
