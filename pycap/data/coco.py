"""COCO's layout: `annotations/captions_{train,val}{2017,2014}.json` with `{train,val}{year}/` beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pycap.data import SPLITS, DataError, Problem
from pycap.data.layout import Entry, Listed, brief, contents, is_id, layout_error, read_json

YEARS = ("2017", "2014")
_ALL = "pycap doctor DIR, with the data set's folder, tells all such entries"


def _annotation_file(root: Path, split: str, year: str) -> Path:
    return root / "annotations" / f"captions_{split}{year}.json"


def _image_folder(root: Path, split: str, year: str) -> Path | None:
    return next((f for f in (root / f"{split}{year}", root / "images" / f"{split}{year}") if f.is_dir()), None)


def _complete(root: Path) -> dict[str, list[str]]:
    """By year, the splits of which both the annotations and the images are there."""
    return {
        year: [s for s in SPLITS if _annotation_file(root, s, year).is_file() and _image_folder(root, s, year)]
        for year in YEARS
    }


def splits(root: Path) -> list[str]:
    """The splits that `root` holds, of the year that `detect_year` takes."""
    whole = _complete(root)
    return max(whole.values(), key=lambda found: ({"train", "val"} <= set(found), bool(found)))


def detect_year(root: Path, split: str) -> str:
    """The year whose files `root` holds: 2017 before 2014, and a year with both train and val before one with `split`
    alone (train2017 shares images with val2014, so years must not be mixed). DataError when neither year is complete
    for `split`.
    """
    whole = _complete(root)
    candidates = [year for year in YEARS if split in whole[year]]
    for year in candidates:
        if {"train", "val"} <= set(whole[year]):
            return year
    if candidates:
        return candidates[0]
    missing = []
    for year in YEARS:
        file = _annotation_file(root, split, year)
        if file.is_file():
            missing.append(f"annotations/{file.name} is there, but its image folder {split}{year}/ is not")
        elif _image_folder(root, split, year):
            missing.append(f"{split}{year}/ is there, but annotations/{file.name} is not")
    if not missing:
        missing = [f"no annotations/captions_{split}{YEARS[0]}.json and no annotations/captions_{split}{YEARS[1]}.json"]
        if split == "test":
            missing.append("COCO gives its test images no captions; use val, or Karpathy's dataset_coco.json")
        elif (root / "annotations").is_dir():
            missing.append(f"annotations/ holds: {contents(root / 'annotations')}")
    raise layout_error(root, "coco", "; ".join(missing))


def _keys(entry: dict[str, Any]) -> str:
    return brief(", ".join(list(entry)[:8]))


def _require_list(body: Any, key: str, file: Path) -> list[Any]:
    if not isinstance(body, dict):
        raise DataError(
            f"{file}: not COCO's JSON: a {type(body).__name__} at the top, not an object with images and annotations"
        )
    if key not in body:
        raise DataError(f'{file}: not COCO\'s JSON: the key "{key}" is missing (found: {_keys(body) or "none"})')
    if not isinstance(body[key], list):
        raise DataError(f'{file}: not COCO\'s JSON: "{key}" is a {type(body[key]).__name__}, not a list')
    return body[key]


def _require_keys(entry: Any, keys: tuple[str, ...], where: str, file: Path) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"{file}: not COCO's JSON: {where} is a {type(entry).__name__}, not an object; {_ALL}")
    for key in keys:
        if key not in entry:
            hint = "; this looks like an instances file, captions are in captions_*.json" if "bbox" in entry else ""
            raise DataError(
                f'{file}: not COCO\'s captions: {where} lacks "{key}" (it has: {_keys(entry)}){hint}; {_ALL}'
            )


def read_captions(file: Path) -> tuple[list[tuple[int | str, str]], dict[int | str, list[Any]], list[Problem]]:
    """COCO captions JSON -> (images as (id, file_name) in the file's order, captions by image id, problems).

    Annotations that name an unknown image id are left out and counted in one problem; DataError when all of them do,
    or when the JSON is not COCO's (the message says which key is missing).
    """
    body = read_json(file)
    image_list = _require_list(body, "images", file)
    annotations = _require_list(body, "annotations", file)
    problems: list[Problem] = []
    names: dict[int | str, str] = {}
    for i, image in enumerate(image_list):
        _require_keys(image, ("id", "file_name"), f"images[{i}]", file)
        image_id, name = image["id"], image["file_name"]
        if not is_id(image_id) or not isinstance(name, str) or not name:
            raise DataError(
                f"{file}: images[{i}] has id {brief(repr(image_id))} and file_name {brief(repr(name))}; "
                f"they must be an id and a file name; {_ALL}"
            )
        if image_id in names:
            reason = f'image id {image_id} stands twice in "images" ({names[image_id]} and {name}); the first is used'
            problems.append({"kind": "image-id-twice", "file": file.name, "image": names[image_id], "reason": reason})
        else:
            names[image_id] = name
    captions: dict[int | str, list[Any]] = {image_id: [] for image_id in names}
    unknown: list[Any] = []
    for i, annotation in enumerate(annotations):
        _require_keys(annotation, ("image_id", "caption"), f"annotations[{i}]", file)
        image_id = annotation["image_id"]
        if is_id(image_id) and image_id in captions:
            captions[image_id].append(annotation["caption"])
        else:
            unknown.append(image_id)
    if unknown:
        share = f"{len(unknown)} of {len(annotations)}"
        reason = f'{share} annotations name image ids that "images" lacks (first: {brief(repr(unknown[0]))})'
        if len(unknown) == len(annotations):
            raise DataError(
                f'{file}: {reason}; "images" and "annotations" come from different files, fetch the original again '
                f"(pycap doctor {file.parent.parent} tells more)"
            )
        reason += "; they are left out"
        problem = {"kind": "unknown-image-id", "file": file.name, "reason": reason}
        problems.append({**problem, "count": len(unknown), "first": unknown[0]})
    return list(names.items()), captions, problems


def listed(root: Path, split: str) -> Listed:
    """One split of a folder in COCO's layout, in the order of the JSON's "images". Errors: see `pycap.data`."""
    year = detect_year(root, split)
    folder = _image_folder(root, split, year)
    if folder is None:
        raise layout_error(root, "coco", f"{split}{year}/ has gone")
    file = _annotation_file(root, split, year)
    images, captions, problems = read_captions(file)
    entries = [Entry(image_id, name, folder / name, captions[image_id]) for image_id, name in images]
    return Listed(entries, f"the images of {file} in {folder}", problems)
