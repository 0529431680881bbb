"""One file of what the shards of a job wrote, byte for byte what one process would have written."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pycap.bulk.job import finish, read_job, shard_file, shard_files
from pycap.bulk.journal import JournalError, differences, read_rows, standing
from pycap.bulk.share import Shard
from pycap.bulk.target import Target


def merge(output: Path, form: str | None = None, separator: str | None = None) -> int:
    """Put the shards of `--output` together, and remove them when the captions are where they are to go. Returns 1 where
    images could not be read, else 0.

    form, separator: as the shards were begun, unless given. JournalError names every shard that is missing, not done or of
    another job; nothing is written then.
    """
    place = Target(output, "txt-sidecar" if output.is_dir() else "jsonl")
    found = shard_files(place)
    if not found:
        raise JournalError(
            f"{output}: there are no shards {place.file.name}.shard-I-of-N beside it; name the --output of the shards"
        )
    header = read_job(found[0])
    target = Target(output if header["_output"] else None, form or header["_format"], separator or header["_separator"])
    count = Shard.parsed(header["shard"]).count
    shards = [shard_file(place, Shard(number, count)) for number in range(1, count + 1)]
    problems = [f"{path.name} is of another division than {found[0].name}" for path in found if path not in shards]
    problems += _problems(shards, found[0])
    if problems:
        if target.file.exists() and not all(path.exists() for path in shards):
            problems.append(
                f"or, if a merge into {target.file} was killed as it removed the shards, remove those that are left"
            )
        raise JournalError(f"{output}: cannot be merged: {'; '.join(problems)}")
    done = [standing(path) for path in shards]
    images, failed = sum(each.rows for each in done), sum(each.failed for each in done)
    finish(target, lambda: _in_order(shards, header["batch_size"]), header, shards[0])
    for path in shards:
        path.unlink()
    print(f"{images - failed} captions of {count} shards: {target}")
    if failed:
        print(f"{failed} of {images} images could not be read: {target.failed}", file=sys.stderr)
    return 1 if failed else 0


def _problems(shards: Sequence[Path], first: Path) -> Iterator[str]:
    """Why the shards do not make a whole. first: one that is there."""
    header, whole = read_job(first), None
    for number, path in enumerate(shards, 1):
        shard = Shard(number, len(shards))
        if not path.exists():
            yield f"{path.name} is missing: caption it with --shard {shard}"
            continue
        for what, here, there in differences(read_job(path), {**header, "shard": str(shard)}):
            yield f"{path.name} is of another job: {what} is {here}, and in {first.name} {there}"
        done = standing(path)
        if not done.complete:
            yield f"{path.name} is not done ({done.rows} images): go on with --shard {shard} --resume"
            continue
        whole = whole or done
        if (done.images, done.names) != (whole.images, whole.names):
            yield (
                f"{path.name} is of {done.images} images, and a shard before it of {whole.images}, or of others by name: "
                "remove the shards for which they were not as they are to be, and caption those again"
            )
        elif done.rows != shard.share(done.images, header["batch_size"]):
            yield f"{path.name} has {done.rows} images, which is not its share of {done.images}: remove it, caption it again"


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
