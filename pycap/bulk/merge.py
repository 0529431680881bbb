"""One file of what the shards of a job wrote, byte for byte what one process would have written."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pycap.bulk.job import shard_file, shard_files
from pycap.bulk.journal import JournalError, differences, read_header, read_rows, standing
from pycap.bulk.share import Shard
from pycap.bulk.target import Target


def merge(file: Path, form: str | None = None, separator: str | None = None) -> int:
    """Put the shards of FILE together, and remove them when FILE is whole. Returns 1 where images could not be read, else 0.

    form, separator: as the shards were begun, unless given. JournalError names every shard that is missing, not done or of
    another job; nothing is written then.
    """
    found = shard_files(Target(file))
    if not found:
        raise JournalError(
            f"{file}: there are no shards {file.name}.shard-I-of-N beside it; name the --output of the shards"
        )
    header = read_header(found[0])
    target = Target(file, form or header["_format"], separator or header["_separator"])
    count = Shard.parsed(header["shard"]).count
    shards = [shard_file(target, Shard(number, count)) for number in range(1, count + 1)]
    problems = [
        f"{path.name} is of another division than {found[0].name}; remove it" for path in found if path not in shards
    ]
    problems += _problems(shards, header)
    if problems:
        raise JournalError(f"{file}: cannot be merged: {'; '.join(problems)}")
    done = [standing(path) for path in shards]
    images, failed = sum(each.rows for each in done), sum(each.failed for each in done)
    target.finish(_in_order(shards, header["batch_size"]), header["skip_existing"])
    for path in shards:
        path.unlink()
    print(f"{images - failed} captions of {count} shards: {target}")
    if failed:
        print(f"{failed} of {images} images could not be read: {target.failed}", file=sys.stderr)
    return 1 if failed else 0


def _problems(shards: Sequence[Path], header: dict[str, Any]) -> Iterator[str]:
    """Why the shards do not make a whole."""
    rows: dict[Path, int] = {}
    for number, path in enumerate(shards, 1):
        if not path.exists():
            yield f"{path.name} is missing: caption it with --shard {number}/{len(shards)}"
            continue
        own = {**header, "shard": f"{number}/{len(shards)}"}
        for what, here, there in differences(read_header(path), own):
            yield f"{path.name} is of another job: {what} is {here}, and in {shards[0].name} {there}"
        done = standing(path)
        if not done.complete:
            yield f"{path.name} is not done ({done.rows} images): go on with --shard {number}/{len(shards)} --resume"
        rows[path] = done.rows
    images = sum(rows.values())
    for number, path in enumerate(shards, 1):
        share = Shard(number, len(shards)).share(images, header["batch_size"])
        if len(rows) == len(shards) and rows[path] != share:
            yield f"{path.name} has {rows[path]} images, and of {images} its share is {share}: the inputs were others"


def _in_order(shards: Sequence[Path], batch_size: int) -> Iterator[dict[str, Any]]:
    """The rows of all shards, as one process would have made them: a batch of each in turn."""
    rows = [read_rows(path) for path in shards]
    while True:
        some = False
        for own in rows:
            for row in islice(own, batch_size):
                some = True
                yield row
        if not some:
            return
