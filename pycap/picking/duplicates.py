"""Images that look like one that came before: by the cosine of their features, among the first images of an order.

Features are compared in a random projection to 256 numbers (Johnson and Lindenstrauss 1984; of signs, Achlioptas 2003), so that
50,000 images take 50 MB and a few seconds, not 800 MB and a minute. It tells a cosine c with a standard error of
(1 - c^2) / 16: at 0.95 that is 0.006.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycap.data import DataError
from pycap.data.features import FeatureStore, read_origin, stored_vectors
from pycap.data.growing import reading
from pycap.data.names import hashed
from pycap.picking.images import endings

#: How many images of an order are compared: more than a person will look at.
COMPARED = 50_000
_WIDTH = 256
_BLOCK, _KEPT_BLOCK = 512, 8192  # images compared at once: 16 MB of cosines

Vectors = NDArray[np.float32]


def near_duplicates(
    path: Path, images: NDArray[np.uint64], similarity: float, told: Callable[[int], None] = lambda done: None
) -> tuple[NDArray[np.bool_], int]:
    """(bool [n]: whether an image looks like an earlier one that does not itself, how many have features).

    path: a file of `pycap features`. images: uint64 [n], hashes of the paths below the folder, in the order; what the file
    has is of the image with the longest ending of its name. similarity: the least cosine of images that look alike. told:
    called with the number of vectors gone through. An image without features, or whose features are damaged, looks like none.
    DataError where the file is none of features, or holds none of these images'.
    """
    sketches = np.zeros((len(images), _WIDTH), np.float32)
    known = np.zeros(len(images), bool)
    for places, vectors in _wanted(path, images, told):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        whole = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
        sketches[places[whole], : vectors.shape[1]] = vectors[whole] / norms[whole]
        known[places[whole]] = True
    if not known.any():
        raise DataError(
            f"{path}: features of none of the first {len(images):,} images; make them of the folder that --images names: pycap "
            "features CHECKPOINT DIR --output FILE.h5"
        )
    alike = np.zeros(len(images), bool)
    numbers = np.flatnonzero(known)
    alike[numbers] = _repeats(sketches, numbers, similarity)
    return alike, len(numbers)


def _wanted(
    path: Path, images: NDArray[np.uint64], told: Callable[[int], None]
) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
    """The features of images, projected where they are long, some at a time: their places int64 [b], the vectors [b, width]."""
    places = {int(image): place for place, image in enumerate(images)}
    with reading(path, FeatureStore.format) as file:
        project = _projection(read_origin(file, path).size)
        found: dict[int, Any] = {}
        start = len(f"{path}/")
        for number, reference in enumerate(stored_vectors(file, str(path)), 1):
            hashes = map(hashed, endings(reference.name[start:]))
            place = next((places[each] for each in hashes if each in places), None)
            if place is not None and reference.load is not None:
                vector = reference.load()
                if isinstance(vector, np.ndarray):
                    found[place] = vector
            if len(found) == _BLOCK:
                yield np.array(list(found)), project(np.stack(list(found.values())))
                found.clear()
            told(number)
        if found:
            yield np.array(list(found)), project(np.stack(list(found.values())))


def _projection(size: int) -> Callable[[Vectors], Vectors]:
    """float32 [b, size] -> [b, _WIDTH], the same in every process; shorter vectors stay as they are."""
    if size <= _WIDTH:
        return lambda vectors: vectors
    raw = np.random.PCG64(0).random_raw(-(-size * _WIDTH // 64)).astype("<u8").view(np.uint8)
    signs = np.unpackbits(raw, count=size * _WIDTH).reshape(size, _WIDTH).astype(np.float32) * 2 - 1
    return lambda vectors: vectors @ signs


def _repeats(sketches: Vectors, numbers: NDArray[np.int64], similarity: float) -> NDArray[np.bool_]:
    """Of the rows with these numbers, in this order, bool [n]: whether one before it, that does not repeat one itself, has a
    cosine of `similarity` or more with it."""
    kept = np.empty((len(numbers), sketches.shape[1]), np.float32)
    count = 0
    repeats = np.zeros(len(numbers), bool)
    for first in range(0, len(numbers), _BLOCK):
        block = sketches[numbers[first : first + _BLOCK]]
        hit = np.zeros(len(block), bool)
        for low in range(0, count, _KEPT_BLOCK):
            hit |= (block @ kept[low : min(low + _KEPT_BLOCK, count)].T).max(axis=1) >= similarity
        within = block @ block.T >= similarity
        for row in range(len(block)):
            hit[row] = hit[row] or bool((within[row, :row] & ~hit[:row]).any())
        fresh = block[~hit]
        kept[count : count + len(fresh)] = fresh
        count += len(fresh)
        repeats[first : first + len(block)] = hit
    return repeats
