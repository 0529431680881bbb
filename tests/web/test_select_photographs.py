"""The page of `pycap select` over somebody's photographs: in folders of folders, with captions of one line and of many."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.web.picking import Page, Select, drawn

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser
PLACE = "holidays/2024 Zürich"


@pytest.fixture
def page(browser: Chrome, tmp_path: Path) -> Iterator[Page]:
    """40 photographs two folders down, named with their absolute paths; every other caption is long."""
    rows = drawn(tmp_path, 40)
    place = tmp_path / "images" / PLACE
    place.mkdir(parents=True)
    for index, row in enumerate(rows):
        name = row["file_name"]
        (tmp_path / "images" / name).rename(place / name)
        words = "a red ring" if index % 2 else "a red ring to the left of a small blue square and a large green disc"
        row |= {"file_name": str(place / name), "caption": words, "beams": None}
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    select = Select(tmp_path)
    try:
        yield Page(browser, select).open()
        browser.get("about:blank")  # it is not to ask for a server that is gone
    finally:
        select.end(signal.SIGTERM)


def test_an_image_goes_by_its_name_not_by_the_folders_before_it(page: Page) -> None:
    whole = str(page.select.folder / "images" / PLACE / "0000.png")
    alternative = "return document.querySelector('#picture img').alt"
    assert page.name == "0000.png" and page.run(alternative).endswith("green disc (0000.png)")
    assert page.run("return document.getElementById('name').title") == whole
    page.type("a")
    assert page.text("said") == "Accepted: 0000.png"
    assert [row["file_name"] for row in page.saved()] == [f"images/{PLACE}/0000.png"]
    page.type("z")
    assert page.text("said") == "Taken back: 0000.png"
    page.type("g")
    cell = "const cell = document.querySelector('#cells button'); return cell && [cell.title, cell.firstChild.alt.slice(-10)]"
    page.until(lambda: page.run(cell) == [whole, "(0000.png)"])


def test_what_was_written_is_there_again_after_an_undo(page: Page) -> None:
    page.type("e a read ring⏎az")
    assert page.name == "0000.png" and page.text("caption") == "a read ring"
    page.type("e a red ring⏎a")
    page.type("g")
    page.until(lambda: page.run("return document.activeElement.dataset.index === '0'"))
    page.type("⏎e a blue ring⏎a")
    page.saved()
    page.type("z")  # the first decision stands again, with its words
    assert page.text("caption") == "a red ring"
    decisions = [(row["decision"], row["caption"]) for row in page.saved()]
    read, red, blue = "a read ring", "a red ring", "a blue ring"
    assert decisions == [("accept", read), ("undo", read), ("accept", red), ("accept", blue), ("undo", blue)]


def test_pictures_of_a_row_of_the_grid_stand_at_one_height(page: Page) -> None:
    page.type("g")
    tops = "return [...document.querySelectorAll('#cells button')].map((cell) => cell.firstChild.offsetTop)"
    page.until(lambda: page.run(tops))
    assert set(page.run(tops)) == {0}


@pytest.mark.parametrize("width", [1280, 360])
def test_what_the_arrow_keys_reach_in_the_grid_is_in_sight(page: Page, width: int) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 640, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        page.type("g")
        page.until(lambda: page.run("return document.activeElement.dataset.index === '0'"))
        sight = (
            "const cell = document.activeElement.getBoundingClientRect(), bar = document.querySelector('#grid > .bar');"
            "return cell.top >= bar.getBoundingClientRect().bottom && cell.bottom <= innerHeight"
        )
        for key in "↓↓↓↓↑↑↑↑":
            page.type(key)
            assert page.run(sight), key
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_javascript_the_page_says_so(page: Page) -> None:
    browser, address = page.browser, page.browser.current_url
    for disabled in (True, False):
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": disabled})
        browser.get(address)
        assert ("needs JavaScript" in browser.find_element("tag name", "body").text) == disabled


def test_in_a_low_window_what_decides_takes_one_line(page: Page) -> None:
    heights = []
    try:
        for height in (640, 360):
            size = {"width": 740, "height": height, "deviceScaleFactor": 1, "mobile": False}
            page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            heights.append(page.run("return document.getElementById('decide').offsetHeight"))
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert heights[1] <= 0.75 * heights[0]
