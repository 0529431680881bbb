"""A job whose captions need no model: they are a function of an image's name and of the others in its batch."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pycap.bulk import job as jobs
from pycap.bulk.job import Job, run
from pycap.bulk.share import WHOLE, Shard
from pycap.bulk.target import Target
from pycap.captioner import Caption
from pycap.data.inputs import find
from pycap.data.items import Item

BATCH = 5
COUNT = 23  # of 3 shards, the first two have two batches, of which the last one of shard 2 is cut short
READABLE = [number for number in range(COUNT) if number % 7 != 3]


def said(items: Iterable[Item], batch_size: int = BATCH) -> Generator[Sequence[Caption], None, None]:
    """Captions of which the last digits of `logprob` tell the batch; every seventh image cannot be read."""
    coming = iter(items)
    while batch := list(islice(coming, batch_size)):
        names = [item.name for item in batch]
        told = int(hashlib.sha256("".join(names).encode()).hexdigest()[:6], 16)
        yield [_caption(name, told) for name in names]


def _caption(name: str, told: int) -> Caption:
    number = int(Path(name).stem)
    if number % 7 == 3:
        return Caption(name, "", float("nan"), (), "corrupt or cut short")
    text = f'image {number}, a "caf\u00e9"'
    return Caption(name, text, -number - told / 2**24, ((text, -number - told / 2**24), ("another", -999.0)))


def folder(place: Path, count: int) -> Path:
    """A folder with so many files that look like images from outside."""
    place.mkdir()
    for number in range(count):
        (place / f"{number:04}.jpg").touch()
    return place


def job(images: Path, output: Path | None, form: str = "jsonl", **changes: Any) -> Job:
    """A job on a folder of `folder`."""
    options = {"decoding": {"beam_size": 2}}
    return replace(Job(find([images]), Target(output, form), said, BATCH, options), **changes)


def left(place: Path) -> list[str]:
    """The names in a folder, but for the images."""
    return sorted(path.name for path in place.iterdir() if path.name != "images")


class Interrupted(Exception):
    """In place of a kill."""


def stopped_after(batches: int) -> Any:
    """Captions of some batches; then `Interrupted`."""

    def captions(items: Iterable[Item]) -> Generator[Sequence[Caption], None, None]:
        yield from islice(said(items), batches)
        raise Interrupted

    return captions


def interrupted(*arguments: object) -> None:
    raise Interrupted


def begun(images: Path, output: Path, batches: int = 2, **changes: Any) -> Path:
    """What a job leaves that is killed after some batches."""
    work = job(images, output, batches=stopped_after(batches), **changes)
    with pytest.raises(Interrupted):
        run(work)
    assert work.journal.exists()
    return work.journal


def complete(images: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """What a job leaves that is killed when its journal is complete."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(jobs, "finish", interrupted)
        run(job(images, output, **changes))


def main() -> None:
    """IMAGES OUTPUT FORM SHARD: as a process that can be killed, at a few milliseconds a batch."""

    def slowly(items: Iterable[Item]) -> Generator[Sequence[Caption], None, None]:
        for batch in said(items):
            time.sleep(0.01)
            yield batch

    images, output, form, shard = sys.argv[1:]
    print("begins", flush=True)
    run(
        job(
            Path(images), Path(output), form, batches=slowly, resume=True, shard=Shard.parsed(shard) if shard else WHOLE
        )
    )


if __name__ == "__main__":
    main()
