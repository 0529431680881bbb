"""The demo page in a browser, on a real `pycap serve`: pictures come in every way, and what is shown is what the model says."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra `web` is not installed")

import pycap
from pycap.captioner import Captioner
from tests.train.conftest import _selection, data, trained
from tests.web import looks
from tests.web.demo_page import (
    EXAMPLES_SHOWN,
    SHOWN,
    check,
    choose,
    click,
    drag,
    drop,
    opened,
    seen,
    serve,
    text,
    tiles,
    until,
    wanted,
)
from tests.web.service import Held, form, listening, picture, serving

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

__all__ = ["_selection", "data", "trained"]
pytestmark = pytest.mark.browser

MOST_BYTES, MOST_PIXELS = 100_000, 1_000_000
LIMITS = ("--queue", "1", "--max-bytes", str(MOST_BYTES), "--max-pixels", str(MOST_PIXELS), "--max-beam-size", "5")
REFUSED = "Failed to load resource: the server responded with a status of {}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with names in their order: 0.jpg, 1.jpg, 2.png."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, kind in enumerate(("JPEG", "JPEG", "PNG")):
        (folder / f"{number}.{kind.lower().replace('jpeg', 'jpg')}").write_bytes(picture(number, kind))
    return folder


@pytest.fixture(scope="module")
def address(trained: Path, pictures: Path) -> Iterator[str]:
    with serve(trained, *LIMITS, "--examples", str(pictures)) as (_, found):
        yield found


@pytest.fixture(scope="module")
def captioner(trained: Path) -> Captioner:
    return pycap.load(trained)


@pytest.fixture
def page(browser: Chrome, address: str) -> Chrome:
    """The browser with the page, which has learned from the service what it takes."""
    return opened(browser, address)


# -- the ways in ------------------------------------------------------------------------------------------------------


def test_a_dropped_picture_is_captioned(page: Chrome, captioner: Captioner, pictures: Path) -> None:
    drag(page, "dragEnter", pictures / "0.jpg")
    assert seen(page, "drop")
    drag(page, "dragOver", pictures / "0.jpg")
    drag(page, "drop", pictures / "0.jpg")
    assert not seen(page, "drop")
    check(page, captioner, pictures / "0.jpg")
    assert not seen(page, "zone")
    assert page.current_url.endswith("/")  # the browser did not open the picture in the page's place


def test_a_pasted_picture_is_captioned(page: Chrome, captioner: Captioner, pictures: Path) -> None:
    page.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt());
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([bytes], "1.jpg", { type: "image/jpeg" }));
        document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        """,
        base64.b64encode((pictures / "1.jpg").read_bytes()).decode(),
    )
    check(page, captioner, pictures / "1.jpg")


def test_an_example_is_captioned(page: Chrome, captioner: Captioner, pictures: Path) -> None:
    until(page, lambda: page.execute_script("return document.querySelectorAll('#example-list button').length") == 3)
    page.find_elements("css selector", "#example-list button")[2].click()
    check(page, captioner, pictures / "2.png")


def test_several_pictures_are_captioned_one_after_another(page: Chrome, captioner: Captioner, pictures: Path) -> None:
    files = sorted(pictures.iterdir())
    choose(page, *files)
    until(page, lambda: text(page, "tally") == "3\u00a0pictures")
    assert tiles(page) == [wanted(captioner, file)[0] for file in files]
    sent = page.execute_script(
        "return performance.getEntriesByType('resource').filter(each => each.name.endsWith('/model/predict'))"
        ".map(each => [each.startTime, each.responseEnd])"
    )
    assert len(sent) == 3
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(sent))
    check(page, captioner, files[0])  # the first stays in sight
    page.find_elements("css selector", "#history button")[2].click()
    check(page, captioner, files[2])
    click(page, "clear")
    assert tiles(page) == []
    assert seen(page, "zone") and not seen(page, "result")


def test_what_is_no_picture_file_is_told(page: Chrome, pictures: Path) -> None:
    drop(page, items=[{"mimeType": "text/uri-list", "data": "https://example.org/a.jpg"}])
    assert text(page, "notice").startswith("That was no picture file.")
    drop(page, pictures)
    assert text(page, "notice").startswith("Folders are not taken here")
    page.execute_script("document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")
    assert text(page, "notice").startswith("What was pasted is no picture")
    assert tiles(page) == []


def test_of_very_many_files_the_first_are_taken(page: Chrome, tmp_path: Path, captioner: Captioner) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(61)]
    for file in files:
        file.write_bytes(picture())
    choose(page, *files)
    assert text(page, "notice").startswith("The first 60 of 61 files were taken.")
    until(page, lambda: text(page, "tally") == "60\u00a0pictures")
    assert set(tiles(page)) == {wanted(captioner, files[0])[0]}


# -- what can be done with a caption ----------------------------------------------------------------------------------


def test_another_beam_size_captions_the_picture_again(page: Chrome, captioner: Captioner, pictures: Path) -> None:
    from selenium.webdriver.support.ui import Select

    sizes = Select(page.find_element("id", "beam-size"))
    assert [option.text for option in sizes.options] == ["1", "2", "3", "4", "5"]
    choose(page, pictures / "0.jpg")
    check(page, captioner, pictures / "0.jpg")
    for size in (5, 1):
        sizes.select_by_visible_text(str(size))
        until(page, lambda size=size: len(page.execute_script(SHOWN)[1]) == size)
        check(page, captioner, pictures / "0.jpg", size)


def test_a_beam_size_chosen_while_another_one_runs_counts(
    browser: Chrome, captioner: Captioner, pictures: Path
) -> None:
    from selenium.webdriver.support.ui import Select

    with serving(captioner) as (service, app), listening(app) as (host, port):
        held = Held(service)
        opened(browser, f"http://{host}:{port}/")
        choose(browser, pictures / "0.jpg")
        assert held.busy.acquire(timeout=20)
        assert text(browser, "progress") == "Captioning…"
        Select(browser.find_element("id", "beam-size")).select_by_visible_text("1")
        held.let_go()
        check(browser, captioner, pictures / "0.jpg", 1)


def test_the_caption_and_the_command_are_copied(
    page: Chrome, captioner: Captioner, pictures: Path, address: str
) -> None:
    permissions = {"origin": address, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.execute_cdp_cmd("Browser.grantPermissions", permissions)
    pasted = "navigator.clipboard.readText().then(arguments[0])"
    choose(page, pictures / "0.jpg")
    check(page, captioner, pictures / "0.jpg")
    click(page, "copy")
    until(page, lambda: text(page, "copy") == "Copied")
    assert page.execute_async_script(pasted) == wanted(captioner, pictures / "0.jpg")[0]
    page.find_element("css selector", ".program summary").click()
    click(page, "copy-curl")
    until(page, lambda: text(page, "copy-curl") == "Copied")
    assert page.execute_async_script(pasted) == f"curl -F image=@photo.jpg -F beam_size=3 {address}model/predict"


def test_where_there_is_no_clipboard_the_caption_is_marked_and_copied(page: Chrome, pictures: Path) -> None:
    """As on a page that comes over plain HTTP from another machine."""
    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.execute_cdp_cmd("Browser.grantPermissions", permissions)
    page.execute_script(
        "window.board = navigator.clipboard; Object.defineProperty(navigator, 'clipboard', { value: undefined })"
    )
    choose(page, pictures / "0.jpg")
    until(page, lambda: seen(page, "copy"))
    click(page, "copy")
    until(page, lambda: text(page, "copy") == "Copied")
    assert page.execute_async_script("board.readText().then(arguments[0])") == text(page, "caption")
    assert page.execute_script("return String(getSelection())").lower() == text(page, "caption")


def test_the_service_s_answer_and_its_addresses_are_shown(page: Chrome, pictures: Path, address: str) -> None:
    choose(page, pictures / "0.jpg")
    until(page, lambda: seen(page, "copy"))
    page.find_element("css selector", ".program summary").click()
    answer = httpx.post(f"{address}model/predict", **form((pictures / "0.jpg").read_bytes())).json()
    shown = page.execute_script("return JSON.parse(document.getElementById('answer').textContent)")
    assert shown["predictions"] == answer["predictions"]
    told = {name.removesuffix("_ms") for name in shown["time"]} - {"total"}
    assert len(page.find_elements("css selector", "#times dd")) == len(told) + 1
    for link in page.find_elements("css selector", ".program a"):
        assert httpx.get(str(link.get_attribute("href"))).status_code == 200


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (1.0, "over 99.9 %"),
        (0.3417, "34.2 %"),
        (0.02, "2.0 %"),
        (0.001, "0.10 %"),
        (0.0003, "1 in 3,300"),
        (3e-7, "1 in 3.3 million"),
        (1.0000001e-6, "1 in 1.0 million"),
        (1.002e-9, "1 in 1.0 billion"),
        (2.5e-11, "1 in 40 billion"),
        (1.004e-15, "1 in 10¹⁵"),
        (3e-17, "1 in 10¹⁷"),
        (0.0, "under 1 in 10³⁰⁰"),
    ],
)
def test_probabilities_can_be_read(page: Chrome, probability: float, words: str) -> None:
    load = "import(arguments[0]).then(({ odds }) => arguments[2](odds(arguments[1])))"
    module = page.current_url + "static/serve_words.js"
    assert page.execute_async_script(load, module, probability).replace("\u00a0", " ") == words


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_picture(
    page: Chrome, expected: list[str], captioner: Captioner, pictures: Path, tmp_path: Path, address: str
) -> None:
    expected.append(REFUSED.format(415))
    (tmp_path / "notes.txt").write_text("no picture")
    choose(page, tmp_path / "notes.txt", pictures / "0.jpg")
    until(page, lambda: text(page, "tally") == "2\u00a0pictures")
    reason = httpx.post(f"{address}model/predict", **form(b"no picture")).json()["message"]
    assert text(page, "trouble-title") == "Not a picture that can be read"
    assert text(page, "trouble-reason") == reason
    assert reason in text(page, "spoken")
    assert text(page, "no-preview") == "This browser cannot show notes.txt"
    assert not seen(page, "picture") and not seen(page, "retry") and not seen(page, "caption")
    page.find_elements("css selector", "#history button")[1].click()
    check(page, captioner, pictures / "0.jpg")
    assert not seen(page, "trouble")


def test_a_picture_of_too_many_bytes_is_not_sent_but_a_smaller_copy_is(page: Chrome, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    choose(page, tmp_path / "noise.png")
    until(page, lambda: seen(page, "shrink"))
    assert text(page, "trouble-title") == "Too large"
    size = f"{(tmp_path / 'noise.png').stat().st_size / 1000:.3g}\u00a0KB"
    assert text(page, "trouble-reason") == f"noise.png has {size}, and this service takes up to 100\u00a0KB a picture."
    click(page, "shrink")
    until(page, lambda: seen(page, "copy"))
    assert "sent as a copy of " in text(page, "about-picture")
    assert text(page, "caption") == page.execute_script("return JSON.parse(answer.textContent).predictions[0].caption")


def test_a_picture_of_too_many_pixels(page: Chrome, expected: list[str], tmp_path: Path) -> None:
    expected.append(REFUSED.format(413))
    Image.new("RGB", (1001, 1000)).save(tmp_path / "wide.png")
    choose(page, tmp_path / "wide.png")
    until(page, lambda: seen(page, "trouble"))
    assert text(page, "trouble-title") == "Too large"
    assert "1001 x 1000 pixels" in text(page, "trouble-reason")


def test_a_file_that_is_gone_when_it_is_wanted_again(page: Chrome, expected: list[str], tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import Select

    expected.append("model/predict - Failed to load resource: net::ERR")
    (tmp_path / "a.jpg").write_bytes(picture())
    choose(page, tmp_path / "a.jpg")
    until(page, lambda: seen(page, "copy"))
    (tmp_path / "a.jpg").unlink()
    Select(page.find_element("id", "beam-size")).select_by_visible_text("1")
    until(page, lambda: seen(page, "trouble"))
    assert text(page, "trouble-title") == "The file cannot be read any more"
    assert text(page, "trouble-reason").startswith("a.jpg was moved or changed since it was chosen")
    assert not seen(page, "retry")


def test_a_busy_service_is_waited_for(
    browser: Chrome, expected: list[str], captioner: Captioner, pictures: Path
) -> None:
    expected.append(REFUSED.format(503))
    with serving(captioner, queue=1) as (service, app), listening(app) as (host, port):
        opened(browser, f"http://{host}:{port}/")
        service.admission.inside, service.admission.retry_after = 1, lambda: 50  # type: ignore[method-assign]
        choose(browser, pictures / "0.jpg")
        until(browser, lambda: seen(browser, "trouble"))
        assert text(browser, "trouble-title") == "The service is busy"
        assert text(browser, "trouble-reason") == "1 requests are in hand, the most that are taken"
        assert text(browser, "progress").startswith("Sending it again in ")
        click(browser, "stop")
        until(browser, lambda: text(browser, "trouble-title") == "Stopped")
        click(browser, "retry")
        until(browser, lambda: text(browser, "trouble-title") == "The service is busy")
        service.admission.inside = 0
        click(browser, "retry")
        check(browser, captioner, pictures / "0.jpg")
        assert not seen(browser, "trouble")


def test_it_is_sent_again_when_the_service_has_said(
    browser: Chrome, expected: list[str], captioner: Captioner, pictures: Path
) -> None:
    expected.append(REFUSED.format(503))
    with serving(captioner, queue=1) as (service, app), listening(app) as (host, port):
        opened(browser, f"http://{host}:{port}/")
        service.admission.inside, service.admission.retry_after = 1, lambda: 1  # type: ignore[method-assign]
        choose(browser, pictures / "0.jpg")
        until(browser, lambda: text(browser, "progress") == "Sending it again in 1 s")
        service.admission.inside = 0
        check(browser, captioner, pictures / "0.jpg")


def test_a_service_that_is_gone_is_told_and_waited_for(
    browser: Chrome, expected: list[str], trained: Path, captioner: Captioner, pictures: Path
) -> None:
    expected.append("net::ERR_CONNECTION_REFUSED")
    with serve(trained) as (process, address):
        opened(browser, address)
        until(browser, lambda: browser.execute_script(EXAMPLES_SHOWN))
        process.kill()
        process.wait()
        choose(browser, pictures / "0.jpg", pictures / "1.jpg")
        until(browser, lambda: text(browser, "trouble-title") == "The service does not answer")
        assert tiles(browser) == ["waiting for the service", "waiting"]
    with serve(trained, port=int(urlsplit(address).port or 0)):
        until(browser, lambda: text(browser, "tally") == "2\u00a0pictures")
        check(browser, captioner, pictures / "0.jpg")


# -- for everyone -----------------------------------------------------------------------------------------------------


def test_it_can_be_worked_by_keyboard(page: Chrome, captioner: Captioner, pictures: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    focused = "const e = document.activeElement; return [e.id || e.textContent, getComputedStyle(e).outlineStyle]"
    visited = []
    for _ in range(8):
        ActionChains(page).send_keys(Keys.TAB).perform()
        visited.append(page.execute_script(focused))
        if visited[-1][0] == "1.jpg":
            break
    assert [name for name, _ in visited] == ["beam-size", "choose", "0.jpg", "1.jpg"]
    assert {outline for _, outline in visited} == {"solid"}
    ActionChains(page).send_keys(Keys.ENTER).perform()
    check(page, captioner, pictures / "1.jpg")


@pytest.mark.parametrize(("width", "touch", "dark"), [(360, True, False), (900, False, True), (3840, False, False)])
def test_it_looks_right(
    page: Chrome, expected: list[str], pictures: Path, tmp_path: Path, width: int, touch: bool, dark: bool
) -> None:
    from tests.web.chromium import screen

    expected.append(REFUSED.format(415))
    screen(page, width, 800, touch=touch, dark=dark)
    assert seen(page, "photograph") == touch

    assert looks.faults(page) == []
    (tmp_path / f"{'a' * 60}.jpg").write_bytes(picture(5))
    (tmp_path / "b.txt").write_text("no picture")
    choose(page, *sorted(tmp_path.iterdir()))
    until(page, lambda: text(page, "tally") == "2\u00a0pictures")
    for summary in page.find_elements("css selector", "summary"):
        page.execute_script("arguments[0].parentElement.open = true", summary)
    assert looks.faults(page) == []
    page.find_elements("css selector", "#history button")[1].click()
    until(page, lambda: seen(page, "trouble"))
    assert looks.faults(page) == []


def test_it_works_below_a_path_of_a_proxy(browser: Chrome, captioner: Captioner, pictures: Path) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    with serving(captioner) as (_, app), listening(Starlette(routes=[Mount("/captions", app)])) as (host, port):
        opened(browser, f"http://{host}:{port}/captions/")
        choose(browser, pictures / "0.jpg")
        check(browser, captioner, pictures / "0.jpg")
