"""The page of `pycap select` in a browser, with the command that serves it: what was typed is what `picks.jsonl` holds."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.web.picking import Page, Select, drawn, rows_of

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

PRESS = (
    "for (const key of arguments[0]) document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
)
DECIDES = {"a": "accept", "x": "reject", "_": "skip", "→": "accept", "←": "reject"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """36 pairs to pick."""
    drawn(tmp_path, 36)
    return tmp_path


@pytest.fixture
def page(browser: Chrome, folder: Path) -> Iterator[Page]:
    """The page, opened, of those pairs; 5 are wanted."""
    select = Select(folder, "--target", "5")
    try:
        yield Page(browser, select).open()
        for tab in browser.window_handles:  # none is to ask for a server that is gone
            browser.switch_to.window(tab)
            browser.get("about:blank")
    finally:
        select.end(signal.SIGTERM)


def decided(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(Path(row["file_name"]).name, row["decision"]) for row in rows]


def test_thirty_pairs_by_keyboard_alone(page: Page, folder: Path) -> None:
    rows = rows_of(folder / "captions.jsonl")
    keys = re.findall(r"\d*\D", "aax_→←a2ax5a3x1a→_xa4→_xaa←x3aax2_a15a→")
    page.type("".join(keys).replace("_", " "))
    expected = []
    for index, typed in enumerate(keys):
        *_, rank, key = f"1{typed}"
        beam = rows[index]["beams"][int(rank) - 1]
        expected.append((f"{index:04}.png", DECIDES[key], int(rank), beam["caption"], beam["logprob"], False))
    assert len(expected) == 30
    wanted = ("decision", "rank", "caption", "logprob", "edited")
    written = [(Path(row["file_name"]).name, *(row[key] for key in wanted)) for row in page.saved()]
    assert written == expected
    accepted, rejected, skipped = (sum(row[1] == each for row in expected) for each in ("accept", "reject", "skip"))
    assert page.text("count").split()[:3] == [str(accepted), "/", "5"]
    assert page.name == "0030.png"
    said = page.select.end(signal.SIGTERM)
    assert f"{accepted} of 5 pairs accepted, {rejected} rejected, {skipped} skipped" in said


def test_undo_takes_back_in_turn_before_and_after_a_reload(page: Page) -> None:
    page.type("axz")
    assert page.name == "0001.png"
    page.type("z")
    assert page.name == "0000.png"
    page.type("x2a ")
    page.until(lambda: page.text("said") == "Skipped: 0002.png")
    before = [("0000.png", "accept"), ("0001.png", "reject"), ("0001.png", "undo"), ("0000.png", "undo")]
    after = [("0000.png", "reject"), ("0001.png", "accept"), ("0002.png", "skip")]
    assert decided(page.saved()) == before + after
    page.open()
    assert page.name == "0003.png"
    page.type("z")
    page.until(lambda: page.name == "0002.png")
    page.type("z")
    page.until(lambda: page.name == "0001.png")
    page.type("a")
    back = [("0002.png", "undo"), ("0001.png", "undo"), ("0001.png", "accept")]
    assert decided(page.saved()) == before + after + back
    assert page.saved()[-1]["rank"] == 1
    page.type("z")
    page.saved()
    page.type("z")
    page.until(lambda: page.name == "0000.png" and page.text("accepted") == "0")
    page.type("z")
    page.until(lambda: page.text("said") == "There is nothing to undo")


def test_a_caption_is_edited_and_marked(page: Page, folder: Path) -> None:
    first, second = rows_of(folder / "captions.jsonl")[:2]
    page.type("2e")
    assert page.run("return document.activeElement.value") == first["beams"][1]["caption"]
    page.type("axz g?12 <b>A</b> & ring⏎")  # the field has them, and nothing else
    assert page.text("caption") == "axz g?12 <b>A</b> & ring"
    assert page.select.picks() == [] and page.seen("one")
    assert page.run("return document.querySelector('#caption b, #beams b')") is None
    page.type("e something else⎋")
    assert page.text("caption") == "axz g?12 <b>A</b> & ring"
    page.type("ae⌫⏎")
    assert "words" in page.text("editing") and page.name == "0001.png"
    page.type("?!⏎")
    assert "words" in page.text("editing")
    page.type("⎋x")
    one, two = page.saved()
    edited = {"decision": "accept", "rank": 2, "caption": "axz g?12 <b>A</b> & ring", "edited": True, "logprob": None}
    assert one | edited == one
    assert two | {"decision": "reject", "rank": 1, "caption": second["caption"], "edited": False} == two


def test_the_models_own_words_come_back(page: Page, folder: Path) -> None:
    first = rows_of(folder / "captions.jsonl")[0]
    page.type("e more⏎")
    assert page.text("caption") == "more"
    page.type("21")
    assert page.text("caption") == "more"  # kept, while others are looked at
    page.type("1")
    assert page.text("caption") == first["caption"]
    page.type("ee⏎")  # the same words again are no edit
    page.type("a")
    assert [(row["caption"], row["edited"]) for row in page.saved()] == [("e", True)]


def test_a_key_that_is_held_decides_once(page: Page) -> None:
    event = "new KeyboardEvent('keydown', {key: 'a', code: 'KeyA', repeat: %s, bubbles: true})"
    for repeated in ("false", "true", "true"):
        page.run(f"document.body.dispatchEvent({event % repeated})")
    assert decided(page.saved()) == [("0000.png", "accept")]


def test_keys_of_other_keyboards(page: Page) -> None:
    for key, code in (("ф", "KeyA"), ("X", "KeyX"), ("&", "Digit1"), ("Я", "KeyZ")):
        event = {"key": key, "code": code, "bubbles": True}
        page.run("document.body.dispatchEvent(new KeyboardEvent('keydown', arguments[0]))", event)
    assert [decision for _, decision in decided(page.saved())] == ["accept", "reject", "undo"]


def test_a_server_killed_amid_decisions_loses_none_and_doubles_none(page: Page, expected: list[str]) -> None:
    expected.append("net::ERR_")
    keys = "axaa xaxaxx axa"
    page.run(PRESS, keys)  # all at once: the server is killed before it has confirmed them
    page.select.end(signal.SIGKILL)
    page.until(lambda: page.seen("banner"))
    assert "The server does not answer" in page.text("banner")
    in_hand = page.name
    page.type("a x")
    assert page.name == in_hand  # nobody runs ahead unknowingly
    assert "Not taken" in page.text("said")
    page.select.start()
    page.until(lambda: not page.seen("banner"))
    wanted = [(f"{index:04}.png", DECIDES[key.replace(" ", "_")]) for index, key in enumerate(keys)]
    assert decided(page.saved()) == wanted
    page.type("a")
    assert decided(page.saved()) == [*wanted, (in_hand, "accept")]


@pytest.mark.parametrize(
    ("path", "cut"), [("/api/decide", None), ("/api/undo", None), ("/api/decide", '{"state": {"acc')]
)
def test_an_answer_that_is_lost_or_cut_short_does_nothing_twice(
    page: Page, expected: list[str], path: str, cut: str | None
) -> None:
    expected.append("api/undo.*status of 409")
    page.type("axx")
    page.saved()
    page.open()  # which decision was the latest, the page must be told
    page.run(
        """const [path, cut] = arguments, real = window.fetch;
        window.fetch = async (asked, ...rest) => {
          const answer = await real(asked, ...rest);
          if (asked !== path) return answer;
          window.fetch = real;
          if (cut === null) throw new TypeError("lost");
          return new Response(cut, {status: 200});
        };""",
        path,
        cut,
    )
    page.type("a" if path == "/api/decide" else "z")
    last = ("0003.png", "accept") if path == "/api/decide" else ("0002.png", "undo")
    page.until(lambda: not page.seen("banner"))
    assert decided(page.saved()) == [("0000.png", "accept"), ("0001.png", "reject"), ("0002.png", "reject"), last]


def test_what_is_unsaved_outlives_a_reload(page: Page) -> None:
    page.run("window.fetch = () => new Promise(() => {})")
    page.type("ax")
    assert page.text("unsaved") == "2 not saved yet"
    assert page.select.picks() == []
    page.open()
    assert decided(page.saved()) == [("0000.png", "accept"), ("0001.png", "reject")]
    page.until(lambda: page.name == "0002.png")


def test_a_disk_that_takes_nothing_is_told(page: Page, expected: list[str]) -> None:
    expected.append("status of 507")
    picks = page.select.folder / "picks.jsonl"
    picks.write_text("not ours")
    page.type("a")
    page.until(lambda: page.seen("banner"))
    assert "was changed by another program" in page.text("banner") and "1 decision is kept here" in page.text("banner")
    os.truncate(picks, 0)
    page.until(lambda: not page.seen("banner"))
    assert decided(page.saved()) == [("0000.png", "accept")]


def test_two_tabs(page: Page, expected: list[str]) -> None:
    expected.append("status of 409")
    browser, first = page.browser, page.browser.current_window_handle
    browser.switch_to.new_window("tab")
    second = browser.current_window_handle
    page.open()
    # As if both stood side by side: the second does not ask how things stand when it comes into sight.
    page.run("document.addEventListener('visibilitychange', (event) => event.stopImmediatePropagation(), true)")
    browser.switch_to.window(first)
    page.type("aax")
    page.saved()
    browser.switch_to.window(second)
    page.type("x")
    page.until(lambda: "Another tab has accepted 0000.png" in page.text("said"))
    page.type("x")  # the pair before the reader stays there, and the next one is new to both
    page.until(lambda: page.name == "0003.png")
    page.type("xa")
    wanted = [("0000.png", "accept"), ("0001.png", "accept"), ("0002.png", "reject"), ("0003.png", "reject")]
    assert decided(page.saved()) == [*wanted, ("0004.png", "accept")]
    assert page.text("accepted") == "3"
    browser.switch_to.window(first)  # the first one asks when it comes into sight
    page.until(lambda: page.name == "0005.png")
    page.type("z")
    page.until(lambda: page.name == "0002.png")  # the latest of its own decisions
    assert decided(page.saved())[-1] == ("0002.png", "undo")


def test_an_undo_right_after_a_decision_that_another_tab_had_made(page: Page, expected: list[str]) -> None:
    expected.append("status of 409")
    page.run(
        """return fetch("/api/decide", {method: "POST", headers: {"content-type": "application/json"},
          body: JSON.stringify({position: 0, decision: "accept", rank: 2})}).then((answer) => answer.status)"""
    )
    page.run(PRESS, "xz")  # at once: the undo waits while the decision is refused
    page.until(lambda: page.text("before") == "accepted")
    assert page.name == "0000.png" and page.text("caption") == page.select.picks()[0]["caption"]
    assert decided(page.saved()) == [("0000.png", "accept")]
    page.type("x")
    assert decided(page.saved()) == [("0000.png", "accept"), ("0000.png", "reject")]


def test_a_server_with_other_results_takes_no_decision_meant_for_the_old_ones(page: Page, expected: list[str]) -> None:
    expected += ["status of 409", "net::ERR_"]
    captions = page.select.folder / "captions.jsonl"
    page.select.end(signal.SIGTERM)
    captions.write_text("\n".join(captions.read_text().splitlines()[1:]))
    page.select.start()
    page.type("a")
    page.until(lambda: "Not taken" in page.text("said") and page.name == "0001.png")
    page.type("a")
    assert decided(page.saved()) == [("0001.png", "accept")]
