"""Examples, loaders and comparisons that the tests of the loader share."""

from __future__ import annotations

import threading
from pathlib import Path

from pycap.data import Example
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch, Loader
from pycap.data.vocab import Vocabulary
from tests.data.fixtures import write_jpeg

SPEC = PreprocessSpec(20, 16)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


def make_examples(folder: Path, count: int, captions: int = 5) -> list[Example]:
    """Image i has captions `cat IN-WORDS`, `cat IN-WORDS is`, `cat IN-WORDS is is`, ..."""
    return [
        Example(
            i,
            f"{i}.jpg",
            write_jpeg(folder / f"{i}.jpg", seed=i, height=24, width=28),
            tuple(" ".join(["cat", NUMBERS[i], *["is"] * k]) for k in range(captions)),
        )
        for i in range(count)
    ]


VOCAB = Vocabulary.build(["cat is is " + " ".join(NUMBERS)], 1)


def make_loader(examples, **options) -> Loader:
    return Loader(examples, VOCAB, SPEC, **({"batch_size": 4, "train": True, "seed": 7, "workers": 2} | options))


def same(a: Batch, b: Batch) -> bool:
    arrays = ((a.images, b.images), (a.crops, b.crops), (a.tokens, b.tokens))
    return (
        all(x.dtype == y.dtype and x.shape == y.shape and (x == y).all() for x, y in arrays)
        and (a.image_ids, a.file_names, a.examples) == (b.image_ids, b.file_names, b.examples)
        and (a.epoch, a.index) == (b.epoch, b.index)
    )


def all_same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def caption_columns(batch: Batch, per_image: int) -> list[list[str]]:
    """The captions of each image, as text."""
    columns = [VOCAB.decode(batch.tokens[:, c]) for c in range(batch.tokens.shape[1])]
    return [columns[i * per_image : (i + 1) * per_image] for i in range(len(batch))]


def data_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("pycap-data")]
