"""Batches for training and evaluation: shuffled, cropped, prefetched by threads, and the same again when resumed.

Everything random is a function of (seed, epoch, position in the epoch) alone. The number of threads, what is cached,
which images are corrupt and where a run was resumed change nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycap.data import DataError, Example
from pycap.data.disk import write_whole
from pycap.data.features import FeatureStore
from pycap.data.images import ImageError, Pixels, PreprocessSpec, centre_crops, decode_image, encode_jpeg, run_ahead
from pycap.data.store import ImageStore
from pycap.data.vocab import Vocabulary, tokenize


@dataclass(frozen=True, slots=True)
class Batch:
    """B images and their captions; S is the loader's `seq_per_img`, R the spec's `resize`.

    images: uint8 [B, R, R, 3]; or, of a loader with `features`, float32 [B, F]. crops: int32 [B, 3], (top, left, flip) of
    the crop to take (features have been cropped); flip is 0 or 1, after the crop. tokens: int32 [T, B*S], time-major:
    START, words, END, then PAD; T is the longest caption's length. The captions of image i are the columns i*S ..
    i*S+S-1. image_ids, file_names, examples: of the B images. epoch, index: the batch's place (index counts batches
    of the epoch, those without a readable image too).
    """

    images: NDArray[Any]
    crops: NDArray[np.int32]
    tokens: NDArray[np.int32]
    image_ids: tuple[int | str, ...]
    file_names: tuple[str, ...]
    examples: tuple[Example, ...]
    epoch: int
    index: int

    def __len__(self) -> int:
        return len(self.images)


def empty_pixels(shape: tuple[int, ...]) -> Pixels:
    """An uninitialised uint8 array: where a batch's images go unless the loader is told otherwise."""
    return np.empty(shape, np.uint8)


@dataclass(frozen=True)
class _Plan:
    """What an epoch's randomness comes to, by position: the order, the crops, and keys that rank an image's
    captions.
    """

    order: NDArray[np.int64]
    crops: NDArray[np.int32]
    ranks: NDArray[np.float32] | None


class Loader:
    """Batches of examples, `len(loader)` of them an epoch. One epoch may be iterated at a time."""

    def __init__(
        self,
        examples: Sequence[Example],
        vocab: Vocabulary,
        spec: PreprocessSpec,
        *,
        batch_size: int,
        seq_per_img: int = 5,
        max_length: int = 20,
        train: bool,
        seed: int,
        workers: int = 2,
        prefetch: int = 4,
        flip: bool = True,
        store: ImageStore | None = None,
        features: FeatureStore | None = None,
        cache_bytes: int = 1 << 30,
        skipped_path: str | Path | None = None,
        allocate: Callable[[tuple[int, ...]], Pixels] = empty_pixels,
        words: Callable[[str], list[str]] = tokenize,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """train: shuffle, random crops and (with `flip`) mirror images; else the examples' order and centre crops.

        max_length: words kept of a caption. workers: decoding threads (0: none, decode when asked). prefetch: batches
        made ahead. store: keeps resized images between runs; the pixels are then always those of the stored JPEG, from
        the first epoch on. features: batches hold these vectors of the images, which are not decoded: no crops, no mirror
        images. cache_bytes: decoded images (or vectors) kept in memory, at most. skipped_path: JSON Lines file that
        lists images that cannot be used. allocate: gives the array for a batch's images, always of the largest one's shape
        (a smaller batch takes its first rows), in a worker thread. words: splits a caption. shard: (r, n), the r-th (from 0)
        of n loaders that share each batch: of its B places this one reads B*r//n .. B*(r+1)//n. DataError on a number
        out of range, and when there are no examples.
        """
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seq_per_img", seq_per_img, 1),
            ("max_length", max_length, 1),
            ("seed", seed, 0),
            ("workers", workers, 0),
            ("prefetch", prefetch, 1),
            ("cache_bytes", cache_bytes, 0),
        ):
            if value < least:
                raise DataError(f"loader: {name} is {value}; it must be {least} or more")
        if not examples:
            raise DataError("loader: no examples; load_split names what a data folder lacks")
        bare = next((example for example in examples if not example.captions), None)
        if bare is not None:
            raise DataError(f"loader: {bare.file_name} has no captions; leave it out")
        if store is not None and store.size != spec.resize:
            raise DataError(
                f"{store.path}: the store holds {store.size} px, the spec resizes to {spec.resize}; name another store"
            )
        self.examples = tuple(examples)
        self.vocab = vocab
        self.spec = spec
        self.batch_size = batch_size
        self.seq_per_img = seq_per_img
        self.max_length = max_length
        self.train = train
        self.seed = seed
        self.workers = workers
        self.prefetch = prefetch
        self.flip = flip
        self.store = store
        self.features = features
        self.shard = shard
        self.skipped: dict[str, str] = {}
        self._news: list[tuple[int, str]] = []
        self._allocate = allocate
        self._words = words
        self._skipped_path = Path(skipped_path) if skipped_path is not None else None
        self._bad: set[int] = set()
        self._lock = threading.Lock()
        self._cache: dict[int, NDArray[Any]] = {}
        self._cache_room = cache_bytes
        self._encoded: list[list[list[int]] | None] = [None] * len(self.examples)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of an image in a batch: (R, R, 3), or (F,)."""
        return (self.spec.resize, self.spec.resize, 3) if self.features is None else (self.features.origin.size,)

    @property
    def image_dtype(self) -> np.dtype:
        """Of the images of a batch: uint8, or float32."""
        return np.dtype(np.uint8 if self.features is None else np.float32)

    @property
    def most(self) -> int:
        """The largest number of images of a batch, as this shard has it."""
        return -(-self.batch_size // self.shard[1])

    def __len__(self) -> int:
        """Batches an epoch; the last may be smaller."""
        return -(-len(self.examples) // self.batch_size)

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch from `start_batch` on. Threads start at the first `next` and end with the iterator
        (or its `close`).

        Images that cannot be decoded are left out of their batch, added to `skipped` and listed; a batch without any
        image is not yielded, unless other shards may have some of it. DataError when every image of the epoch fails, or
        when epoch or start_batch is out of range.
        """
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise DataError(
                f"loader: epoch {epoch}, batch {start_batch}: epochs count from 0, batches from 0 to {len(self)}"
            )
        return self._epoch(epoch, start_batch)

    def _epoch(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        plan = self._plan(epoch)
        tasks = (partial(self._make, plan, epoch, index) for index in range(start_batch, len(self)))
        results = run_ahead(tasks, self.workers, max(self.prefetch, self.workers))
        try:
            for batch, errors in results:
                self._news += self.skip(errors)
                if batch is not None:
                    yield batch
        finally:
            results.close()
            if self.store is not None:
                self.store.flush()
        if len(self._bad) == len(self.examples):
            name, reason = next(iter(self.skipped.items()))
            raise DataError(
                f"loader: none of {len(self.examples)} images can be read (first: {name}: {reason}); "
                f"check the image folder {self.examples[0].path.parent} (pycap doctor DIR, with the data set's folder)"
            )

    def news(self) -> list[tuple[int, str]]:
        """(number among the examples, reason) of the images that turned out unusable here since this was called last: for
        `skip` of the other shards' loaders."""
        told, self._news = self._news, []
        return told

    def skip(self, unusable: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        """Note images that cannot be used, each once, in `skipped` and in the file (where earlier runs may have listed
        them). Returns those that were not known.
        """
        new = [(which, reason) for which, reason in unusable if which not in self._bad]
        fresh = [(self.examples[which], reason) for which, reason in new]
        self._bad.update(which for which, _ in new)
        self.skipped.update((example.file_name, reason) for example, reason in fresh)
        path = self._skipped_path
        if path is None or not fresh:
            return new
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        listed = set(text.splitlines())
        rows = (
            json.dumps({"file_name": example.file_name, "path": str(example.path), "reason": reason})
            for example, reason in fresh
        )
        lines = [row + "\n" for row in rows if row not in listed]
        if lines:
            whole = text[: text.rfind("\n") + 1]  # older versions appended, and a kill left half a line
            write_whole(path, whole + "".join(lines))
        return new

    def _plan(self, epoch: int) -> _Plan:
        count, spec = len(self.examples), self.spec
        if not self.train:
            return _Plan(np.arange(count), centre_crops(spec, count), None)
        streams = np.random.SeedSequence([self.seed, epoch]).spawn(3)
        order, crop, caption = (np.random.Generator(np.random.Philox(stream)) for stream in streams)
        crops = np.empty((count, 3), dtype=np.int32)
        crops[:, :2] = crop.integers(0, spec.resize - spec.crop + 1, size=(count, 2))
        crops[:, 2] = crop.integers(0, 2, size=count) * self.flip
        longest = max(len(example.captions) for example in self.examples)
        return _Plan(order.permutation(count), crops, caption.random((count, longest), dtype=np.float32))

    def _captions(self, plan: _Plan, position: int, which: int) -> list[list[int]]:
        """The ids of `seq_per_img` captions of one image: a sample without replacement, or all and then some again."""
        encoded = self._encoded[which]
        if encoded is None:
            captions = self.examples[which].captions
            encoded = [self.vocab.encode(self._words(caption), self.max_length) for caption in captions]
            self._encoded[which] = encoded
        have, want = len(encoded), self.seq_per_img
        if have == want:
            return encoded
        order = np.arange(have) if plan.ranks is None else np.argsort(plan.ranks[position, :have], kind="stable")
        return [encoded[order[k % have]] for k in range(want)]

    def _make(self, plan: _Plan, epoch: int, index: int) -> tuple[Batch | None, list[tuple[int, str]]]:
        """One batch, in a worker thread: (None when no image can be read, the images that cannot)."""
        *outer, inner = self.image_shape
        room = self._allocate((self.most, *outer, inner * self.image_dtype.itemsize)).view(self.image_dtype)
        crops: list[NDArray[np.int32]] = []
        captions: list[list[int]] = []
        kept: list[Example] = []
        errors: list[tuple[int, str]] = []
        first, (shard, shards) = index * self.batch_size, self.shard
        planned = min(self.batch_size, len(self.examples) - first)
        for position in range(first + planned * shard // shards, first + planned * (shard + 1) // shards):
            which = int(plan.order[position])
            if which in self._bad:
                continue
            try:
                self._read(which, room[len(kept)])
            except ImageError as error:
                errors.append((which, error.reason))
                continue
            crops.append(plan.crops[position])
            captions.extend(self._captions(plan, position, which))
            kept.append(self.examples[which])
        if not kept and shards == 1:
            return None, errors
        tokens = np.full((max(map(len, captions), default=1), len(captions)), self.vocab.PAD, dtype=np.int32)
        for column, ids in enumerate(captions):
            tokens[: len(ids), column] = ids
        batch = Batch(
            images=room[: len(kept)],
            crops=np.array(crops, np.int32).reshape(-1, 3),
            tokens=tokens,
            image_ids=tuple(example.image_id for example in kept),
            file_names=tuple(example.file_name for example in kept),
            examples=tuple(kept),
            epoch=epoch,
            index=index,
        )
        return batch, errors

    def _read(self, which: int, row: NDArray[Any]) -> None:
        """The pixels of one example, or its vector, into a batch's row: from memory, a store, or its file."""
        cached = self._cache.get(which)
        if cached is not None:
            row[...] = cached
            return
        example = self.examples[which]
        if self.features is None:
            self._decode(example, row)
        else:
            row[...] = self.features.get(example)
        with self._lock:
            if which not in self._cache and row.nbytes <= self._cache_room:
                self._cache[which] = row.copy()
                self._cache_room -= row.nbytes

    def _decode(self, example: Example, row: Pixels) -> None:
        size = self.spec.resize
        if self.store is None:
            decode_image(example.path, size, out=row)
            return
        jpeg = self.store.get(example)
        if jpeg is None:
            jpeg = encode_jpeg(decode_image(example.path, size, out=row))
            self.store.put(example, jpeg)
        decode_image(jpeg, size, name=str(example.path), out=row)
