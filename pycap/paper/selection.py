"""The selection step: which of the captions that a model gave to unlabelled images it is trained on next."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pycap.data import DataError


def most_probable(rows: Iterable[Mapping[str, Any]], count: int, not_of: Collection[str] = ()) -> list[dict[str, Any]]:
    """The `count` most probable distinct captions, each with the image that it is most probable for; best first.

    rows: with `file_name`, `caption` and `logprob` (of the whole sentence, END included). Of equally probable ones the first
    file name goes first. not_of: stems of file names that are left out, since something else is tested on them. Captions
    without a word, and images without a caption, are none. Fewer are returned where there are fewer.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (-row["logprob"], row["file_name"])):
        if row["caption"].strip() and Path(row["file_name"]).stem not in not_of:
            best.setdefault(row["caption"], row)
    return [{name: row[name] for name in ("file_name", "caption", "logprob")} for row in list(best.values())[:count]]


def require_untested(file: Path, file_names: Iterable[str], tested: Collection[str]) -> None:
    """DataError where picked pairs are of images that the tables are tested on. tested: stems of their file names."""
    leaks = sorted({name for name in file_names if Path(name).stem in tested})
    if leaks:
        raise DataError(
            f"{file}: {len(leaks)} pairs are of images of the validation set (first: {leaks[0]}), on which every row of the "
            "tables is tested; leave them out"
        )
