"""An item to caption, wherever its image is, and reading items ahead: got by one thread, decoded by others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from itertools import islice, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycap.data import DataError
from pycap.data.images import ImageError, decode_image, run_ahead

#: Where an item's image is: a file's path, a file's bytes, the CNN's vector float32 [F] in the image's place, or why there is
#: none.
Source = str | bytes | NDArray[np.float32] | ImageError
Array = NDArray[Any]


class Item(NamedTuple):
    """One image to caption. name: as results and errors call it: its path as the user began it, or ARCHIVE/MEMBER."""

    name: str
    source: Source


class Reference(NamedTuple):
    """An item that has not been read. load: reads it, before the next one is asked for; None: `name` is the file's path."""

    name: str
    load: Callable[[], Source] | None = None

    def item(self) -> Item:
        """The item, its bytes read where it is no file of its own."""
        return Item(self.name, self.name if self.load is None else self.load())


def failure(name: str, reason: str) -> Reference:
    """An item that cannot be read."""
    return Reference(name, lambda: ImageError(name, reason))


class ReadItems(NamedTuple):
    """Some items, read. arrays: for each size asked for, pixels uint8 [B, size, size, 3] of those that could be read, in
    order; of features their vectors, float32 [B, F]. errors: for each item, why it could not be read, or None."""

    names: list[str]
    arrays: dict[int, Array]
    errors: list[ImageError | None]


def read_ahead(
    items: Iterable[Item], sizes: Sequence[int], batch_size: int, workers: int = 2
) -> Generator[ReadItems, None, None]:
    """Read items in batches, in order, while the caller is busy with the last one: one thread gets the items, `workers` others
    decode them (0: all in the caller's thread).

    sizes: to which images are resized. Every batch stands for `batch_size` items, the last one for fewer; one with only
    unreadable items has B = 0. Items are either images or features, not both. DataError for a batch size below 1.
    """
    if batch_size < 1:
        raise DataError(f"batch size {batch_size}: must be 1 or more")
    coming = iter(items)
    taken = run_ahead(repeat(lambda: list(islice(coming, batch_size))), min(workers, 1), 2)
    read = run_ahead((partial(_read, batch, sizes) for batch in iter(partial(next, taken), [])), workers, workers + 1)
    try:
        yield from read
    finally:
        taken.close()


def _read(items: Sequence[Item], sizes: Sequence[int]) -> ReadItems:
    room = {size: np.empty((len(items), size, size, 3), np.uint8) for size in sizes}
    vectors: list[NDArray[np.float32]] = []
    errors: list[ImageError | None] = []
    for name, source in items:
        kept = errors.count(None)
        try:
            if isinstance(source, ImageError):
                raise source
            if isinstance(source, np.ndarray):
                vectors.append(source)
            else:
                for size, pixels in room.items():
                    decode_image(source, size, name, pixels[kept])
        except ImageError as error:
            errors.append(error)
        else:
            errors.append(None)
    kept = errors.count(None)
    arrays: dict[int, Array] = (
        dict.fromkeys(sizes, np.stack(vectors)) if vectors else {s: room[s][:kept] for s in sizes}
    )
    return ReadItems([item.name for item in items], arrays, errors)
