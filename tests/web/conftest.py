"""A browser for the tests of the pages: one Chromium a module, a fresh tab a test, and no error in its console.

A test that asks for `browser` carries the marker `browser`. Errors that it provokes on purpose, it announces:
`expected.append("status of 409")`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The browser itself; a test uses `browser`."""
    from tests.web.chromium import launch  # needs Selenium, without which the tests are skipped

    driver = launch(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def expected() -> list[str]:
    """Regular expressions of errors in the console that this test provokes on purpose."""
    return []


@pytest.fixture
def browser(chromium: Chrome, expected: list[str]) -> Iterator[Chrome]:
    """The browser with one new, empty tab of 1280 x 800. What its console calls an error fails the test."""
    from tests.web.chromium import complaints, screen

    tab = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    fresh = chromium.current_window_handle
    chromium.switch_to.window(tab)
    chromium.close()
    chromium.switch_to.window(fresh)
    screen(chromium, 1280, 800)
    complaints(chromium)
    yield chromium
    for other in chromium.window_handles:  # the test may have opened more tabs
        if other != fresh:
            chromium.switch_to.window(other)
            chromium.close()
    chromium.switch_to.window(fresh)
    said = complaints(chromium, expected)
    assert not said, "the browser's console: " + "; ".join(said)
