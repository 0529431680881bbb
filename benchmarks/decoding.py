"""How many images a second the loader decodes: from a folder of photographs, into a store, and out of the store.

    python -m benchmarks.decoding FOLDER [--threads 1 2] [--resize 256] [--batch-size 64] [--images 640]

Nothing is kept in memory between passes, as with a data set that does not fit there. A folder of fewer images is gone through
repeatedly, so that files come from the page cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

from benchmarks.machine import cpu_name
from pycap.data import DataError, Example
from pycap.data.images import PreprocessSpec
from pycap.data.inputs import images_below
from pycap.data.loader import Loader
from pycap.data.store import ImageStore
from pycap.data.vocab import Vocabulary

#: files: each photograph decoded and resized. into a store: that, encoded again, and decoded from that. store: read back.
PASSES = ("files", "into a store", "store")
CAPTIONS = ("a photograph",)


def rates(folder: Path, threads: int, resize: int, batch_size: int, images: int) -> Iterator[tuple[str, float]]:
    """Images a second of each of PASSES, in its order, as they are measured."""
    files = islice(cycle([folder / name for name in images_below(folder)]), images)
    vocab, spec = Vocabulary.build(CAPTIONS, 1), PreprocessSpec(resize=resize, crop=resize)
    with tempfile.TemporaryDirectory() as place, ImageStore(Path(place) / "images.h5", resize) as store:
        examples = []
        for i, file in enumerate(files):  # a path of its own for each, by which a store knows an image
            link = Path(place) / f"{i}{file.suffix}"
            link.symlink_to(file.resolve())
            examples.append(Example(i, link.name, link, CAPTIONS))
        for name, kept in zip(PASSES, (None, store, store), strict=True):
            loader = Loader(
                examples,
                vocab,
                spec,
                batch_size=batch_size,
                seq_per_img=1,
                train=True,
                seed=0,
                workers=threads,
                prefetch=max(4, threads * 3 // 2),
                store=kept,
                cache_bytes=0,
            )
            started = time.perf_counter()
            made = sum(len(batch) for batch in loader.epoch(0))
            yield name, made / (time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="photographs, also in folders below it")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="decoding threads to try")
    parser.add_argument("--resize", type=int, default=256, help="side in pixels to which images are resized")
    parser.add_argument("--batch-size", type=int, default=64, help="images a batch")
    parser.add_argument("--images", type=int, default=640, help="images a pass")
    options = parser.parse_args(argv)
    print(f"{cpu_name()}; {options.images} images to {options.resize} px, batches of {options.batch_size}")
    try:
        for threads in options.threads:
            for name, rate in rates(options.folder, threads, options.resize, options.batch_size, options.images):
                print(f"{threads} threads  {name:<12}  {rate:7.0f} images/s  {rate / max(threads, 1):7.0f} a thread")
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
