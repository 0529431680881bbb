"""The page of `pycap select`, all but deciding: grid, help, touch, target, the end, missing images, how it looks and sounds."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.web import looks
from tests.web.picking import Page, Select, drawn, rows_of

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser
ASKED = "return performance.getEntriesByType('resource').map((entry) => entry.name.replace(location.origin, ''))"
FOCUSED = "return document.activeElement.id"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 pairs to pick, which no test decides."""
    folder = tmp_path_factory.mktemp("many")
    drawn(folder, 150)
    return folder


@pytest.fixture
def page(browser: Chrome, many: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, opened, of 150 pairs, or of as many as the test says; 4 are wanted."""
    lines = (many / "captions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "captions.jsonl").write_text("".join(lines[: getattr(request, "param", None)]))
    (tmp_path / "images").mkdir()
    for image in (many / "images").iterdir():
        (tmp_path / "images" / image.name).hardlink_to(image)
    select = Select(tmp_path, "--target", "4")
    try:
        yield Page(browser, select).open()
        browser.get("about:blank")  # it is not to ask for a server that is gone
    finally:
        select.end(signal.SIGTERM)


def decided(page: Page) -> list[tuple[str, str]]:
    return [(Path(row["file_name"]).name, row["decision"]) for row in page.saved()]


def cells(page: Page) -> list[str]:
    """The cells' texts."""
    return list(page.run("return [...document.querySelectorAll('#cells button')].map((cell) => cell.innerText)"))


def at(page: Page) -> int:
    """The position of the pair whose cell has the focus, or -1."""
    return int(page.run("return document.activeElement.dataset.position ?? -1"))


def test_the_grid_shows_all_and_opens_one_to_decide_it_again(page: Page) -> None:
    page.type("ax a")
    page.saved()
    page.type("g")
    page.until(lambda: at(page) == 0)
    assert [cell.splitlines()[0] for cell in cells(page)[:4]] == ["✓ accepted", "✗ rejected", "↷ skipped", "✓ accepted"]
    assert len(cells(page)) == 60 and "accepted" not in cells(page)[4]
    assert page.text("show").split() == ["All", "150", "Accepted", "2", "Rejected", "1", "Skipped", "1", "Open", "146"]
    page.type("ax2e")  # keys of a pair in hand: there is none
    page.type("→⏎")
    page.until(lambda: page.name == "0001.png")
    assert page.text("before") == "rejected"
    page.type("⎋")  # left as it is
    page.until(lambda: at(page) == 1)
    page.type("⏎")
    page.until(lambda: page.name == "0001.png")
    page.type("3a")
    page.until(lambda: at(page) == 1 and cells(page)[1].startswith("✓ accepted"))
    page.type("g")
    page.until(lambda: page.name == "0004.png")
    page.type("z")
    assert page.name == "0001.png"
    page.until(lambda: page.text("before") == "rejected")
    page.type("⎋")
    assert page.name == "0004.png"
    wanted = [("0000.png", "accept"), ("0001.png", "reject"), ("0002.png", "skip"), ("0003.png", "accept")]
    assert decided(page) == [*wanted, ("0001.png", "accept"), ("0001.png", "undo")]
    assert page.saved()[4]["rank"] == 3


def test_the_grid_is_turned_by_keys(page: Page) -> None:
    page.type("g")
    page.until(lambda: at(page) == 0)
    columns = page.run(
        "return getComputedStyle(document.getElementById('cells')).gridTemplateColumns.split(' ').length"
    )
    for keys, place in (("↓", columns), ("→", columns + 1), ("↑", 1), ("←←", 0)):
        page.type(keys)
        assert at(page) == place, keys
    page.run("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'End', bubbles: true}))")
    assert at(page) == 59
    page.type("→")
    page.until(lambda: at(page) == 60)
    assert page.run("return document.getElementById('page').value") == "2"
    page.type("←")
    page.until(lambda: at(page) == 59)
    for key, place in (("PageDown", 119), ("PageDown", 149), ("PageDown", 149), ("PageUp", 89)):
        page.run(f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}))")
        page.until(lambda place=place: at(page) == place)
    page.run("const page = document.getElementById('page'); page.focus(); page.value = 'x'")
    page.type("⏎")
    page.until(lambda: page.run("return document.getElementById('page').value") == "1")
    page.run("document.getElementById('page').value = 99")
    page.type("⏎")
    page.until(lambda: page.run("return document.getElementById('page').value") == "3")
    assert len(cells(page)) == 30 and page.run("return document.getElementById('later').disabled")


def test_the_grid_by_kind(page: Page) -> None:
    page.type("axx")
    page.saved()
    page.click("#to-grid")
    for kind, count in (("reject", 2), ("accept", 1), ("skip", 0), ("open", 60), ("reject", 2)):
        page.click(f"#show [data-kind={kind}]")
        page.until(
            lambda kind=kind: page.run(f"return document.querySelector('[data-kind={kind}]').ariaPressed") == "true"
        )
        assert len(cells(page)) == count and page.seen("nothing") is (count == 0)
    page.click("#cells li:nth-child(2) button")
    page.until(lambda: page.name == "0002.png")
    page.click("#accept")
    page.until(lambda: len(cells(page)) == 1)  # it is no longer of those
    assert decided(page)[-1] == ("0002.png", "accept")


def test_of_many_thumbnails_only_those_near_are_loaded(page: Page) -> None:
    from tests.web.chromium import screen

    screen(page.browser, 360, 640)  # thirty rows; a browser loads a few below those in sight
    page.type("g")
    page.until(lambda: len(cells(page)) == 60)
    page.until(lambda: page.run("return document.querySelector('#cells img').naturalWidth") > 0)
    images = page.run(
        "return [...document.querySelectorAll('#cells img')].map((image) => [image.loading, image.complete])"
    )
    assert {loading for loading, _ in images} == {"lazy"} and images[-1] == ["lazy", False]
    page.run("document.querySelector('#cells li:last-child').scrollIntoView()")
    page.until(lambda: page.run("return document.querySelector('#cells li:last-child img').naturalWidth") > 0)


def test_the_next_ten_images_are_loaded_ahead(page: Page) -> None:
    def images() -> set[str]:
        return {name for name in page.run(ASKED) if name.startswith("/image/")}

    page.until(lambda: len(images()) >= 11)
    assert images() == {f"/image/{position}" for position in range(11)}
    page.type("a")
    page.until(lambda: "/image/11" in images())
    assert len(images()) == 12


def test_help_has_the_focus_and_gives_it_back(page: Page) -> None:
    page.run("document.getElementById('to-help').focus()")
    page.type("⏎")
    assert page.run("return document.getElementById('help').open") and page.run(FOCUSED) == "close-help"
    for _ in range(4):
        page.type("⇥")
        assert page.run("return document.activeElement.closest('#help, body').id || 'body'") in ("help", "body")
        assert page.run("return document.activeElement.matches('body, #help *')")
    page.type("axz eg1→")
    assert page.name == "0000.png" and page.seen("one")
    page.type("⎋")
    assert not page.run("return document.getElementById('help').open") and page.run(FOCUSED) == "to-help"
    page.type("??")
    assert not page.run("return document.getElementById('help').open")
    assert decided(page) == []


def test_a_button_clicked_does_not_take_the_next_space(page: Page) -> None:
    page.click("#accept")
    page.type(" ")
    page.run("document.getElementById('reject').focus()")  # reached by the Tab key, it does
    page.type(" ⏎")
    assert [decision for _, decision in decided(page)] == ["accept", "skip", "reject", "reject"]


def swipe(page: Page, dx: int, dy: int) -> str:
    """A finger on the image goes so far, and is let go; what stood over the image before that."""

    def touch(kind: str, *points: tuple[float, float]) -> None:
        touched = [{"x": x, "y": y} for x, y in points]
        page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})

    box = rectangle(page, "stage")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch("touchStart", (x, y))
    for part in (0.3, 0.7, 1.0):
        touch("touchMove", (x + part * dx, y + part * dy))
    meant = page.text("swiped")
    touch("touchEnd")
    return meant


def rectangle(page: Page, element: str) -> dict[str, float]:
    return dict(page.run("return document.getElementById(arguments[0]).getBoundingClientRect().toJSON()", element))


def test_a_touch_screen(page: Page) -> None:
    from tests.web.chromium import screen

    screen(page.browser, 360, 740, touch=True)
    page.open()
    said = [swipe(page, *way) for way in ((120, 10), (-120, -30), (10, -120), (40, 0), (0, 120), (-30, -30))]
    assert said == ["Accept", "Reject", "Skip", "", "", ""]
    assert decided(page) == [("0000.png", "accept"), ("0001.png", "reject"), ("0002.png", "skip")]
    for button in ("accept", "skip", "reject"):
        box = rectangle(page, button)
        assert box["height"] >= 44 and box["width"] >= 44 and box["bottom"] <= 740
        page.click(f"#{button}")
    assert [decision for _, decision in decided(page)[3:]] == ["accept", "skip", "reject"]
    assert page.run("return document.getElementById('picture').style.transform") == ""


def test_the_target_is_told_with_what_trains(page: Page) -> None:
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.type("aaa")
    page.saved()
    assert not page.seen("reached")
    page.type("a")
    page.until(lambda: page.seen("reached"))
    assert "4 pairs accepted" in page.text("reached-what")
    command = page.text("command")
    assert command.startswith("pycap train --stage selected --picks")
    page.click("#copy")
    page.until(lambda: page.text("said") == "Copied")
    assert page.run("return navigator.clipboard.readText()") == command
    page.click("#go-on")
    assert not page.seen("reached")
    page.type("a")
    page.saved()
    assert not page.seen("reached") and page.text("count").startswith("5 / 4")
    page.type("zzz")
    page.type("aa")
    page.until(lambda: page.seen("reached"))  # there once more


@pytest.mark.parametrize("page", [5], indirect=True)
def test_the_end_of_the_list(page: Page) -> None:
    page.type("a xx ")
    page.until(lambda: page.seen("end"))
    assert page.text("end-what") == "Of 5 pairs: 1 accepted, 2 rejected, 2 skipped."
    page.type("axe1 ")  # there is no pair in hand
    page.click("#again")
    page.until(lambda: page.name == "0001.png")
    assert page.text("before") == "skipped"
    page.type(" ")
    page.until(lambda: page.name == "0004.png")
    page.type("a")
    page.until(lambda: page.seen("end"))
    page.type("z")
    page.until(lambda: page.name == "0004.png")
    page.type("x")
    page.until(lambda: page.seen("end"))
    assert page.text("end-what") == "Of 5 pairs: 1 accepted, 3 rejected, 1 skipped."
    page.open()
    page.click("#again")
    page.until(lambda: page.name == "0001.png")
    page.type("a")
    page.until(lambda: page.seen("end") and not page.seen("again"))
    wanted = ["accept", "skip", "reject", "reject", "skip", "accept", "undo", "reject", "accept"]
    assert [decision for _, decision in decided(page)] == wanted


def test_an_image_that_is_gone_is_shown_as_such_and_can_be_rejected(page: Page, expected: list[str]) -> None:
    expected.append("image/1[25].*status of 4")
    (page.select.folder / "images" / "0012.png").unlink()
    (page.select.folder / "images" / "0015.png").unlink()
    (page.select.folder / "images" / "0015.png").write_bytes(b"no image")
    page.type("aaaaaaaaaaaa")
    page.until(lambda: page.run("return document.querySelector('#picture img.missing')?.alt.endsWith('(0012.png)')"))
    page.type("xaax")
    wanted = [("0012.png", "reject"), ("0013.png", "accept"), ("0014.png", "accept"), ("0015.png", "reject")]
    assert decided(page)[12:] == wanted


def test_images_that_were_asked_for_in_vain_are_asked_for_again(page: Page, expected: list[str]) -> None:
    expected.append("net::ERR_")
    page.until(lambda: "/image/10" in page.run(ASKED))
    page.select.end(signal.SIGKILL)
    page.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', bubbles: true}))")
    page.until(lambda: page.seen("banner"))
    page.select.start()
    page.until(lambda: not page.seen("banner"))
    page.type("a" * 10)
    page.until(lambda: page.run("return document.querySelector('#picture img').naturalWidth") > 0)
    assert page.name == "0011.png"


@pytest.mark.parametrize("page", [3], indirect=True)
def test_very_long_and_strange_captions(page: Page) -> None:
    from tests.web.chromium import screen

    rows = rows_of(page.select.folder / "captions.jsonl")
    long, tags = "a_word_without_an_end_" * 40, "<img src=x onerror=alert(1)> & <b>bold</b>"
    assert rows
    page.type("e" + tags + "⏎")
    assert page.text("caption") == tags
    page.run("document.getElementById('edit').click(); document.getElementById('text').value = arguments[0]", long)
    page.type("⏎")
    assert page.text("caption") == long
    for width in (360, 1280):
        screen(page.browser, width, 740)
        assert looks.outside(page.browser) == []


def test_every_text_can_be_read_and_every_control_has_a_name(page: Page, many: Path) -> None:
    from tests.web.chromium import screen

    page.type("aaaax 2")
    page.until(lambda: page.seen("reached"))
    for view in ("", "e", "⎋g", "⏎", "⎋?"):
        page.type(view)
        page.saved()
        for dark in (False, True):
            screen(page.browser, 1280, 800, dark=dark, still=True)
            assert looks.unreadable(page.browser) == []
        assert looks.unnamed(page.browser) == []
    page.type("⎋g2")
    second = rows_of(many / "captions.jsonl")[6]["beams"][1]["caption"]
    page.until(lambda: page.name == "0006.png")
    page.type("2")
    assert looks.named(page.browser, "image") == [f"{second} (0006.png)"]


def test_nothing_is_cut_off_and_what_decides_is_in_sight(page: Page) -> None:
    from tests.web.chromium import screen

    for width, height in ((360, 640), (740, 360), (820, 1180), (1280, 800), (3840, 2160)):
        screen(page.browser, width, height, touch=width < 1000)
        for button in ("accept", "skip", "reject"):
            box = rectangle(page, button)
            assert 0 <= box["top"] and box["bottom"] <= height, (width, button)
        assert rectangle(page, "stage")["height"] >= 0.4 * height, width
        for view in ("", "e", "⎋g"):
            page.type(view)
            assert looks.faults(page.browser) == [], (width, view)
        page.type("g")


def test_who_wants_no_motion_sees_none(page: Page) -> None:
    from tests.web.chromium import screen

    moving = "return document.getAnimations().length"
    screen(page.browser, 1280, 800, still=True)
    page.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', bubbles: true}))")
    assert page.run(moving) == 0
    screen(page.browser, 1280, 800)
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', bubbles: true}));"
    assert page.run(press + moving) > 0
    page.saved()


def test_decisions_are_said_to_who_hears_the_page(page: Page) -> None:
    page.type("x")
    heard = "const said = document.getElementById('said'); return [said.getAttribute('role'), said.innerText]"
    assert page.run(heard) == ["status", "Rejected: 0000.png"]
    assert page.run("return document.getElementById('caption').getAttribute('aria-live')") == "polite"
