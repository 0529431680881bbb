"""The demo page as tests work it: a process of `pycap serve`, pictures given in every way, what the page then shows."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycap.captioner import Captioner

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# What the page shows: the caption, and each caption of the search with its probability in full.
SHOWN = """
return [document.getElementById("caption").textContent,
        Array.from(document.querySelectorAll("#predictions li"),
                   row => [row.children[0].textContent, row.children[1].title.split(" ")[1]])];
"""
EXAMPLES_SHOWN = """
const shown = Array.from(document.querySelectorAll("#example-list img"));
return shown.length && shown.every(image => image.complete);
"""


@contextmanager
def serve(checkpoint: Path, *options: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of `pycap serve`, and the page's address."""
    program = [sys.executable, "-c", "import sys; from pycap.cli import main; sys.exit(main())"]
    command = [*program, "serve", str(checkpoint), "--port", str(port), "--threads", "1", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def opened(browser: Chrome, address: str) -> Chrome:
    browser.get(address)
    until(browser, lambda: ":" in text(browser, "model"))
    return browser


def until(browser: Chrome, true: Callable[[], Any]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20, 0.02).until(lambda _: true())


def text(browser: Chrome, name: str) -> str:
    """Of the element of that id, also where it is not seen."""
    return str(browser.execute_script("return document.getElementById(arguments[0]).textContent", name))


def seen(browser: Chrome, name: str) -> bool:
    return bool(browser.execute_script("return document.getElementById(arguments[0]).checkVisibility()", name))


def click(browser: Chrome, name: str) -> None:
    browser.find_element("id", name).click()


def choose(browser: Chrome, *files: Path) -> None:
    """As a person does in the dialog that the button opens."""
    browser.find_element("id", "file").send_keys("\n".join(map(str, files)))


def drag(browser: Chrome, kind: str, *files: Path, items: Sequence[dict[str, str]] = ()) -> None:
    """dragEnter, dragOver, drop: over the page's middle."""
    dragged = {"items": list(items), "files": [str(file) for file in files], "dragOperationsMask": 1}
    browser.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 640, "y": 400, "data": dragged})


def drop(browser: Chrome, *files: Path, **other: Any) -> None:
    for kind in ("dragEnter", "dragOver", "drop"):
        drag(browser, kind, *files, **other)


def tiles(browser: Chrome) -> list[str]:
    """What stands under the pictures of this session, the newest first."""
    script = "return Array.from(document.querySelectorAll('#history .words'), each => each.textContent)"
    return list(browser.execute_script(script))


def wanted(captioner: Captioner, file: Path, beam_size: int = 3) -> list[Any]:
    """What the page must show of a picture."""
    (caption,) = captioner.caption(file, beam_size=beam_size)
    rows = [[said, f"{math.exp(logprob):.3g}"] for said, logprob in caption.beams]
    return [caption.text, rows]


def check(browser: Chrome, captioner: Captioner, file: Path, beam_size: int = 3) -> None:
    """The page comes to show what the captioner says of a picture."""
    until(browser, lambda: seen(browser, "copy"))
    caption, rows = browser.execute_script(SHOWN)
    right, right_rows = wanted(captioner, file, beam_size)
    assert caption == text(browser, "spoken") == right
    assert [said for said, _ in rows] == [said for said, _ in right_rows]
    assert [float(shown) for _, shown in rows] == [float(exact) for _, exact in right_rows]
    assert f"{file.name} ·" in text(browser, "about-picture")
    assert (
        browser.execute_script("const p = document.getElementById('picture'); return p.complete && p.naturalWidth") > 0
    )
