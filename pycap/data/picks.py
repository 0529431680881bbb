"""Picked pairs: captions of a model that a person found good, as JSON Lines, to be trained on.

A line is an object with at least `file_name`, the image's path, and `caption`; other keys are left alone, so that rows of
`pycap caption --output` are rows of picks too. A path that is not absolute starts at the picks file's folder, or else at
the data folder. Rows with the same image are its several captions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pycap.data import Problem
from pycap.data.layout import Entry, Listed, Listing, read_text
from pycap.data.vocab import has_words


def listed(file: Path, root: Path) -> Listed:
    """The pairs of a picks file, an entry an image, in the order of their first rows; ids are the paths as the file has
    them.

    root: where relative paths may start besides the file's folder. Rows that cannot be used are problems, with their line
    and the reason. DataError when the file cannot be read.
    """
    places = [file.parent, root]
    listing = Listing()
    captions: dict[Path, list[str]] = {}
    names: dict[Path, str] = {}
    problems: list[Problem] = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        name, caption, reason = _row(line)
        if not reason:
            path = next((place / name for place in places if listing.has(place / name)), None)
            if path is None:
                tried = ", ".join(dict.fromkeys(str(place / name) for place in places))
                reason = f"no image file {name} (looked for {tried})"
            elif caption in captions.setdefault(path, []):
                reason = f"{name} has the caption {caption!r} twice; it is used once"
            else:
                captions[path].append(caption)
                names.setdefault(path, name)
        if reason:
            problems.append({"file": file.name, "line": number, "reason": f"line {number}: {reason}"})
    entries = [Entry(names[path], names[path], path, captions[path]) for path in captions]
    return Listed(entries, f"the pairs of {file}", problems)


def _row(line: str) -> tuple[str, str, str]:
    """(file name, caption, what is wrong with the row, or nothing)."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        return "", "", f"not JSON ({error})"
    if not isinstance(row, dict):
        return "", "", f"a {type(row).__name__}, not an object"
    name, caption = row.get("file_name"), row.get("caption")
    if not isinstance(name, str) or not name.strip():
        return "", "", f'"file_name" is {name!r}, not a path'
    if not isinstance(caption, str) or not has_words(caption):
        return "", "", f'the "caption" of {name} is {caption!r}, which has no words'
    return name, " ".join(caption.split()), ""
