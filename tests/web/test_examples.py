"""The pictures that the demo page offers: drawn scenes, a folder's images, and how they are asked for."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")

from starlette.applications import Starlette

from pycap.data import DataError
from pycap.data.demo import is_true, write
from pycap.data.demo_domains import DOMAINS
from pycap.data.vocab import SPECIALS, tokenize
from pycap.web import examples
from tests.web.service import together

SCENE_WORDS = SPECIALS + tuple(tokenize("a the on background striped white blue two three triangle stars ring"))
PHOTOGRAPH_WORDS = SPECIALS + tuple(tokenize("a the on man dog white striped triangle running in blue shirt grass"))


def opened(example: examples.Example) -> Image.Image:
    return Image.open(io.BytesIO(example.content))


def test_scenes_are_drawn_the_same_each_time() -> None:
    drawn = examples.drawn()
    assert drawn == examples.drawn()
    assert len({example.content for example in drawn}) == len(drawn) == examples.COUNT
    assert all(opened(example).size == (288, 288) and len(example.content) < 30_000 for example in drawn)


def test_they_are_scenes_that_captions_can_be_written_about() -> None:
    rng = np.random.default_rng(0)
    assert all(is_true(write(scene, rng), scene) for scene in examples.SCENES)


def test_only_a_model_that_speaks_of_scenes_is_shown_some() -> None:
    assert examples.offered(None, SCENE_WORDS) == examples.drawn()
    assert examples.offered(None, PHOTOGRAPH_WORDS) == []


@pytest.mark.parametrize("name", DOMAINS)
def test_so_are_the_models_of_the_demo_domains(name: str) -> None:
    rng = np.random.default_rng(0)
    style = DOMAINS[name].style
    said = [write(scene, rng, style) for scene in examples.SCENES for _ in range(20)]
    assert examples.offered(None, [*SPECIALS, *{word for caption in said for word in tokenize(caption)}])


def test_a_folder_gives_its_first_images_as_they_are(tmp_path: Path) -> None:
    for number in range(10):
        Image.new("RGB", (20 + number, 10)).save(tmp_path / f"{9 - number}.png")
    (tmp_path / "0.png").write_bytes(b"no image")
    found = examples.offered(tmp_path, PHOTOGRAPH_WORDS)
    assert [example.name for example in found] == [f"{number}.png" for number in range(1, 9)]
    assert [example.content for example in found] == [(tmp_path / example.name).read_bytes() for example in found]
    assert {example.media_type for example in found} == {"image/png"}


def test_a_large_picture_and_one_that_browsers_do_not_show_become_small_jpegs(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "b.tiff")
    large, foreign = examples.of_folder(tmp_path)
    assert (large.name, large.media_type, opened(large).size) == ("a.png", "image/jpeg", (1024, 512))
    assert (foreign.name, foreign.media_type, opened(foreign).format) == ("b.tiff", "image/jpeg", "JPEG")


def test_a_folder_without_a_readable_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{tmp_path}: none of the images in it can be read"):
        examples.of_folder(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        examples.of_folder(tmp_path / "gone")


def test_they_are_listed_and_sent() -> None:
    drawn = examples.drawn()
    app = Starlette(routes=examples.routes(drawn))

    def get(path: str) -> httpx.Response:
        return together(app, lambda client: client.get(path))

    listed = get("/examples").json()
    assert [row["name"] for row in listed] == [example.name for example in drawn]
    for row, example in zip(listed, drawn, strict=True):
        answer = get(row["image"])
        assert (answer.content, answer.headers["content-type"]) == (example.content, "image/jpeg")
    for number in ("8", "9" * 5000, "-1", "1.0"):
        assert get(f"/examples/{number}").status_code == 404
    assert get("/examples/..%2f..%2fetc").status_code == 404
