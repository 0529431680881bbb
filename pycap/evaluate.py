"""Scoring: `pycap.evaluate(results, references)`, and the commands `pycap evaluate` and `pycap score`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
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
    """`pycap evaluate`: caption a split with a checkpoint, score it, write COCO results JSON where asked."""
    from rich.progress import track

    from pycap.backends import select, set_threads
    from pycap.captioner import Captioner
    from pycap.data import load_split
    from pycap.device import cpu_count

    select(args.device, args.backend)
    set_threads(args.threads or cpu_count())
    captioner = Captioner.load(args.checkpoint, args.precision)
    examples, problems = load_split(args.stage or captioner.config.stage, Path(args.data), args.split)
    examples = examples[: args.images] if args.images else examples
    captions = captioner.caption([e.path for e in examples], beam_size=args.beam_size, batch_size=args.batch_size)
    results: dict[Any, str] = {}
    failed = []
    for example, caption in zip(examples, track(captions, "captioning", len(examples)), strict=True):
        if caption.error:
            failed.append(f"{caption.file_name}: {caption.error}")
        else:
            results[example.image_id] = caption.text
    references = {e.image_id: list(e.captions) for e in examples if e.image_id in results}
    if args.output:
        _write_json(Path(args.output), [{"image_id": i, "caption": c} for i, c in results.items()])
    for line in failed:
        print(f"skipped {line}")
    print(
        f"{len(results)} images of {args.split} ({len(problems) + len(failed)} could not be used), beam {args.beam_size}"
    )
    _print_scores(results, references)
    return 0


def score_files(args: argparse.Namespace) -> int:
    """`pycap score`: score a COCO results file against a COCO annotations file."""
    from pycap.data import DataError

    results = _read_results(Path(args.results))
    references: dict[Any, list[str]] = {}
    annotations = _read_json(Path(args.annotations))
    if not isinstance(annotations, dict) or not isinstance(annotations.get("annotations"), list):
        raise DataError(f'{args.annotations}: no "annotations" in it; give a COCO captions file')
    for row in annotations["annotations"]:
        references.setdefault(row["image_id"], []).append(row["caption"])
    _print_scores(results, references)
    return 0


def _print_scores(results: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> None:
    """Every score; for METEOR, where Java or its program is missing, why there is none and what helps."""
    from pycap.metrics import MeteorUnavailable

    missing = ""
    try:
        scores = evaluate(results, references, also=["METEOR"])
    except MeteorUnavailable as error:
        missing, scores = str(error), evaluate(results, references)
    for name, value in scores.items():
        print(f"{name:8} {value:.4f}")
    if missing:
        print(f"METEOR   not scored: {missing}")


def _read_json(path: Path) -> Any:
    from pycap.data import DataError

    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error


def _read_results(path: Path) -> dict[Any, str]:
    from pycap.data import DataError

    rows = _read_json(path)
    if not isinstance(rows, list) or not all(isinstance(r, dict) and {"image_id", "caption"} <= r.keys() for r in rows):
        raise DataError(f'{path}: not COCO results; they look like [{{"image_id": 1, "caption": "..."}}]')
    results = {row["image_id"]: row["caption"] for row in rows}
    if len(results) != len(rows):
        raise DataError(f"{path}: {len(rows) - len(results)} image ids stand in it twice; keep one caption an image")
    return results


def _write_json(path: Path, rows: Any) -> None:
    from pycap.training.folder import write_text

    write_text(path, json.dumps(rows, ensure_ascii=False, indent=0) + "\n")
