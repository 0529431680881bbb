"""The pages as a browser shows them: on narrow and wide screens, light and dark, on paper, and to who hears them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pycap import pages
from tests.pages.made import paper_page, samples_page
from tests.web import looks

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser
WIDTHS = (360, 768, 1920)
GROUND = "return getComputedStyle(document.body).backgroundColor"
FOCUSED = """
const focused = document.activeElement, style = getComputedStyle(focused);
return [focused.localName, style.outlineWidth, style.outlineStyle];
"""


@pytest.fixture(params=[samples_page, paper_page])
def made(request: pytest.FixtureRequest, tmp_path: Path, browser: Chrome) -> Chrome:
    """The browser with a page that is a file."""
    make: Callable[[Path], Path] = request.param
    browser.get(make(tmp_path).as_uri())
    return browser


def broken(browser: Chrome, css: str) -> None:
    """Add a rule to the page, to see that its fault is found."""
    browser.execute_script("document.querySelector('style').append(arguments[0])", css)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off(made: Chrome, width: int) -> None:
    from tests.web.chromium import screen

    screen(made, width, 800)
    assert looks.outside(made) == []
    broken(made, "h1 { white-space: nowrap; width: 200vw }")
    assert any(line.startswith("H1") for line in looks.outside(made))


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read(made: Chrome, dark: bool) -> None:
    from tests.web.chromium import screen

    screen(made, 1280, 800, dark=dark)
    assert looks.unreadable(made) == []
    broken(made, "p { color: #808080 }")
    assert looks.unreadable(made)


def test_the_reader_s_scheme_is_followed(made: Chrome) -> None:
    from tests.web.chromium import screen

    seen = []
    for dark in (False, True, False):
        screen(made, 1280, 800, dark=dark)
        seen.append(made.execute_script(GROUND))
    assert seen == ["rgb(245, 245, 245)", "rgb(21, 21, 21)", "rgb(245, 245, 245)"]


def test_who_hears_the_page_is_told_what_is_on_it(made: Chrome) -> None:
    assert looks.unnamed(made) == []
    pictures = looks.named(made, "image")
    assert len(pictures) == made.execute_script("return document.images.length") > 0
    assert all(".jpg: " in name for name in pictures)
    made.execute_script("document.images[0].removeAttribute('alt'); document.images[1].alt = ' '")
    made.execute_script("document.body.append(document.createElement('button'))")
    assert sorted(line.split()[0] for line in looks.unnamed(made)) == ["button", "image", "image"]


def test_pictures_are_shown(made: Chrome) -> None:
    shown = made.execute_script("return [...document.images].map(each => each.complete && each.naturalWidth)")
    assert shown and all(shown)


def test_a_page_is_printed_light_and_whole(made: Chrome) -> None:
    from tests.web.chromium import screen

    screen(made, 794, 1123, dark=True)  # A4 at 96 dots an inch
    made.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert made.execute_script(GROUND) == "rgb(255, 255, 255)"
    assert looks.unreadable(made) == []
    assert made.execute_script("return document.documentElement.scrollWidth") <= 794
    made.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_focused_control_shows_it(browser: Chrome, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        pages.document("A page", "<button>one</button> <a href='#'>two</a> <input aria-label='three'>")
    )
    browser.get((tmp_path / "a.html").as_uri())
    for tag in ("button", "a", "input"):
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "key": "Tab", "code": "Tab"})
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyUp", "key": "Tab", "code": "Tab"})
        assert browser.execute_script(FOCUSED) == [tag, "3px", "solid"]
