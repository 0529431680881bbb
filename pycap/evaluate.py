"""Scoring: `pycap.evaluate(results, references)`, and the commands `pycap evaluate` and `pycap score`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any


def evaluate(
    results: Mapping[Any, str], references: Mapping[Any, Sequence[str]], also: Sequence[str] = ()
) -> dict[str, float]:
    """Scores of {id: caption} against {id: [human captions]}, by name: BLEU-1 ... BLEU-4 and ROUGE-L from 0 to 1, CIDEr
    from 0 to 10 (docs/metrics.md). also: scores to add, of `METEOR`, `bleu_keras` and `meteor_nltk`.

    Raises ValueError for no results, or a result whose id has no reference; pycap.metrics.MeteorUnavailable and LookupError
    where a score that is asked for needs what this machine lacks.
    """
    from pycap import metrics

    return metrics.score(results, references, also=also)


def evaluate_checkpoint(args: argparse.Namespace) -> int:
    """`pycap evaluate`: caption a split with a checkpoint, score it, write the captions where asked."""
    from rich.progress import track

    from pycap.backends import select, set_threads
    from pycap.captioner import Captioner
    from pycap.data import load_split
    from pycap.data.datasets import kinds
    from pycap.data.forms import check_separator, require_place, write
    from pycap.device import cpu_count

    separator = check_separator(args.separator)
    for file in filter(None, (args.per_image, args.output)):
        require_place(Path(file))
    select(args.device, args.backend)
    set_threads(args.threads or cpu_count())
    captioner = Captioner.load([args.checkpoint, *args.ensemble], args.precision)
    stage = args.stage or kinds(captioner.config.reads)
    examples, problems = load_split(stage, Path(args.data), args.split)
    examples = examples[: args.images] if args.images else examples
    captions = captioner.caption([e.path for e in examples], **args.decoding)
    results: dict[Any, str] = {}
    failed = []
    rows = []
    for example, caption in zip(examples, track(captions, "captioning", len(examples)), strict=True):
        if caption.error:
            failed.append(f"{caption.file_name}: {caption.error}")
            continue
        results[example.image_id] = caption.text
        name = {"image_id": example.image_id, "file_name": example.file_name}
        rows.append(name | caption.row(drawn=args.decoding["sampling"] is not None))
    if args.output:
        write(Path(args.output), args.format, rows, separator)
    references = {e.image_id: list(e.captions) for e in examples if e.image_id in results}
    for line in failed:
        print(f"skipped {line}")
    print(f"{len(results)} images of {args.split} ({len(problems) + len(failed)} could not be used), {args.how}")
    _tell_scores(results, references, args)
    return 0


def score_files(args: argparse.Namespace) -> int:
    """`pycap score`: score a file of captions against one of human captions."""
    from pycap.data.forms import require_place
    from pycap.data.results import read_references, read_results, renamed

    if args.per_image:
        require_place(Path(args.per_image))
    results, references = read_results(Path(args.results), args.separator), read_references(Path(args.annotations))
    _tell_scores(renamed(results, references), references, args)
    return 0


def _tell_scores(results: Mapping[Any, str], references: Mapping[Any, Sequence[str]], args: argparse.Namespace) -> None:
    """Print every score, of all captions and over the images, and for those that this machine cannot compute why, and what
    helps; write each image's where asked."""
    from pycap import metrics
    from pycap.training.folder import write_lines

    found = metrics.report(results, references, also=["METEOR", *args.also])
    width = max(map(len, found.scores))
    print(f"{'':{width}}   score    mean  median   (over the images)")
    for name, value in found.scores.items():
        each = [row[name] for row in found.images.values()]
        print(f"{name:{width}}  {value:.4f}  {fmean(each):.4f}  {median(each):.4f}")
    for name, error in found.missing.items():
        print(f"{name:{width}}  not scored, nor its median: {error}")
    if args.per_image:
        rows = [
            {"image_id": i, "caption": results[i], "references": list(references[i]), **row}
            for i, row in found.images.items()
        ]
        write_lines(Path(args.per_image), rows)
        print(f"scores of {len(rows)} images: {args.per_image}")
