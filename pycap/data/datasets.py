"""Which data sets a stage reads: one kind, or several combined, of which none trains on what another holds out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from pycap.data import SPLITS, DataError, Example, Problem, coco, imageclef, karpathy, picks
from pycap.data.flickr import FLICKR8K, FLICKR30K
from pycap.data.layout import EXPECTED, Entry, Listed, require_folder, usable

#: Where data is looked for when no folder is given.
DATA_FOLDER = Path("data")
#: What stages of several data sets read; any other stage reads the kind of its own name.
STAGES = {"flickr": "flickr8k+flickr30k", "selected": "flickr8k+flickr30k+picks"}
KINDS = ("coco", "coco_all", "flickr8k", "flickr30k", "imageclef", "picks")


class Reader(Protocol):
    """A caption layout: which splits a folder holds, and what is listed of one."""

    def splits(self, root: Path) -> list[str]: ...
    def listed(self, root: Path, split: str) -> Listed: ...


_READERS: dict[str, Reader] = {"coco": coco, "flickr8k": FLICKR8K, "flickr30k": FLICKR30K, "imageclef": imageclef}
_SETS = {"coco_all": "coco"}  # kinds that are another one's files
_FAMILIES = {"flickr8k": "flickr", "flickr30k": "flickr"}  # sets that share photographs
_PLUS = re.compile(rf"\+(?=(?:{'|'.join(KINDS)})(?:[=+]|$))")  # a folder's name may hold a plus, too
_COCO_PREFIX = re.compile(r"COCO_(?:train|val|test)\d{4}_")
_FLICKR_SECRET = re.compile(r"([1-9]\d+)_[0-9a-f]{6,}(?:_[a-z])?")


@dataclass(frozen=True)
class Part:
    """One data set. path: its folder, or the file of picks. root: the folder of all parts."""

    kind: str
    path: Path
    root: Path

    @property
    def name(self) -> str:
        """What its files are: coco_all's are COCO's."""
        return _SETS.get(self.kind, self.kind)


def kinds(spec: str) -> str:
    """The data sets of `spec` without their folders, joined by `+`: to be read elsewhere. DataError as for `parse`."""
    return "+".join(part.kind for part in parse(spec))


def parse(spec: str, root: Path | None = None, picks_file: Path | None = None) -> tuple[Part, ...]:
    """The data sets of `spec`: a stage's name, or `KIND[=FOLDER]` joined by `+`.

    root: for one kind, its folder; for several, the folder with one folder a kind (`ROOT/flickr8k`, ..., `ROOT/picks.jsonl`);
    None: `data/KIND` in either case. FOLDER goes before it. picks_file: goes before `ROOT/picks.jsonl`. DataError for a
    kind that is unknown or stands in it twice, for picks alone, and for a picks_file that no part reads.
    """
    pieces = _PLUS.split(STAGES.get(spec, spec))
    base = DATA_FOLDER if root is None else root
    parts: list[Part] = []
    for piece in pieces:
        kind, _, given = piece.partition("=")
        if kind not in KINDS:
            raise DataError(
                f"data sets {spec!r}: no kind {kind!r}; kinds: {', '.join(KINDS)} (KIND or KIND=FOLDER, joined by +); "
                f"stages of several: {', '.join(STAGES)}"
            )
        path = base / _SETS.get(kind, kind)
        if given:
            path = Path(given).expanduser()
        elif kind == "picks":
            path = picks_file or base / "picks.jsonl"
        elif root is not None and len(pieces) == 1:
            path = root
        parts.append(Part(kind, path, base))
    names = [part.name for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DataError(f"data sets {spec!r}: {twice} stands in it twice; name each set once")
    if names == ["picks"]:
        raise DataError(f"data sets {spec!r}: picks alone leave nothing to validate on; add a set, as flickr8k+picks")
    if picks_file and "picks" not in names:
        raise DataError(f"picks {picks_file}: {spec} reads none; use --stage selected, or add +picks to --datasets")
    return tuple(parts)


def require(parts: Sequence[Part]) -> None:
    """DataError that says which data sets are not where they are looked for, what belongs there, and what helps."""
    if len(parts) == 1:
        require_folder(parts[0].path, parts[0].name)
        return
    missing = [part for part in parts if not (part.path.is_file() if part.kind == "picks" else part.path.is_dir())]
    if not missing:
        return
    wanted = "; ".join(f"no {part.name} in {part.path.absolute()} (wanted: {EXPECTED[part.name]})" for part in missing)
    places = "+".join(f"{part.kind}={'FILE' if part.kind == 'picks' else 'DIR'}" for part in parts)
    raise DataError(
        f"{wanted}. Put it there, give the folder that holds {', '.join(p.path.name for p in parts)} with --data ROOT, "
        f"or each place by itself with --datasets {places}"
    )


def load(parts: Sequence[Part], split: str) -> tuple[list[Example], list[Problem]]:
    """The usable examples of a split of all parts, and the problems found; see `pycap.data.load_split`.

    Where there are several parts, an example of each comes in turn, so that the first N are of all of them; image ids and
    file names begin with the part's name (`flickr8k/...`), so that they differ; and images that one part holds out (its val
    and test) are left out of the others' train, each with a problem that has the key `held_out_by`. Picks have a train
    split only.
    """
    if split not in (*SPLITS, "all"):
        raise DataError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}, all")
    together = len(parts) > 1
    parts = [part for part in parts if part.kind != "picks" or split == "train"]
    require(parts)
    examples: list[list[Example]] = []
    problems: list[Problem] = []
    held = {part: _held_out(part) for part in parts} if together and split == "train" else {}
    for part in parts:
        found = _listed(part, split)
        if held:
            found = _without(found, part, held)
        good, bad = usable(found.entries, part.path, found.looked_for, found.problems)
        if together:
            good = [
                Example(f"{part.name}/{e.image_id}", f"{part.name}/{e.file_name}", e.path, e.captions) for e in good
            ]
            bad = [{**problem, "file": f"{part.name}/{problem['file']}"} for problem in bad]
        examples.append(good)
        problems += bad
    return [example for turn in zip_longest(*examples) for example in turn if example is not None], problems


def remarks(parts: Sequence[Part]) -> list[str]:
    """What a person who reads scores on these parts' validation images should know."""
    told = {
        "coco_all": "coco_all trains on COCO's validation images too: scores on them tell how well the model fits what it "
        "has seen, not how it does on new images",
        "imageclef": "imageclef: val and test are the same quarter of the images, as in the paper",
    }
    return [told[part.kind] for part in parts if part.kind in told]


def present(part: Part) -> list[str]:
    """The splits that a data set has files of; DataError as for `load`."""
    dataset = karpathy.find(part.path, part.name)
    return karpathy.splits(dataset) if dataset else _READERS[part.name].splits(part.path)


def entries(part: Part, split: str) -> Listed:
    """One split of a data set that is no picks, as its caption files have it; DataError as for `load`."""
    dataset = karpathy.find(part.path, part.name)
    return karpathy.listed(part.path, split, dataset) if dataset else _READERS[part.name].listed(part.path, split)


def within_set(file_name: str) -> str:
    """What names the photograph in file names of one set: the stem, without COCO's `COCO_val2014_`."""
    return _COCO_PREFIX.sub("", Path(file_name).stem)


def photograph(file_name: str) -> str:
    """What names the photograph in file names of different sets: the stem, without COCO's `COCO_val2014_` and without the
    secret that Flickr8k's names have after Flickr's number (`1000268201_693b08cb0e.jpg` is Flickr30k's `1000268201.jpg`).
    """
    stem = within_set(file_name)
    flickr = _FLICKR_SECRET.fullmatch(stem)
    return flickr[1] if flickr else stem


def _listed(part: Part, split: str) -> Listed:
    if part.kind == "picks":
        return picks.listed(part.path, part.root)
    if split == "all" or (part.kind == "coco_all" and split == "train"):
        return _all(part)
    return entries(part, split)


def _all(part: Part) -> Listed:
    """Every split that the part has, each image once."""
    splits = present(part)
    if not splits:
        return entries(part, "train")  # raises: says what is missing
    kept: dict[Path, Entry] = {}
    ids: dict[int | str, Path] = {}
    problems: dict[str, Problem] = {}
    looked_for = []
    for split in splits:
        found = entries(part, split)
        looked_for.append(found.looked_for)
        problems.update((str(problem), problem) for problem in found.problems)
        for entry in found.entries:
            if ids.setdefault(entry.image_id, entry.path) == entry.path:
                kept.setdefault(entry.path, entry)
            else:
                reason = f"image id {entry.image_id} is {ids[entry.image_id]} too; {entry.path} is left out"
                problems[reason] = {"kind": "image-id-twice", "file": entry.file_name, "reason": reason}
    return Listed(list(kept.values()), "; ".join(dict.fromkeys(looked_for)), list(problems.values()))


def _held_out(part: Part) -> dict[str, str]:
    """By photograph, the split and file name of what the part holds out; whether the file exists does not matter."""
    if part.kind in ("coco_all", "picks"):
        return {}
    splits = [split for split in present(part) if split != "train"]
    return {
        photograph(e.file_name): f"{split} image {e.file_name}"
        for split in splits
        for e in entries(part, split).entries
    }


def _without(found: Listed, part: Part, held: dict[Part, dict[str, str]]) -> Listed:
    """`found` without what other parts hold out."""
    others = [(other.name, images) for other, images in held.items() if other is not part and _share(part, other)]
    kept, problems = [], []
    for entry in found.entries:
        photo = photograph(entry.file_name)
        owner = next(((name, images[photo]) for name, images in others if photo in images), None)
        if owner is None:
            kept.append(entry)
        else:
            reason = f"it is {owner[0]}'s {owner[1]}, so that training on it would leak; it is left out"
            problem = {"kind": "held-out-elsewhere", "file": entry.file_name, "reason": reason}
            problems.append({**problem, "held_out_by": owner[0]})
    return Listed(kept, found.looked_for, found.problems + problems)


def _share(one: Part, other: Part) -> bool:
    """Whether two data sets may have photographs in common; picks may be of any."""
    return "picks" in (one.kind, other.kind) or _FAMILIES.get(one.kind, one) == _FAMILIES.get(other.kind, other)
