"""Karpathy's splits: `dataset_{coco,flickr8k,flickr30k}.json` beside the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pycap.data import SPLITS, DataError
from pycap.data.flickr import IMAGE_FOLDERS
from pycap.data.layout import Entry, Listed, brief, contents, find_folder, is_id, read_json

STANDARD = ("dataset_coco.json", "dataset_flickr8k.json", "dataset_flickr30k.json")
# restval: COCO val2014 images that are in neither of Karpathy's val and test; everyone trains on them.
SPLIT_NAMES = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def find(root: Path, stage: str) -> Path | None:
    """The Karpathy file of a stage in `root`: `dataset_STAGE.json`, else the only `dataset_*.json` that is not another
    stage's.
    """
    own = root / f"dataset_{stage}.json"
    if own.is_file():
        return own
    others = sorted(file for file in root.glob("dataset_*.json") if file.name not in STANDARD)
    if len(others) > 1:
        raise DataError(
            f"{root}: {len(others)} files could hold Karpathy's split ({', '.join(f.name for f in others)}); keep one, "
            f"or name it {own.name}"
        )
    return others[0] if others else None


def _captions(image: dict[str, Any], where: str, file: Path) -> list[Any]:
    captions = []
    for k, sentence in enumerate(image["sentences"]):
        if not isinstance(sentence, dict) or not ("raw" in sentence or "tokens" in sentence):
            raise DataError(f'{file}: not Karpathy\'s JSON: {where}.sentences[{k}] has neither "raw" nor "tokens"')
        tokens = sentence.get("tokens")
        words = " ".join(map(str, tokens)) if isinstance(tokens, list) else tokens
        captions.append(sentence.get("raw", words))
    return captions


def splits(file: Path) -> list[str]:
    """The splits that a Karpathy file has images of."""
    present = {str(image.get("split")) for image in _images(file) if isinstance(image, dict)}
    return [split for split in SPLITS if present.intersection(SPLIT_NAMES[split])]


def _images(file: Path) -> list[Any]:
    body = read_json(file)
    if not isinstance(body, dict) or not isinstance(body.get("images"), list):
        raise DataError(
            f'{file}: not Karpathy\'s JSON: the key "images" (a list) is missing; fetch caption_datasets.zip again'
        )
    images: list[Any] = body["images"]
    return images


def listed(root: Path, split: str, file: Path) -> Listed:
    """One split of a Karpathy file; `train` includes `restval`. Ids: `cocoid` where there is one, else the name's stem.

    Images are looked for in `root/filepath/` (COCO), else in Flickr's usual image folders, else in `root` itself.
    """
    flickr_folder = find_folder(root, IMAGE_FOLDERS) or root
    entries: list[Entry] = []
    found: set[str] = set()
    for i, image in enumerate(_images(file)):
        where = f"images[{i}]"
        for key in ("filename", "split", "sentences"):
            if not isinstance(image, dict) or key not in image:
                raise DataError(
                    f'{file}: not Karpathy\'s JSON: {where} lacks "{key}"; fetch caption_datasets.zip again'
                )
        if not isinstance(image["filename"], str) or not isinstance(image["sentences"], list):
            raise DataError(f'{file}: not Karpathy\'s JSON: {where} needs a "filename" (text) and "sentences" (a list)')
        found.add(str(image["split"]))
        if image["split"] not in SPLIT_NAMES[split]:
            continue
        name = image["filename"]
        for key, kind, fits in (
            ("filepath", "a folder", isinstance(image.get("filepath", ""), str)),
            ("cocoid", "an id", is_id(image.get("cocoid", 0))),
        ):
            if not fits:
                raise DataError(
                    f'{file}: not Karpathy\'s JSON: {where} has the "{key}" {brief(repr(image[key]))}, which is not {kind}'
                )
        folder = root / image["filepath"] if "filepath" in image else flickr_folder
        file_name = f"{image['filepath']}/{name}" if "filepath" in image else name
        image_id = image["cocoid"] if "cocoid" in image else Path(name).stem
        entries.append(Entry(image_id, file_name, folder / name, _captions(image, where, file)))
    if not entries:
        raise DataError(
            f"{file}: no image is of split {split!r} (found: {brief(', '.join(sorted(found))) or 'none'}); use one of those"
        )
    return Listed(entries, f"the images of {file.name}; the folder holds: {contents(root)}")
