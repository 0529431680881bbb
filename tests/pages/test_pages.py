"""The served pages are valid; samples.html and paper.html need nothing else, whatever the texts hold; the parts of both."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from pycap import pages
from pycap.pages import badge, facts, picture, table
from pycap.training.samples import likelihood
from tests.pages.made import LONG, SCORES, paper_page, samples_page
from tests.pages.validity import problems

STATIC = Path(str(files("pycap.web").joinpath("static")))
HEAD = '<!doctype html><html lang="en"><meta name="viewport" content="x"><title>t</title>'


@pytest.fixture(params=[samples_page, paper_page])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    make: Callable[[Path], Path] = request.param
    return make(tmp_path).read_text("utf-8")


def test_a_page_is_valid(made: str) -> None:
    assert problems(made + "\n") == []


@pytest.mark.parametrize("name", sorted(path.name for path in STATIC.glob("*.html")))
def test_a_served_page_is_valid(name: str) -> None:
    assert problems((STATIC / name).read_text("utf-8"), served=True) == []


def test_a_page_needs_nothing_else(made: str) -> None:
    assert made.count(pages.stylesheet()) == 1 and made.count("<style>") == 1
    assert not re.search(r'\b(?:src|href)="(?!data:image/jpeg;base64,)', made)
    assert "url(" not in made and "@import" not in made and "<script" not in made
    assert "default-src 'none'" in made  # and a browser holds it to that


def test_texts_are_text(made: str) -> None:
    """A caption with markup and quotation marks stands on the page, and in alt, as it was written."""
    assert "<b>markup" not in made and html.escape(LONG) in made
    alts = [html.unescape(alt) for alt in re.findall(r'alt="([^"]*)"', made) if "very_long" in alt]
    assert alts and all(alt.endswith(f".jpg: {LONG}") for alt in alts)


def test_no_rule_of_the_look_stands_elsewhere(made: str) -> None:
    body = made.split("</head>")[1]
    assert "style=" not in body and "<style" not in body


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("<main><h1>a</h1></main></html>", ""),
        ("<main><h1>a</h1></main></html>x<p>", "<p> is never closed"),
        ("<main><h1>a</h1><p></main></html>", "</main> where p is open"),
        ("<main><h1 id=a>a</h1><i id=a></i></main></html>", "id a stands twice"),
        ("<main><h1>a</h1><img src=x></main></html>", "no alt: {'src': 'x'}"),
        ("<main><h1>a</h1><h3>b</h3></main></html>", "h3 follows h1"),
        ("<main><h1>a</h1><label for=b>c</label></main></html>", "for: no b"),
        ("<main><h1>a</h1><table><tr><th>b</th></tr></table></main></html>", "th has no scope"),
        ("<main><h1>a</h1><p onclick=x></p></main></html>", "<p> has onclick"),
        ("<main><h1>a</h1><p style=x></p></main></html>", "<p> has style"),
        ("<main><h1>a</h1><script>x</script></main></html>", "<script> inside of the page"),
        ("<main></main></html>", "not one h1"),
        ("<h1>a</h1></html>", "not one main"),
        ("<main><h1>a</h1></main><main></main></html>", "not one main"),
        ("<main hidden><h1>a</h1></main><main></main></html>", ""),
    ],
)
def test_what_is_wrong_with_a_page_is_found(page: str, problem: str) -> None:
    assert problems(HEAD + page, served=True) == ([problem] if problem else [])


def test_what_a_head_lacks_is_found() -> None:
    found = problems("<html><body><main><h1>a</h1></main></body></html>")
    assert sorted(found) == ["html has no lang", "no doctype", "no title", "no viewport"]


def test_samples_say_which_run_they_are_of_and_what_is_known_of_each(tmp_path: Path) -> None:
    page = samples_page(tmp_path).read_text("utf-8")
    told = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert told == {
        "stage": "coco",
        "model": "nic on vgg_micro",
        "step": "4,324",
        **{name: f"{value:.4f}" for name, value in SCORES.items()},
        "true of those shown": "2 of 4",
    }
    cards = re.findall("<figure .*?</figure>", page, re.S)
    # The verdict is a word beside its sign, and colour adds to it.
    signs = [re.findall(r'badge (\w+)"><span aria-hidden="true">(.)</span> (\w+)<', card) for card in cards]
    good, bad = [("good", "\u2713", "true")], [("bad", "\u2717", "false")]
    assert signs == [good, bad, [], [], good, bad]
    assert '<p class="caption">(no words)</p>' in cards[3]
    assert (
        'alt="000000000000.jpg: a red hoop"' in cards[0] and 'alt="000000000004.jpg: a man in a blue shirt"' in cards[4]
    )
    assert "<li>a red hoop</li><li>one large red ring</li>" in cards[0] and "<li>" not in cards[4]
    assert all('width="48" height="48"' in card for card in cards)


def test_the_papers_page_has_a_table_each_and_both_models_captions(tmp_path: Path) -> None:
    page = paper_page(tmp_path).read_text("utf-8")
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert [title.split(":")[0] for title in titles] == [
        *("Table 1", "Table 2", "Table 3", "Submitted runs", "Directions, by METEOR"),
        "Captions of validation images",
    ]
    # The stage that is not done takes the room of its numbers with what a person has to do.
    todo = '<td class="number">0.2043</td><td colspan="4">pick good pairs, or give --auto-select</td></tr>'
    assert todo in page
    figures = re.findall("<figure .*?</figure>", page, re.S)
    assert len(figures) == 2
    said = re.findall(
        '<small>(.*?)</small> <span class="badge (.*?)">.*?</span> (.*?)</span></p><p.*?>(.*?)<', figures[0]
    )
    assert said == [("final model", "bad", "false", "a dog"), ("baseline", "good", "true", "a cat")]


@pytest.mark.parametrize(
    ("logprob", "told"),
    [
        (0.0, "log-probability 0.00 (100.0\u00a0%)"),
        (math.log(0.0641), "log-probability \u22122.75 (6.4\u00a0%)"),
        (math.log(1 / 1234), "log-probability \u22127.12 (1\u00a0in\u00a01,200)"),
        (math.log(1 / 4.56e8), "log-probability \u221219.94 (1\u00a0in\u00a0460\u00a0million)"),
        (math.log(1 / 2.94e6), "log-probability \u221214.89 (1\u00a0in\u00a02.9\u00a0million)"),
        (-1000.0, "log-probability \u22121000.00"),
        (-math.inf, "log-probability \u2212inf"),
    ],
)
def test_a_log_probability_is_told_as_a_share_too(logprob: float, told: str) -> None:
    assert likelihood(logprob) == told


def test_parts_escape_what_is_not_theirs() -> None:
    bad = '<i>"&'
    safe = html.escape(bad)
    made = [
        facts({bad: bad}),
        badge(bad, None),
        picture(b"", bad, 1, 1),
        table(bad, [bad], [[bad, bad, bad]], numbers=range(2, 3), note=bad),
        pages.document(bad, "", bad),
    ]
    assert [part.count(safe) for part in made] == [2, 1, 1, 7, 3]
    assert all("<i>" not in part for part in made)
    assert badge("a", True) in table("t", ["a", "b"], [["x", badge("a", True)]], numbers=range(0))


def test_numbers_stand_at_the_end_of_their_column() -> None:
    row = ["x", "all: 400", "0.1327", "12.5 %", "+0.0210 \u00b1 0.0070", "\u22120.5", "text"]
    made = table("t", list("abcdefg"), [row, [*row[:3], "to do", "", "", "z"]], numbers=range(2, 6))
    whole, part = re.findall("<tr>(<th scope=.row.*?)</tr>", made)
    aligned = "".join(f'<td class="number">{text}</td>' for text in row[2:6])
    assert whole == f'<th scope="row">x</th><td>all: 400</td>{aligned}<td>text</td>'
    assert part.endswith('<td colspan="3">to do</td><td>z</td>')
    assert re.findall(r'<th scope="col"( class="number")?>(\w)', made) == [
        (' class="number"' if c in "cdef" else "", c) for c in "abcdefg"
    ]
