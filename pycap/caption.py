"""Captioning: `pycap.load(checkpoint)`, and the command `pycap caption`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycap.bulk.job import Job
    from pycap.captioner import Captioner


def load(path: str | Path | Sequence[str | Path], precision: str | None = None, device: str | None = None) -> Captioner:
    """A trained model, ready to caption: ``load("runs/coco/best").caption(["a.jpg"], beam_size=3)``.

    path: a checkpoint, or a run's folder (its best checkpoint, else the last); a list of several makes an ensemble of them,
    which writes captions by the mean of their probabilities (docs/decoding.md). precision: "fp32", "tf32"
    or "bf16"; None: what it was trained in. device: "cpu", "cuda", or "auto" for a GPU where one can serve; it holds for
    the whole process; None: the current one, at first the CPU. Raises CheckpointError, DeviceError where the device cannot
    be used, and ValueError for another precision or an ensemble of different words.
    """
    from pycap.captioner import Captioner

    return Captioner.load(path, precision, device)


def caption_files(args: argparse.Namespace) -> int:
    """`pycap caption`: a caption an image, to --output or the screen. Status 1 where an image could not be read, 128 + n after
    signal n."""
    from pycap import __version__, distributed
    from pycap.backends import select, set_threads
    from pycap.bulk.job import Job, shard_files
    from pycap.bulk.merge import merge
    from pycap.bulk.screen import show
    from pycap.bulk.share import Shard
    from pycap.bulk.target import Target
    from pycap.data import DataError
    from pycap.data.inputs import find, require_apart
    from pycap.device import cpu_count, decoding_threads

    ranks = distributed.current()
    shard = args.shard or Shard(ranks.rank + 1, ranks.size)
    on_screen = not args.output and args.format != "txt-sidecar"
    needing = {"--resume": args.resume, "--skip-existing": args.skip_existing, "a shard of the images": shard.count > 1}
    for what, given in needing.items():
        if on_screen and given:
            raise DataError(f"{what} needs a file to write to: name it with --output")
    if args.shard and ranks.size > 1:
        raise DataError(f"--shard {args.shard}: of {ranks.size} processes of a launcher each is a shard; leave it out")
    target = Target(Path(args.output) if args.output else None, args.format, args.separator)
    select(args.device, args.backend)
    set_threads(args.threads or cpu_count())
    workers = decoding_threads(cpu_count(), ranks.local_size)
    if ranks.size > 1 and "-" in args.images:
        raise DataError("-: of several processes only one has the standard input; write the list to a file")
    inputs = find(args.images)
    if target.path and not target.beside:
        require_apart(target.path, inputs)
    named = [args.checkpoint, *args.ensemble]
    captioner = load(named, args.precision)
    captioner.check(inputs)
    sampling = args.decoding["sampling"]
    decoding = {name: value for name, value in args.decoding.items() if name not in ("batch_size", "sampling")}
    work = Job(
        inputs,
        target,
        lambda items: captioner.batches(items, workers=workers, **args.decoding),
        args.decoding["batch_size"],
        {
            "checkpoints": list(captioner.digests),
            "precision": captioner.precision,
            "decoding": decoding | {"sampling": asdict(sampling) if sampling else None},
            "_checkpoints": named,
            "_pycap": __version__,
        },
        sampling is not None,
        shard,
        args.resume,
        args.skip_existing,
    )
    if on_screen:
        return show(work)
    if args.shard or ranks.size == 1:
        return _status(
            work, f"; when all shards are there: pycap merge {target.path or Path()}" if shard.count > 1 else ""
        )
    distributed.advise("What is captioned is kept: the same command with --resume goes on.")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if ranks.rank else nullcontext():
        status = max(ranks.each(_status(work, "")))
        if ranks.rank == 0 and status <= 1 and shard_files(target):
            status = merge(target.path or Path())
    return ranks.first(status)


def _status(job: Job, next_step: str) -> int:
    """Do a job, and say what came of it, and what to do next: 0; 1 where images could not be read; 128 + n after signal n."""
    from pycap.bulk.job import Stopped, run
    from pycap.bulk.journal import JournalError, begun

    try:
        done = run(job)
    except Stopped as stopped:
        kept = f" {stopped.done} images are done: {stopped.path};" if stopped.done else ""
        print(f"stopped;{kept} the same command with --resume goes on", file=sys.stderr)
        return 128 + stopped.signal
    except JournalError:  # says what to do
        raise
    except BaseException:
        if begun(job.journal):
            print(f"{job.journal} keeps what is captioned: the same command with --resume goes on", file=sys.stderr)
        raise
    if done is None:
        return 0
    shard = job.shard.count > 1
    print(f"{done.rows - done.failed} captions: {job.journal if shard else job.target}{next_step}")
    if done.failed:
        where = "" if shard else f": {job.target.failed}"
        print(f"{done.failed} of {done.rows} images could not be read{where}", file=sys.stderr)
    return 1 if done.failed else 0


def merge_shards(args: argparse.Namespace) -> int:
    """`pycap merge`: one file of the shards' captions. Status 1 where images could not be read."""
    from pycap.bulk.merge import merge

    return merge(Path(args.file), args.format, args.separator)
