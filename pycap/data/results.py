"""Files of captions that a model made: JSON Lines, COCO's results, and ImageCLEF's runs, written and read."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pycap.data import DataError
from pycap.data.imageclef import read_sentences
from pycap.data.layout import IMAGE_SUFFIXES, read_json, read_text

FORMATS = ("jsonl", "coco", "imageclef")
TAB = "\t"
_COCO_NAME = re.compile(r"(?:COCO_[A-Za-z0-9]+_)?([0-9]+)")


def check_separator(separator: str) -> str:
    """What stands between id and caption, `\\t` read as a tab; DataError for one that words or lines may hold."""
    separator = separator.replace("\\t", TAB)
    if not separator or re.search(r"[\w'\n\r]", separator):
        raise DataError(
            f"separator {separator!r}: it must be something that no word holds, as a tab (\\t), a comma or ' | '"
        )
    return separator


def check_names(paths: Sequence[Path], form: str, separator: str = TAB) -> None:
    """DataError where image ids, the files' names without suffix, would not tell the images apart in a file of this form."""
    if form == "jsonl":
        return
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise DataError(
                f"{path} and {files[path.stem]} have the same image id, {path.stem!r}; caption them into two files"
            )
        files[path.stem] = path
        if form == "imageclef" and separator in path.stem:
            raise DataError(f"{path}: the image id holds the separator {separator!r}; choose another --separator")


def image_id(path: Path, form: str) -> int | str:
    """The id of an image file: its name without suffix; in COCO's results the number, where the name is one of COCO's."""
    number = _COCO_NAME.fullmatch(path.stem) if form == "coco" else None
    return int(number[1]) if number else path.stem


def require_place(path: Path) -> None:
    """DataError where no file `path` can be made: what takes long asks before it begins."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a file; name a file in it")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; make it, or name another")


class Writer:
    """A file of captions, written one by one: under NAME.partial until it is whole; without a path, the screen.

    Entered with `with`. Left by an exception, what was written stays in NAME.partial, and this is told.
    """

    def __init__(self, path: str | Path | None, form: str, separator: str = TAB) -> None:
        """DataError for an unknown form, a bad separator, or a folder that is not there."""
        if path:
            require_place(Path(path))
        if form not in FORMATS:
            raise DataError(f"format {form!r} is unknown; choose from {', '.join(FORMATS)}")
        self.path = Path(path) if path else None
        self.count = 0
        self._form, self.separator = form, check_separator(separator)

    def __enter__(self) -> Writer:
        self._stream = open(self._partial, "w", encoding="utf-8", newline="\n") if self.path else sys.stdout
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """One image's caption: `image_id`, `caption`, and what else JSON Lines is to hold."""
        if self._form == "imageclef":
            text = f"{row['image_id']}{self.separator}{_one_line(row['caption'], self.separator)}\n"
        elif self._form == "coco":
            plain = {name: row[name] for name in ("image_id", "caption")}
            text = ("[\n" if not self.count else ",\n") + json.dumps(plain, ensure_ascii=False)
        else:
            text = json.dumps(row, ensure_ascii=False) + "\n"
        self._stream.write(text)
        self._stream.flush()
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._form == "coco":
            self._stream.write("\n]\n" if self.count else "[]\n")
        if self.path is None:
            return
        self._stream.close()
        if kind is None:
            self._partial.replace(self.path)
        elif self.count:
            print(f"stopped: the {self.count} captions made so far are in {self._partial}", file=sys.stderr)
        else:
            self._partial.unlink()

    @property
    def _partial(self) -> Path:
        assert self.path
        return self.path.with_name(self.path.name + ".partial")


def read_results(path: Path, separator: str | None = None) -> dict[int | str, str]:
    """{image id: caption} of a file of any of `FORMATS`, told apart by its first character.

    separator: of an ImageCLEF run; None: a tab if there is one in the file, else the first blank of each line.
    DataError: not readable, a row without id or caption, an image with two captions.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows = read_json(path)
        if not all(isinstance(row, dict) and {"image_id", "caption"} <= row.keys() for row in rows):
            raise DataError(f'{path}: not COCO results; they look like [{{"image_id": 1, "caption": "..."}}]')
        pairs = [(row["image_id"], row["caption"]) for row in rows]
    elif text.lstrip().startswith("{"):
        pairs = _json_lines(path, text)
    else:
        pairs = _run(path, text, separator)
    results = dict(pairs)
    if len(results) != len(pairs):
        raise DataError(f"{path}: {len(pairs) - len(results)} image ids stand in it twice; keep one caption an image")
    return results


def read_references(path: Path) -> dict[int | str, list[str]]:
    """{image id: its human captions} of COCO's captions JSON, or of a text file of sentences (`data.imageclef`). DataError for
    others."""
    if not read_text(path).lstrip().startswith(("{", "[")):
        return {name: list(sentences) for name, sentences in read_sentences(path)[0].items()}
    body = read_json(path)
    annotations = body.get("annotations") if isinstance(body, dict) else None
    if not isinstance(annotations, list):
        raise DataError(
            f'{path}: no "annotations" in it; give a COCO captions file, or lines of `IMAGE_ID<TAB>sentence`'
        )
    references: dict[int | str, list[str]] = {}
    for number, row in enumerate(annotations):
        if not isinstance(row, dict) or not {"image_id", "caption"} <= row.keys():
            raise DataError(f'{path}: annotations[{number}] lacks "image_id" or "caption"; give a COCO captions file')
        references.setdefault(row["image_id"], []).append(row["caption"])
    return references


def renamed(results: Mapping[int | str, str], known: Collection[int | str]) -> dict[int | str, str]:
    """The results under the ids that `known` has for them: 391895, `000000391895` and `000000391895.jpg` are one image.
    Others stay. DataError where two results are of one image."""
    names = {_plain(name): name for name in known}
    found: dict[int | str, str] = {}
    for name, caption in results.items():
        own = name if name in known else names.get(_plain(name), name)
        if own in found:
            raise DataError(f"two captions are of image {own!r}, one of them under the id {name!r}; keep one")
        found[own] = caption
    return found


def _plain(name: int | str) -> str:
    text = str(name)
    suffix = Path(text).suffix
    text = text.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else text
    return text.lstrip("0") if text.isdigit() else text


def _one_line(caption: str, separator: str) -> str:
    """The caption without line ends and without the separator, each run of blanks one blank."""
    return " ".join(caption.replace(separator, " ").split())


def _json_lines(path: Path, text: str) -> list[tuple[Any, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pairs.append((row["image_id"], row["caption"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}: line {number} is not {{"image_id": ..., "caption": ...}}, as pycap caption writes it'
            ) from error
    return pairs


def _run(path: Path, text: str, separator: str | None) -> list[tuple[str, str]]:
    between = TAB if TAB in text else " "
    if separator is not None:
        between = check_separator(separator)
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        name, found, caption = line.partition(between)
        if not line.strip():
            continue
        if not found or not name.strip():
            raise DataError(
                f"{path}: line {number} is not IMAGE_ID{between!r}CAPTION, as in a run of ImageCLEF: {line.strip()[:60]!r}; "
                "name what stands between them with --separator"
            )
        pairs.append((name.strip(), caption.strip()))
    mark, *others = {caption.partition(" ")[0] for _, caption in pairs} or {""}
    if separator is None and len(pairs) > 1 and not others and re.fullmatch(r"[^\w'\"]+", mark):
        raise DataError(
            f"{path}: every caption begins with {mark!r}, which looks like what stands between id and caption; "
            f"say so with --separator '{mark}'"
        )
    return pairs
