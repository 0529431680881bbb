"""The pictures that the demo page offers to be clicked: drawn scenes, or a folder's first images; read once, at the start."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pycap.data import DataError
from pycap.data.demo import Scene, Thing, draw
from pycap.data.demo_grammar import WORDS
from pycap.data.images import FORMATS, ImageError, preview, viewed
from pycap.data.inputs import find
from pycap.data.items import Item
from pycap.web.refusals import number_in_path

COUNT = 8
_DRAWN_SIDE = 288  # pixels: four times the demo set's, for the eye
_LARGEST_SIDE, _LARGEST_BYTES = 1024, 300_000  # of a folder's: what is larger is offered as a smaller copy
_SHOWN_BY_BROWSERS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True)
class Example:
    """name: what the page calls it; content: the file's bytes, of `media_type`."""

    name: str
    content: bytes
    media_type: str


def _group(count: int, size: str, texture: str, colour: str, shape: str, where: str, ground: str, kind: str) -> Scene:
    return Scene((Thing(shape, colour, size, texture),), count, where, None, ground, kind)


#: One to three things of a kind, everywhere in the frame, and two that differ.
SCENES = (
    _group(3, "small", "solid", "red", "star", "top", "blue", "plain"),
    _group(1, "large", "striped", "yellow", "ring", "centre", "black", "plain"),
    _group(2, "large", "solid", "blue", "circle", "left", "white", "checked"),
    Scene(
        (Thing("triangle", "purple", "large", "solid"), Thing("square", "yellow", "small", "solid")),
        count=1,
        position=None,
        relation="left",
        background="green",
        background_texture="plain",
    ),
    _group(3, "large", "solid", "white", "triangle", "bottom", "grey", "plain"),
    _group(2, "large", "striped", "pink", "square", "right", "grey", "checked"),
    _group(1, "small", "solid", "green", "cross", "bottom", "white", "plain"),
    _group(3, "large", "solid", "red", "circle", "centre", "blue", "plain"),
)


def offered(folder: str | Path | None, words: Iterable[str]) -> list[Example]:
    """A folder's first images; without one, drawn scenes where the model has learned to speak of them, else none.

    words: the model's vocabulary. A model of photographs has nothing to say of coloured shapes. DataError as of `of_folder`.
    """
    if folder is not None:
        return of_folder(folder)
    return drawn() if _speaks_of_scenes(words) else []


def _speaks_of_scenes(words: Iterable[str]) -> bool:
    """Whether most of a vocabulary's words, and some that photographs seldom ask for, are the demo set's."""
    spoken = set(words)
    phrases = " ".join(phrase for kind in WORDS.values() for said in kind.values() for phrase in said)
    return {"striped", "triangle"} <= spoken and len(spoken & set(phrases.split())) > len(spoken) / 2


def drawn(scenes: Sequence[Scene] = SCENES) -> list[Example]:
    """Pictures of the demo set's scenes: the same bytes whenever they are drawn."""
    pictures = [draw(scene, np.random.default_rng(number), _DRAWN_SIDE) for number, scene in enumerate(scenes)]
    return [Example(f"drawn scene {n}", viewed(picture), "image/jpeg") for n, picture in enumerate(pictures, 1)]


def of_folder(folder: str | Path, count: int = COUNT) -> list[Example]:
    """The first images below a folder that can be read; DataError where there is none.

    Those that a browser shows, and that are small enough to send to a page, as they are; of others, a smaller JPEG.
    """
    examples: list[Example] = []
    for reference in find([folder]).references():
        try:
            examples.append(_example(reference.item()))
        except ImageError:
            continue
        if len(examples) == count:
            break
    if not examples:
        raise DataError(f"{folder}: none of the images in it can be read; name another folder with --examples")
    return examples


def _example(item: Item) -> Example:
    """ImageError where there is no image to show."""
    if isinstance(item.source, np.ndarray):
        raise ImageError(item.name, "features, of which there is no picture")
    if isinstance(item.source, ImageError):
        raise item.source
    small = preview(item.source, _LARGEST_SIDE, item.name)
    content = item.source if isinstance(item.source, bytes) else Path(item.source).read_bytes()
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        as_it_is = image.format in _SHOWN_BY_BROWSERS and len(content) <= _LARGEST_BYTES
        media_type = _SHOWN_BY_BROWSERS[image.format or ""] if as_it_is else "image/jpeg"
    return Example(Path(item.name).name, content if as_it_is else small, media_type)


def routes(examples: Sequence[Example]) -> list[Route]:
    """`GET /examples`, a JSON list of `{"name", "image"}`, and the images."""
    listed = [{"name": example.name, "image": f"/examples/{number}"} for number, example in enumerate(examples)]

    async def listing(request: Request) -> Response:
        return JSONResponse(listed)

    async def image(request: Request) -> Response:
        number = number_in_path(request, "number")
        if number >= len(examples):
            raise HTTPException(404, f"example {number}: there are {len(examples)}, counted from 0")
        return Response(examples[number].content, media_type=examples[number].media_type)

    return [Route("/examples", listing), Route("/examples/{number}", image)]
