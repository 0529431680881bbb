"""Captioning: `pycap.load(checkpoint)`, and the command `pycap caption`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycap.captioner import Caption, Captioner


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
    """`pycap caption`: a caption an image, to --output or the screen. Status 1 where an image could not be read."""
    from rich.progress import track

    from pycap.backends import select, set_threads
    from pycap.data.inputs import find
    from pycap.data.results import Writer, check_names, image_id
    from pycap.device import cpu_count

    writer = Writer(args.output, args.format, args.separator)
    select(args.device, args.backend)
    set_threads(args.threads or cpu_count())
    inputs = find(args.images)
    paths = [Path(item.name) for item in inputs]
    check_names(paths, args.format, writer.separator)
    captioner = load([args.checkpoint, *args.ensemble], args.precision)
    captions: Iterable[Caption] = captioner.caption(inputs, **args.decoding)
    failed = 0
    with writer:
        if writer.path:
            captions = track(captions, "captioning", len(paths))
        for path, caption in zip(paths, captions, strict=True):
            if caption.error:
                failed += 1
                print(f"{path}: {caption.error}", file=sys.stderr)
            else:
                name = {"image_id": image_id(path, args.format), "file_name": str(path)}
                writer.add(name | caption.row(drawn=args.decoding["sampling"] is not None))
    if writer.path:
        print(f"{writer.count} captions: {writer.path}")
    if failed:
        print(f"{failed} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if failed else 0
