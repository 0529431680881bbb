"""The pictures of the pages in `docs/images/`, taken of the pages as they are, on drawn scenes. Those of samples.html and
paper.html are of the demo runs that `make run` and `make paper` leave in runs/.

    python -m tests.web.screenshots            # all of them
    python -m tests.web.screenshots select     # those whose names begin so

They are to be looked at before they are committed.
"""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from selenium.webdriver import Chrome

from tests.web.chromium import complaints, launch, screen
from tests.web.demo_page import EXAMPLES_SHOWN, opened, seen, serve, text, until
from tests.web.picking import Page, Select, drawn

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "images"
LARGEST = 150_000  # bytes

SHOWN = """
const inSight = (image) => image.checkVisibility() && image.getBoundingClientRect().top < innerHeight;
const images = [...document.images].filter(inSight);
return images.length > 0 && images.every((image) => image.naturalWidth > 0);
"""

TURN_TO = """
const heading = [...document.querySelectorAll("h2")].find((each) => arguments[0] && each.textContent.startsWith(arguments[0]));
if (heading) scrollTo(0, heading.offsetTop - 24);
"""

#: Puts the browser before what is to be seen, as long as the context lasts.
Scene = Callable[[Chrome], Iterator[None]]


@cache
def _pairs() -> TemporaryDirectory[str]:
    """A folder of pairs to pick."""
    place = TemporaryDirectory()
    drawn(Path(place.name), 36, side=720)
    return place


def _select(keys: str = "", **look: bool) -> Scene:
    """`pycap select` after some minutes of picking and these keys."""

    def scene(driver: Chrome) -> Iterator[None]:
        folder = Path(_pairs().name)
        (folder / "picks.jsonl").unlink(missing_ok=True)
        select = Select(folder, "--target", "40")
        try:
            screen(driver, *((390, 844) if look.get("touch") else (1280, 800)), **look)
            page = Page(driver, select).open()
            page.type("aaxaa aa2xaax")
            page.saved()
            select.end(signal.SIGTERM)  # the pace that is shown is that of this process, and is to be a person's
            select.start()
            for key in "aaxaa":
                time.sleep(1.3)
                page.type(key)
            page.type(keys)
            page.until(lambda: driver.execute_script(SHOWN))
            time.sleep(0.5)  # what moves comes to rest
            yield
        finally:
            select.end(signal.SIGTERM)

    return scene


def _written(file: str, height: int = 800, heading: str = "", *, dark: bool = False) -> Scene:
    """A page that a run has written, from a heading on."""

    def scene(driver: Chrome) -> Iterator[None]:
        page = ROOT / "runs" / file
        if not page.is_file():
            raise SystemExit(f"{page}: no such file; make run and make paper write the pages of runs")
        screen(driver, 1280, height, dark=dark)
        driver.get(page.as_uri())
        driver.execute_script(TURN_TO, heading)
        yield

    return scene


def _serve(*given: int, width: int = 1280, height: int = 1160, **look: bool) -> Scene:
    """`pycap serve` of a model of drawn scenes, given some of its examples; the last of them is in sight."""

    def scene(driver: Chrome) -> Iterator[None]:
        checkpoint = ROOT / "runs" / "coco" / "best"
        if not checkpoint.is_dir():
            raise SystemExit(f"{checkpoint}: no such checkpoint; make run trains it")
        screen(driver, width, height, **look)
        with serve(checkpoint) as (_, address):
            opened(driver, address)
            until(driver, lambda: driver.execute_script(EXAMPLES_SHOWN))
            for number in given:
                driver.execute_script(f"document.querySelectorAll('#example-list button')[{number}].click()")
                name = f"drawn scene {number + 1} "
                until(driver, lambda name=name: text(driver, "about-picture").startswith(name) and seen(driver, "copy"))
            driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
            time.sleep(0.5)  # small pictures appear
            yield

    return scene


SCENES: dict[str, Scene] = {
    "paper-light": _written("paper/paper.html", 1000, "Directions"),
    "samples-light": _written("coco/samples.html"),
    "samples-dark": _written("coco/samples.html", dark=True),
    "select-light": _select("5"),
    "select-dark": _select(dark=True),
    "select-grid": _select("g"),
    "select-phone": _select(touch=True),
    "serve-start": _serve(height=800),
    "serve-light": _serve(5, 4, 2, 1, 0, 3),
    "serve-dark": _serve(5, 4, 2, 1, 0, 3, dark=True),
    "serve-phone": _serve(3, width=390, height=844, touch=True),
}


def take(driver: Chrome, name: str) -> Path:
    """Take one picture, as WebP of 150 kB at most."""
    with contextmanager(SCENES[name])(driver):
        shot = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    path = FOLDER / f"{name}.webp"
    shot.save(path, quality=85, method=6)
    assert path.stat().st_size <= LARGEST, f"{path}: {path.stat().st_size:,} bytes"
    complaints(driver)
    return path


def main(names: Sequence[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as profile:
        driver = launch(Path(profile))
        try:
            for name in SCENES:
                if not names or name.startswith(tuple(names)):
                    path = take(driver, name)
                    print(f"{path}: {path.stat().st_size:,} bytes")
        finally:
            driver.quit()


if __name__ == "__main__":
    main(sys.argv[1:])
