"""Files of captions that a model made, read: JSON Lines, COCO's results, CSV, and ImageCLEF's runs (`forms.py` writes them)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pycap.data import DataError
from pycap.data.forms import CSV_COLUMNS, TAB, check_separator
from pycap.data.imageclef import read_sentences
from pycap.data.layout import IMAGE_SUFFIXES, brief, is_id, read_json, read_text


def read_results(path: Path, separator: str | None = None) -> dict[int | str, str]:
    """{image id: caption} of a file of any of `forms.FILE_FORMATS`, told apart by how it begins.

    separator: of an ImageCLEF run; None: a tab if there is one in the file, else the first blank of each line.
    DataError: not readable, a row without id or caption, an image with two captions.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows = read_json(path)
        if not all(map(_is_row, rows)):
            raise DataError(f'{path}: not COCO results; they look like [{{"image_id": 1, "caption": "..."}}]')
        pairs = [(row["image_id"], row["caption"]) for row in rows]
    elif text.lstrip().startswith("{"):
        pairs = _json_lines(path, text)
    elif text.startswith(",".join(CSV_COLUMNS)):
        pairs = _table(path, text)
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
        if not _is_row(row):
            raise DataError(
                f'{path}: annotations[{number}] lacks "image_id" (a number or a name) or "caption"; give a COCO captions file'
            )
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
            ids = f"image {brief(repr(own))}, one of them under the id {brief(repr(name))}"
            raise DataError(f"two captions are of {ids}; keep one")
        found[own] = caption
    return found


def _is_row(row: Any) -> bool:
    """Whether parsed JSON says of one image what was said of it."""
    return isinstance(row, dict) and is_id(row.get("image_id")) and isinstance(row.get("caption"), str)


def _table(path: Path, text: str) -> list[tuple[str, str]]:
    pairs = []
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in rows:
            if row["image_id"] is None or row["caption"] is None:
                raise DataError(
                    f"{path}: line {rows.line_num} has fewer columns than the first ({','.join(CSV_COLUMNS)})"
                )
            pairs.append((row["image_id"], row["caption"]))
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num} is no CSV ({error}); write the file again") from error
    return pairs


def _plain(name: int | str) -> str:
    text = str(name)
    suffix = Path(text).suffix
    text = text.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else text
    return text.lstrip("0") if text.isdigit() else text


def _json_lines(path: Path, text: str) -> list[tuple[Any, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not _is_row(row):
            raise DataError(
                f'{path}: line {number} is not {{"image_id": ..., "caption": ...}}, as pycap caption writes it'
            )
        pairs.append((row["image_id"], row["caption"]))
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
