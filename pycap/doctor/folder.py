"""A data folder, looked at as a whole: captions first, then every image, then what is there twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pycap.data import SPLITS, DataError, Example, datasets, folders, picks
from pycap.data.datasets import Part
from pycap.data.layout import Entry, Listed, reading
from pycap.data.names import hashed
from pycap.doctor import captions, leaks
from pycap.doctor.captions import Read
from pycap.doctor.files import CheckedFiles
from pycap.doctor.findings import Findings
from pycap.doctor.images import Looks, Picture, look_at, orphans
from pycap.doctor.layouts import Recognised
from pycap.doctor.leaks import Placed


@dataclass
class Examined:
    """What was found in one folder. splits, words, images: plain JSON values of counts; images is empty where none was looked
    at. stopped: the user did, before all was seen."""

    folder: str
    kind: str
    findings: Findings = field(default_factory=Findings)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False


class Watch:
    """What the caller shows meanwhile, and whether it was asked to stop; this one shows nothing."""

    def step(self, what: str) -> bool:
        """What comes next; false: stop."""
        return True

    def images(self, done: int, of: int) -> bool:
        """So many images were looked at; false: stop."""
        return True


def examine(
    folder: str, recognised: Recognised, watch: Watch, *, sample: int = 0, threshold: int = 5, workers: int = 0
) -> Examined:
    """Look at a data set, or at several that are trained on together.

    folder: as the user named it. sample: of that many images at most the files are read (0: of all). threshold:
    `--word-count-threshold`. workers: threads (0: one a CPU).
    """
    found = Examined(folder, recognised.kind)
    if recognised.reason:
        found.findings.add("layout", folder, recognised.reason)
        return found
    if not watch.step(f"reading the captions of {folder}"):
        found.stopped = True
        return found
    if recognised.kind == "pretrain":
        reads, sizes = _read_classes(Path(folder), found), dict[str, tuple[int, int]]()
    else:
        reads, sizes = _read_parts(recognised.parts, found)
        found.words = captions.check_words(reads, threshold, found.findings)
    for read in reads:
        name = read.split if len(recognised.parts) < 2 else f"{read.part.name} {read.split}"
        found.splits[name] = captions.counted(read)
    placed = _placed(reads, sizes, together=len(recognised.parts) > 1)
    for path in _unnamed(recognised, reads, Path(folder)):
        found.findings.add("orphan-image", path)
    found.stopped = not _look_at(placed, found, watch, sample, workers, by_name=recognised.kind != "pretrain")
    return found


def _read_parts(parts: Sequence[Part], found: Examined) -> tuple[list[Read], dict[str, tuple[int, int]]]:
    """The splits of all parts, and the sizes that COCO's files tell, by file name."""
    together = len(parts) > 1
    reads: list[Read] = []
    files = CheckedFiles(found.findings)
    known: set[str] = set()
    with reading(files):
        for part in parts:
            prefix = f"{part.name}/" if together else ""
            ids: dict[Any, Entry] = {}
            for split, listed in _listed(part, found.findings, prefix):
                fresh = [p for p in listed.problems if str(p) not in known]  # each split reads the same file
                known.update(map(str, fresh))
                captions.add_problems(found.findings, fresh, prefix)
                reads.append(captions.check_split(part, split, listed, found.findings, ids, prefix))
        if together:
            reads = _without_held_out(parts, reads, found.findings)
    return reads, files.sizes


def _listed(part: Part, findings: Findings, prefix: str) -> list[tuple[str, Listed]]:
    """The splits of a part; what cannot be read is told."""

    said: set[str] = set()

    def attempt(name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (DataError, OSError) as error:
            if str(error) not in said:  # every split may lack the same file
                findings.add("unreadable-file", prefix + name, str(error))
            said.add(str(error))
            return None

    if part.kind == "picks":
        found = attempt("train", lambda: picks.listed(part.path, part.root))
        return [("train", found)] if found else []
    present = attempt(str(part.path), lambda: datasets.present(part))
    if present is None:
        return []
    if part.kind == "imageclef":
        present = [split for split in present if split != "test"]  # the same quarter as val
    # Of what a run needs, the reader says why it is not there.
    wanted = [split for split in SPLITS if split in present or split != "test"]
    found = [(split, attempt(split, lambda split=split: datasets.entries(part, split))) for split in wanted]  # type: ignore[misc]
    return [(split, listed) for split, listed in found if listed]


def _without_held_out(parts: Sequence[Part], reads: list[Read], findings: Findings) -> list[Read]:
    """The splits as they are when all parts are trained on together: without what another part holds out."""
    try:
        examples, problems = datasets.load(parts, "train")
    except (DataError, OSError):  # which was told of the part that it is of
        return reads
    captions.add_problems(findings, [problem for problem in problems if "held_out_by" in problem])
    kept = {example.path for example in examples}
    return [
        replace(read, examples=[e for e in read.examples if e.path in kept]) if read.split == "train" else read
        for read in reads
    ]


def _read_classes(root: Path, found: Examined) -> list[Read]:
    try:
        train, val, problems = folders.load(root)
    except (DataError, OSError) as error:
        found.findings.add("unreadable-file", str(root), str(error))
        return []
    captions.add_problems(found.findings, problems)
    part = Part("pretrain", root, root)
    return [
        Read(part, split, examples, len(examples), frozenset(str(example.path) for example in examples))
        for split, examples in (("train", train), ("val", val))
    ]


def _placed(reads: Sequence[Read], sizes: dict[str, tuple[int, int]], together: bool) -> list[Placed]:
    def placed(read: Read, example: Example) -> Placed:
        prefix = f"{read.part.name}/" if together else ""
        if read.part.kind == "pretrain":
            prefix = f"{read.split}/"
        picture = Picture(prefix + example.file_name, example.path, sizes.get(example.file_name))
        return Placed(read.split, read.part.name, picture, example.captions)

    return [placed(read, example) for read in reads for example in read.examples]


def _unnamed(recognised: Recognised, reads: Sequence[Read], root: Path) -> list[str]:
    """Images in the sets' folders that no split names."""
    if recognised.kind == "pretrain":
        return sorted(orphans([root / "train", root / "val"], set()))  # beside the folders of the classes
    sets = [read for read in reads if read.part.kind != "picks"]
    named = {path for read in sets for path in read.named}
    return sorted(orphans({Path(path).parent for path in named}, named))


def _look_at(placed: Sequence[Placed], found: Examined, watch: Watch, sample: int, workers: int, by_name: bool) -> bool:
    """Have all images looked at (or a sample), and what is twice among them told; false where the user stopped it."""
    # A path that two splits name is one file.
    first: dict[Path, int] = {}
    for place, image in enumerate(placed):
        first.setdefault(image.picture.path, place)
    places = list(first.values())
    if 0 < sample < len(places):
        # Any, but the same ones in every call.
        places = sorted(sorted(places, key=lambda place: hashed(placed[place].picture.name))[:sample])
    looks = Looks(len(placed))
    pictures = [image.picture for image in placed]
    begun = time.monotonic()
    going = True
    results = look_at(pictures, places, looks, found.findings, workers)
    try:
        for _ in results:
            if not watch.images(looks.looked_at, len(places)):
                going = False
                break
    finally:
        results.close()
    seconds = time.monotonic() - begun
    found.images = {
        "named": len(first),
        "looked_at": looks.looked_at,
        "readable": int(looks.decoded.sum()),
        "seconds": round(seconds, 2),
        "per_second": round(looks.looked_at / max(seconds, 1e-9), 1),
        "forms": dict(looks.forms.most_common()),
        "smallest": looks.smallest,
        "largest": looks.largest,
    }
    if not going:
        return False
    for place, image in enumerate(placed):
        looks.repeat(first[image.picture.path], place)
    stopped: list[str] = []

    def step(what: str) -> bool:
        if stopped or not watch.step(what):
            stopped.append(what)
        return not stopped

    leaks.find(placed, looks, found.findings, by_name, step)
    return not stopped
