"""ImageCLEF 2016's development set: 2,000 photographs with several sentences each, three quarters to train on.

The task hands out its images as `scaleconcepts16_images/<first two characters of the id>/<id>.jpg`, at most 640 pixels
high and wide. Of the sentences' file no description could be found, so that the forms are accepted that such files have:

* text, a sentence a line: `IMAGE_ID<TAB>sentence`, where further columns with words are further sentences and a `#K` or an
  image's suffix after the id is dropped; a file without any tab is read as `IMAGE_ID sentence`, as in the task's run files;
* COCO's captions JSON.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pycap.data import SPLITS, DataError, Problem, coco
from pycap.data.layout import IMAGE_SUFFIXES, Entry, Listed, Listing, layout_error, read_text
from pycap.data.vocab import has_words

CAPTIONS = ("captions.json", "captions.txt", "captions.tsv", "sentences.txt", "sentences.tsv")
FOLDERS = ("images", "Images", "scaleconcepts16_images", "scaleconcept16_images")
#: Decides, with the ids alone, which quarter is held out; another one would be another benchmark.
SPLIT_SEED = 2016


def splits(root: Path) -> list[str]:
    """All of them: `val` and `test` are the same quarter."""
    return list(SPLITS)


def held_out(ids: list[str]) -> set[str]:
    """The quarter (rounded down) that is not trained on: the first ids by SHA-256 of the split's seed and the id."""
    ranked = sorted(
        ids, key=lambda image_id: hashlib.sha256(f"{SPLIT_SEED} {image_id}".encode("utf-8", "surrogatepass")).digest()
    )
    return set(ranked[: len(ids) // 4])


def listed(root: Path, split: str) -> Listed:
    """One split, in the caption file's order. Ids are the images' names without suffix, which is what run files need; COCO's
    JSON may number them otherwise. Errors: see `pycap.data`."""
    file = _caption_file(root)
    folder = next((root / name for name in FOLDERS if (root / name).is_dir()), root)
    if file.suffix.lower() == ".json":
        images, by_id, problems = coco.read_captions(file)
        names = {_without_suffix(Path(name).name): name for _, name in images}
        captions: dict[str, list[Any]] = {name: [] for name in names}
        for image_id, name in images:
            captions[_without_suffix(Path(name).name)] += by_id[image_id]
    else:
        captions, problems = read_sentences(file)
        names = {}
    held = held_out(list(captions))
    listing = Listing()
    entries = []
    for image_id in captions:
        if (image_id in held) == (split == "train"):
            continue
        path = _image_file(folder, names.get(image_id, image_id), listing)
        entries.append(Entry(image_id, path.name, path, captions[image_id]))
    return Listed(
        entries, f"the images of {file} in {folder}, or in folders there of an id's first two letters", problems
    )


def read_sentences(file: Path) -> tuple[dict[str, list[Any]], list[Problem]]:
    """A text file of sentences -> (sentences by image id, in the file's order; problems). DataError when none has the
    form.
    """
    lines = read_text(file).split("\n")
    tab = "\t" if any("\t" in line for line in lines) else None
    captions: dict[str, list[Any]] = {}
    problems: list[Problem] = []
    for number, line in enumerate(lines, 1):
        first, *rest = line.strip().split(tab) if tab else line.split(maxsplit=1) or [""]
        image_id = _without_suffix(first.strip().partition("#")[0])
        sentences = [column for column in rest if has_words(column)]
        if image_id and sentences:
            captions.setdefault(image_id, []).extend(sentences)
        elif line.strip():
            reason = f"line {number} is not `IMAGE_ID<TAB>sentence`: {line.strip()[:60]!r}"
            problems.append({"kind": "broken-line", "file": file.name, "line": number, "reason": reason})
    if not captions:
        raise DataError(f"{file}: no line has the form `IMAGE_ID<TAB>sentence` ({problems[0]['reason']})")
    return captions, problems


def _caption_file(root: Path) -> Path:
    for folder in (root, root / "annotations"):
        for name in CAPTIONS:
            if (folder / name).is_file():
                return folder / name
    raise layout_error(root, "imageclef", f"no caption file ({', '.join(CAPTIONS)}, also in annotations/)")


def _without_suffix(name: str) -> str:
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name


def _image_file(folder: Path, name: str, listing: Listing) -> Path:
    """Where an image lies: in `folder` or in its folder of the id's first two characters; with or without a suffix."""
    names = (
        [name] if Path(name).suffix.lower() in IMAGE_SUFFIXES else [f"{name}{end}" for end in (".jpg", ".jpeg", ".png")]
    )
    places = [place / each for place in (folder, folder / name[:2]) for each in names]
    return next((path for path in places if listing.has(path)), places[0])
