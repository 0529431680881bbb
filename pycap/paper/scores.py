"""What a model says of images, kept as JSON Lines that an interrupted call continues, and how good that is."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pycap import metrics
from pycap.bulk.job import Job, Stopped, run
from pycap.bulk.target import Target
from pycap.captioner import Captioner
from pycap.data import Example
from pycap.data.forms import image_id, write
from pycap.data.inputs import Inputs
from pycap.data.items import Reference

_BATCH = 64

Verdict = Callable[[str, str], bool | None]  # (image id, caption) -> whether the caption is true; None: not known


@dataclass(frozen=True)
class Score:
    """How good captions are. metric: METEOR, or CIDEr where METEOR cannot be computed. each: of every image, by id.

    median: of `each`. scores: BLEU-1 ... BLEU-4, ROUGE-L, CIDEr, and METEOR where there is one. true: the part of the
    captions that is true, where the truth is known.
    """

    metric: str
    value: float
    median: float
    images: int
    distinct: float
    scores: dict[str, float]
    true: float | None = None
    each: dict[str, float] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """Without the scores of every image."""
        return {name: value for name, value in asdict(self).items() if name != "each"}


class _Named(Inputs):
    """Image files under names of their own."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        super().__init__([str(path) for path in paths])
        self._names = names

    def references(self) -> Iterator[Reference]:
        return map(Reference, self._names, (partial(str, path) for path in self.named))


def caption(
    checkpoint: Path, paths: Sequence[Path], names: Sequence[str], output: Path, beam_size: int, what: str
) -> None:
    """Caption images, a JSON line each in their order, as pycap caption does; file names are of `names`. What an earlier call
    left is continued. KeyboardInterrupt where it is stopped."""
    captioner = Captioner.load(checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    decoding: dict[str, Any] = {"beam_size": beam_size, "batch_size": _BATCH}
    job = Job(
        _Named(paths, names),
        Target(output),
        lambda items: captioner.batches(items, **decoding),
        _BATCH,
        {"checkpoint": captioner.digests[0], "decoding": decoding},
        resume=True,
        what=what,
    )
    try:
        run(job)
    except Stopped as stopped:
        raise KeyboardInterrupt from stopped


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that `caption` wrote."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def score(captions: Mapping[str, str], examples: Sequence[Example], verdict: Verdict) -> Score:
    """Score captions by image id against the examples' own."""
    references: dict[Hashable, Sequence[str]] = {
        str(e.image_id): e.captions for e in examples if str(e.image_id) in captions
    }
    said: dict[Hashable, str] = {image: captions[str(image)] for image in references}
    report = metrics.report(said, references, also=["METEOR"])
    name = "CIDEr" if report.missing else "METEOR"
    each = {str(image): own[name] for image, own in report.images.items()}
    verdicts = [known for image, text in said.items() if (known := verdict(str(image), text)) is not None]
    return Score(
        name,
        report.scores[name],
        statistics.median(each.values()),
        len(said),
        metrics.distinct_ratio(said.values()),
        report.scores,
        sum(verdicts) / len(verdicts) if verdicts else None,
        each,
    )


def metric() -> str:
    """By which score captions are told apart: METEOR, or CIDEr where METEOR cannot be computed."""
    return "CIDEr" if metrics.meteor_missing() else "METEOR"


def difference(one: Score, other: Score) -> tuple[float, float]:
    """(mean over images of one's score less the other's, its standard error), of the images that both have."""
    values = [one.each[i] - other.each[i] for i in one.each.keys() & other.each.keys()]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def run_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """An ImageCLEF run file: a line an image, its id and the sentence."""
    write(path, "imageclef", ({**row, "image_id": image_id(row["file_name"], "imageclef")} for row in rows))
