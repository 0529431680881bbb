"""A folder of images, and what a model said of them: small, and with captions that repeat."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from pycap.picking.images import ImageFolder
from pycap.picking.results import Results

COUNT = 12
#: What is said of image n: the captions repeat, and the most probable ones are not the first.
SAID = ("a dog runs", "two dogs", "a cat sits")


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of results as `pycap caption target/ --output` writes it."""
    beams = [
        {"caption": SAID[number % 3], "logprob": -1.0 - number * 5 % 7},
        {"caption": f"number {number}", "logprob": -9.5},
    ]
    return {"image_id": f"{number:02}", "file_name": name(number), **beams[0], "beams": beams, **changes}


def name(number: int) -> str:
    """The image's file, as the results call it."""
    return f"target/{number % 2}/{number:02}.png"


def images(folder: Path, numbers: Iterable[int] = range(COUNT)) -> Path:
    """The folder `target` with these images, 8 x 6 pixels of a colour of their own."""
    for number in numbers:
        path = folder / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number, 0, 0)).save(path)
    return folder / "target"


def write(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    """A file of these rows; text stands as it is."""
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows), "utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def results(place: Path, rows: Iterable[dict[str, Any] | str] | None = None) -> Results:
    """The results of all images in a place, or these rows."""
    given = [row(number) for number in range(COUNT)] if rows is None else rows
    return Results(write(place / "captions.jsonl", given), ImageFolder(images(place)))
