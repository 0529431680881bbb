"""The same image, or the same captions, in train and in a held-out split; and the same file twice in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycap.data.datasets import within_set
from pycap.data.images import ImageError, decode_image
from pycap.data.names import hashed
from pycap.doctor.findings import Findings
from pycap.doctor.images import Looks, Picture

#: Levels (0..255) by which the small forms of one photograph, saved anew, differ at most: on average, and anywhere.
_NEAR_MEAN, _NEAR_MOST = 2.0, 10.0
#: The same for 64 pixels a side, which two candidates are compared with: on average, and in all but one of a thousand places.
_SAME_SIDE, _SAME_MEAN, _SAME_MOST = 64, 4.0, 48.0
_BLOCK = 2048  # rows of a block of distances
_MOST = 1000  # pairs to be compared closely


class Placed(NamedTuple):
    """An image of a split. captions: as trained on. owner: the data set."""

    split: str
    owner: str
    picture: Picture
    captions: tuple[str, ...]


def find(
    images: Sequence[Placed], looks: Looks, findings: Findings, by_name: bool, step: Callable[[str], bool]
) -> None:
    """Add what is in two splits, by name (where names are those of photographs), bytes, pixels and captions, each pair by the
    first of them; and what is twice in one split, by bytes.

    step: told what comes next; false where the user asked to stop.
    """
    told: set[tuple[int, int]] = set()
    if by_name:
        told |= _names(images, findings)
    told |= _bytes(images, looks, findings, told)
    if step("comparing pixels"):
        told |= _pixels(images, looks, findings, told)
    if step("comparing captions"):
        _captions(images, findings, told)


def _crossing(images: Sequence[Placed], groups: Iterator[list[int]]) -> Iterator[tuple[int, int]]:
    """Pairs of places of a group, one in train (or the earlier split) and one in another split."""
    order = {"train": 0, "val": 1, "test": 2}
    for group in groups:
        ranked = sorted(group, key=lambda place: (order[images[place].split], place))
        first = ranked[0]
        for other in ranked[1:]:
            if images[other].split != images[first].split:
                yield first, other


def _groups(keys: Sequence[object]) -> Iterator[list[int]]:
    """Places with the same key, where there are several; None is no key."""
    places: dict[object, list[int]] = {}
    for place, key in enumerate(keys):
        if key is not None:
            places.setdefault(key, []).append(place)
    return (group for group in places.values() if len(group) > 1)


def _names(images: Sequence[Placed], findings: Findings) -> set[tuple[int, int]]:
    told = set()
    keys = [None if i.owner == "picks" else (i.owner, within_set(i.picture.name)) for i in images]
    for one, other in _crossing(images, _groups(keys)):
        findings.add("leak-name", images[one].picture.name, f"{images[one].split}, and in {images[other].split}")
        told.add((one, other))
    return told


def _bytes(
    images: Sequence[Placed], looks: Looks, findings: Findings, known: set[tuple[int, int]]
) -> set[tuple[int, int]]:
    told = set()
    digests = [int(digest) or None for digest in looks.digests]
    for group in _groups(digests):
        for one, other in _crossing(images, iter([group])):
            if (one, other) not in known:
                told.add((one, other))
                findings.add("leak-bytes", images[one].picture.name, _pair(images, one, other))
        for split in ("train", "val", "test"):
            same = [place for place in group if images[place].split == split]
            for other in same[1:]:
                if images[other].picture.path != images[same[0]].picture.path:
                    name = images[same[0]].picture.name
                    findings.add("same-image", images[other].picture.name, f"{split}: the bytes of {name}")
    return told


def _pair(images: Sequence[Placed], one: int, other: int) -> str:
    return f"{images[one].split}, and in {images[other].split} as {images[other].picture.name}"


def _pixels(
    images: Sequence[Placed], looks: Looks, findings: Findings, known: set[tuple[int, int]]
) -> set[tuple[int, int]]:
    """Every image of one split is compared with every one of another, by their small forms, as products of matrices; what is
    near is decoded again and compared in more detail."""
    told = set()
    splits = np.array([("train", "val", "test").index(image.split) for image in images])
    done = {other for _, other in known}
    compared = 0
    for first, second in ((0, 1), (0, 2), (1, 2)):
        rows = np.flatnonzero((splits == first) & looks.decoded)
        columns = np.flatnonzero((splits == second) & looks.decoded)
        columns = np.array([place for place in columns if place not in done], int)
        for one, other in near(looks.thumbs, rows, columns):
            if other in done or (one, other) in known or compared >= _MOST:
                continue
            compared += 1
            if _alike(images[one].picture, images[other].picture):
                done.add(other)
                told.add((one, other))
                findings.add("leak-pixels", images[one].picture.name, _pair(images, one, other))
    return told


def near(thumbs: NDArray[np.uint8], rows: NDArray[np.int_], columns: NDArray[np.int_]) -> Iterator[tuple[int, int]]:
    """Pairs (of rows, of columns: places in `thumbs`) of small forms that differ by few levels everywhere, by row."""
    size = thumbs[0].size if len(thumbs) else 1
    limit = size * _NEAR_MEAN * _NEAR_MOST + 16  # a sum of squares is at most the sum times the largest; and rounding
    for top in range(0, len(rows), _BLOCK):
        ours = rows[top : top + _BLOCK]
        a = thumbs[ours].reshape(len(ours), -1).astype(np.float32)
        squares = (a * a).sum(1)[:, None]
        for left in range(0, len(columns), _BLOCK):
            theirs = columns[left : left + _BLOCK]
            b = thumbs[theirs].reshape(len(theirs), -1).astype(np.float32)
            distances = squares + (b * b).sum(1)[None, :] - 2.0 * (a @ b.T)
            for i, j in np.argwhere(distances <= limit):
                apart = np.abs(a[i] - b[j])
                if apart.mean() <= _NEAR_MEAN and apart.max() <= _NEAR_MOST:
                    yield int(ours[i]), int(theirs[j])


def _alike(one: Picture, other: Picture) -> bool:
    try:
        a, b = (decode_image(picture.path, _SAME_SIDE, out=None).astype(np.float32) for picture in (one, other))
    except ImageError:
        return False  # it has changed since it was decoded; the next call tells
    apart = np.abs(a - b)
    return bool(apart.mean() <= _SAME_MEAN and np.quantile(apart, 0.999) <= _SAME_MOST)


def _captions(images: Sequence[Placed], findings: Findings, known: set[tuple[int, int]]) -> None:
    keys = [_caption_key(image.captions) for image in images]
    for one, other in _crossing(images, _groups(keys)):
        if (one, other) not in known:
            findings.add("leak-captions", images[one].picture.name, _pair(images, one, other))


def _caption_key(captions: Sequence[str]) -> int | None:
    """The same for the same captions in any order; None for a single one, which two images may well share."""
    texts = sorted({caption.casefold() for caption in captions})
    return hashed("\n".join(texts)) if len(texts) > 1 else None
