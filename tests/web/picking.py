"""Pairs to pick, drawn; `pycap select` over them, in a process of its own; its page in a browser, used as by a person."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycap.data.demo_grammar import write
from pycap.data.demo_scene import SETTINGS, Scene, draw, sample_scene

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_START = "from pycap.cli import main; main()"
BEAMS = 5


def drawn(folder: Path, count: int, side: int = 48) -> list[dict[str, Any]]:
    """Scenes as `images/0000.png`, ..., of `side` pixels, and the rows of `captions.jsonl`, the most probable first.

    The first of a scene's captions is true; others say the same in other words, or another colour.
    """
    (folder / "images").mkdir()
    rng = np.random.default_rng(20)
    rows = []
    for index in range(count):
        scene, name = sample_scene(rng), f"{index:04}.png"
        draw(scene, rng, side).save(folder / "images" / name)
        said = {write(scene, rng): None}
        while len(said) < BEAMS:
            said[write(scene if rng.random() < 0.5 else _recoloured(scene, rng), rng)] = None
        beams = [{"caption": caption, "logprob": -2.5 - 0.01 * index - 1.1 * rank} for rank, caption in enumerate(said)]
        rows.append({"image_id": index, "file_name": name, **beams[0], "beams": beams})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _recoloured(scene: Scene, rng: np.random.Generator) -> Scene:
    first, *others = scene.things
    colours = sorted(set(SETTINGS.colours) - {thing.colour for thing in scene.things} - {scene.background})
    return replace(scene, things=(replace(first, colour=str(rng.choice(colours))), *others))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON Lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Select:
    """`pycap select` over a folder that `drawn` has made; always at the same address, however often it is started."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self._options, self._port = folder, options, "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", _START, "select", "captions.jsonl", "--images", "images", "--no-browser"]
        self.process = subprocess.Popen(
            [*command, "--port", self._port, *self._options], cwd=self.folder, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"http://\S+:(\d+)/", line):
                self.address, self._port = found.group(), found.group(1)
                return
        raise AssertionError(f"pycap select ended with {self.process.wait()}")

    def end(self, by: signal.Signals) -> str:
        """End the process; what it had still to say."""
        self.process.send_signal(by)
        said, _ = self.process.communicate(timeout=20)
        return said

    def picks(self) -> list[dict[str, Any]]:
        """The rows of picks.jsonl."""
        return rows_of(self.folder / "picks.jsonl")


class Page:
    """The page in a tab, and the command that serves it."""

    def __init__(self, browser: Chrome, select: Select) -> None:
        self.browser, self.select = browser, select

    def open(self) -> Page:
        """Open the page, and wait until it shows a pair, or that there is none."""
        self.browser.get(self.select.address)
        self.until(lambda: self.name or self.seen("end"))
        return self

    def type(self, text: str) -> None:
        """Press these keys, one right after the other. → ← ↑ ↓ ⏎ ⎋ ⇥ ⌫ are those keys."""
        from selenium.webdriver import ActionChains, Keys

        named = {"→": Keys.ARROW_RIGHT, "←": Keys.ARROW_LEFT, "↑": Keys.ARROW_UP, "↓": Keys.ARROW_DOWN}
        named |= {"⏎": Keys.ENTER, "⎋": Keys.ESCAPE, "⇥": Keys.TAB, "⌫": Keys.BACKSPACE}
        keys = [named.get(key, key) for key in text]
        ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def click(self, selector: str) -> None:
        self.browser.find_element("css selector", selector).click()

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def text(self, element: str) -> str:
        """The text of the element with this id, as it is seen; "" where it is not."""
        return str(self.run("return document.getElementById(arguments[0]).innerText", element)).strip()

    def seen(self, element: str) -> bool:
        return bool(self.run("return document.getElementById(arguments[0]).checkVisibility()", element))

    @property
    def name(self) -> str:
        """The file name of the image in hand."""
        return self.text("name") if self.seen("one") else ""

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 15, 0.02).until(lambda _: holds())

    def saved(self) -> list[dict[str, Any]]:
        """The rows of picks.jsonl, when all that was typed is confirmed."""
        self.until(lambda: not self.text("unsaved"))
        return self.select.picks()
