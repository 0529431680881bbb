"""Flickr8k and Flickr30k: the original layouts and Kaggle's copies.

Splits: Flickr8k's `Flickr_8k.{train,dev,test}Images.txt`; for Flickr30k `flickr30k_{train,val,test}.txt` or
`{train,val,test}.txt` (a name a line) where there are any. A copy without any split file is split by `hash_split`: the
names in the order of their SHA-256, the first min(1000, n // 8) test, as many again val, the rest train. It depends on
the names alone, so it is the same everywhere.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycap.data import SPLITS, DataError, Problem
from pycap.data.layout import IMAGE_SUFFIXES, Entry, Listed, brief, find_folder, layout_error, read_text

FOLDERS_8K = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
FOLDERS_30K = ("flickr30k-images", "flickr30k_images", "Images", "images")
IMAGE_FOLDERS = tuple(dict.fromkeys(FOLDERS_8K + FOLDERS_30K))
CAPTIONS_8K = ("Flickr8k_text/Flickr8k.token.txt", "Flickr8k.token.txt", "captions.txt")
CAPTIONS_30K = ("results_20130124.token", "flickr30k_images/results.csv", "results.csv", "captions.txt")
SPLITS_8K = tuple(f"{folder}Flickr_8k.{{}}Images.txt" for folder in ("Flickr8k_text/", ""))
SPLITS_30K = ("flickr30k_{}.txt", "{}.txt")


def hash_split(names: list[str], split: str) -> list[str]:
    """The names of one split when a copy has no split files: see the file's docstring. In the order of `names`."""
    held = min(1000, len(names) // 8)
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
    part = {"test": ranked[:held], "val": ranked[held : 2 * held], "train": ranked[2 * held :]}
    chosen = set(part[split])
    return [name for name in names if name in chosen]


def _token_lines(text: str) -> Iterator[tuple[int, str | None, str]]:
    """Lines `NAME.jpg#K<TAB>caption` -> (line number, name or None where the line has another form, caption or the
    line).
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        name, hash_sign, index = key.strip().rpartition("#")
        yield (number, name, caption) if tab and hash_sign and index else (number, None, line)


def _csv_lines(text: str) -> Iterator[tuple[int, str | None, str]]:
    """Kaggle's copies, `image,caption` or `image_name,comment_number,comment`, by their header -> as `_token_lines`."""
    rows = csv.reader(io.StringIO(text))
    columns = 2
    while (row := _next_row(rows)) is not None:
        if rows.line_num == 1 and row and row[0].strip().lower() in ("image", "image_name"):
            columns = len(row)
        elif row:
            whole = len(row) == columns
            yield (rows.line_num, row[0].strip(), row[-1]) if whole else (rows.line_num, None, ",".join(row))


def _next_row(rows: Any) -> list[str] | None:
    """A row of CSV; None at the end. One that `csv` cannot read, as with quotes that open and do not close, has no columns."""
    try:
        return next(rows, None)
    except csv.Error as error:
        return [f"({error})"]


def _pipe_lines(text: str) -> Iterator[tuple[int, str | None, str]]:
    """Kaggle's Flickr30k, `image_name| comment_number| comment` with a header -> as `_token_lines`."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("image_name|"):
            continue
        parts = line.split("|", 2)
        yield (number, parts[0].strip(), parts[2]) if len(parts) == 3 else (number, None, line)


def read_captions(file: Path) -> tuple[dict[str, list[Any]], list[Problem]]:
    """A caption file in any of the three forms -> (captions by image name, in the file's order; problems).

    Lines of another form and keys that are no image names (Flickr8k's `2258277193_586949ec62.jpg.1#k`) are left out and
    listed. DataError when no line has the form.
    """
    text = read_text(file)
    if file.suffix == ".csv":
        form, lines = "image_name| comment_number| comment", _pipe_lines(text)
    elif "\t" in text.split("\n", 1)[0]:
        form, lines = "NAME.jpg#K<TAB>caption", _token_lines(text)
    else:
        form, lines = "image,caption", _csv_lines(text)
    captions: dict[str, list[Any]] = {}
    broken: dict[str, int] = {}
    problems: list[Problem] = []
    for number, name, caption in lines:
        if name is None:
            reason = f"line {number} is not `{form}`: {caption[:60]!r}"
            problems.append({"kind": "broken-line", "file": file.name, "line": number, "reason": reason})
        elif Path(name).suffix.lower() in IMAGE_SUFFIXES:
            captions.setdefault(name, []).append(caption)
        else:
            broken[name] = broken.get(name, 0) + 1
    if not captions:
        keys = ", ".join(map(brief, list(broken)[:3]))
        first = problems[0]["reason"] if problems else f"keys that are no image names: {keys}"
        raise DataError(f"{file}: no line has the form `{form}` ({first}); fetch the original file again")
    for name, count in broken.items():
        reason = f"the key {name!r} of {file.name} is no image name; its {count} captions are left out"
        problems.append({"kind": "broken-key", "file": name, "reason": reason, "count": count})
    return captions, problems


@dataclass(frozen=True)
class Flickr:
    """One of the two data sets: where its caption file, its image folder and its split files may lie.

    held_out: how the split files call `val`.
    """

    stage: str
    captions: tuple[str, ...]
    folders: tuple[str, ...]
    split_files: tuple[str, ...]
    held_out: str

    def splits(self, root: Path) -> list[str]:
        """The splits that `root` has files of; all, where it has none of them and is split by `hash_split`."""
        return list(self._present(root) or SPLITS)

    def listed(self, root: Path, split: str) -> Listed:
        """One split. Image ids are the names' stems. Errors: see `pycap.data`."""
        file = next((root / name for name in self.captions if (root / name).is_file()), None)
        folder = find_folder(root, self.folders)
        if file is None:
            raise layout_error(root, self.stage, f"no caption file ({', '.join(self.captions)})")
        if folder is None:
            raise layout_error(root, self.stage, f"no image folder ({', '.join(f'{name}/' for name in self.folders)})")
        captions, problems = read_captions(file)
        names, source = self._names(root, split, list(captions))
        names = [name if Path(name).suffix.lower() in IMAGE_SUFFIXES else f"{name}.jpg" for name in names]
        entries = [Entry(Path(name).stem, name, folder / name, captions.get(name, ())) for name in names]
        return Listed(entries, f"the images of {source} in {folder}, with captions from {file.name}", problems)

    def _names(self, root: Path, split: str, names: list[str]) -> tuple[list[str], str]:
        """(names of the split, where they come from). DataError when other split files are there but not this one."""
        present = self._present(root)
        if not present:
            return hash_split(names, split), "the split by SHA-256 of the names"
        if split not in present:
            missing, there = self._split_file(0, split), ", ".join(f.name for f in present.values())
            raise layout_error(root, self.stage, f"no {missing}, though {there} is there")
        listed = dict.fromkeys(line.strip() for line in read_text(present[split]).splitlines() if line.strip())
        return list(listed), str(present[split])

    def _present(self, root: Path) -> dict[str, Path]:
        patterns = range(len(self.split_files))
        return {
            split: file
            for split in SPLITS
            for i in reversed(patterns)
            if (file := root / self._split_file(i, split)).is_file()
        }

    def _split_file(self, pattern: int, split: str) -> str:
        return self.split_files[pattern].format(self.held_out if split == "val" else split)


FLICKR8K = Flickr("flickr8k", CAPTIONS_8K, FOLDERS_8K, SPLITS_8K, "dev")
FLICKR30K = Flickr("flickr30k", CAPTIONS_30K, FOLDERS_30K, SPLITS_30K, "val")
