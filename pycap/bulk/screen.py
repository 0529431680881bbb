"""Captions on the screen: the rows of a form as they are made, and nothing else on standard output."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing

from pycap.bulk.job import Job, NoImages, Row, row
from pycap.bulk.share import Share
from pycap.data.forms import image_id, pieces
from pycap.signals import Stopping


def show(job: Job) -> int:
    """Caption all images. Returns the exit status: 0; 1 where images could not be read; 128 + n after signal n."""
    share = Share(job.inputs, job.batch_size)
    job.target.check(share.wanted)
    images = failed = 0

    def captions() -> Iterator[Row]:
        nonlocal images, failed
        with closing(job.batches(job.inputs)) as batches:
            for made in batches:
                for each in (row(caption, job.drawn) for caption in made):
                    images += 1
                    if "error" in each:
                        failed += 1
                        print(f"{each['file_name']}: {each['error']}", file=sys.stderr)
                    else:
                        yield {**each, "image_id": image_id(each["file_name"], job.target.form)}
                if stopping.number is not None:
                    return

    with Stopping() as stopping:
        try:
            for piece in pieces(job.target.form, captions(), job.target.separator):
                sys.stdout.write(piece.decode("utf-8", "backslashreplace"))
                sys.stdout.flush()
        except BrokenPipeError:  # as of `| head`: who read them has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
    if not images and stopping.number is None:
        raise NoImages(job.inputs)
    if failed:
        print(f"{failed} of {images} images could not be read", file=sys.stderr)
    if stopping.number is not None:
        return 128 + stopping.number
    return 1 if failed else 0
