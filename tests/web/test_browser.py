"""The ground that the pages' tests stand on: a page is shown, and what goes wrong in it fails the test that made it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from starlette.routing import Route

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def served(*routes: Route) -> Iterator[str]:
    """The address of an application with these routes, in a thread of this process."""
    from pycap.web import server
    from tests.web.service import listening

    with listening(server.application(routes)) as (host, port):
        yield f"http://{host}:{port}/"


def html(text: str) -> Route:
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    head = (
        "<!doctype html><title>A page</title><link rel=icon href=data:,><meta name=viewport content=width=device-width>"
    )
    return Route("/", lambda request: HTMLResponse(head + text))


def script(text: str) -> Route:
    from starlette.responses import Response
    from starlette.routing import Route

    return Route("/page.js", lambda request: Response(text, media_type="text/javascript"))


def test_a_page_is_shown_in_the_size_asked_for(browser: Chrome) -> None:
    from tests.web.chromium import screen

    with served(html("<h1>pycap</h1>")) as address:
        browser.get(address)
        assert browser.title == "A page"
        assert browser.execute_script("return [innerWidth, innerHeight]") == [1280, 800]
        screen(browser, 360, 640, touch=True, dark=True, still=True)
        queries = ("(width: 360px)", "(pointer: coarse)", "(prefers-color-scheme: dark)", "(prefers-reduced-motion)")
        assert [browser.execute_script(f"return matchMedia('{query}').matches") for query in queries] == [True] * 4


def test_a_test_finds_a_tab_without_the_last_ones_traces(browser: Chrome) -> None:
    assert browser.current_url == "about:blank"
    assert len(browser.window_handles) == 1


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("<script src=page.js></script>", "missing()", "ReferenceError: missing is not defined"),
        ("<script src=page.js type=module></script>", "throw new Error('broken')", "Uncaught Error: broken"),
        ("<script src=page.js></script>", "Promise.reject(new Error('late'))", "Uncaught Error: late"),
        ("<script src=page.js></script>", "console.error('told')", "told"),
        ("<script>1</script>", "", "Content Security Policy"),
        ("<img src=https://example.org/x.png>", "", "Content Security Policy"),
        ("<img src=nowhere.png>", "", "status of 404"),
    ],
)
def test_what_goes_wrong_in_a_page_is_a_complaint(
    browser: Chrome, expected: list[str], body: str, code: str, said: str
) -> None:
    from tests.web.chromium import complaints

    with served(html(body), script(code + "; document.title = 'ran'")) as address:
        browser.get(address)
        (complaint,) = complaints(browser)
        assert said in complaint
        browser.refresh()
        assert complaints(browser, [re.escape(said)]) == []
    expected.append(".")  # that the fixture complains too is seen below


def test_complaints_fail_the_test_that_made_them(tmp_path: Path) -> None:
    """A pytest of its own, with the fixtures of this folder, over one test whose page is broken."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "from tests.web.conftest import browser, chromium, expected\n"
        "@pytest.mark.browser\n"
        "def test_it(browser): browser.execute_script('setTimeout(() => missing()); return 1')\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert "1 passed, 1 error" in done.stdout
    assert "missing is not defined" in done.stdout
