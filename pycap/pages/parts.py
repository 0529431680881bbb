"""Components of pages as HTML. Texts are escaped here, unless they are `Html` already."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence

#: What stands for a state -> (its sign, its class in style.css).
_STATES = {True: ("\u2713", "good"), False: ("\u2717", "bad"), None: ("?", "warn")}
_NUMBER = re.compile(r"[+\u2212-]?\d[\d.,]*( %)?( \u00b1 [\d.]+)?")


class Html(str):
    """Text that is HTML: it is not escaped again."""


def escaped(text: str) -> Html:
    return text if isinstance(text, Html) else Html(html.escape(text))


def facts(about: Mapping[str, str]) -> Html:
    """Names over values, in a line."""
    pairs = "".join(f"<div><dt>{escaped(n)}</dt><dd>{escaped(value)}</dd></div>\n" for n, value in about.items())
    return Html(f'<dl class="facts">\n{pairs}</dl>')


def badge(text: str, state: bool | None) -> Html:
    """A word with a sign and a colour: good (True), bad (False), or to be attended to (None)."""
    sign, name = _STATES[state]
    return Html(f'<span class="badge {name}"><span aria-hidden="true">{sign}</span> {escaped(text)}</span>')


def picture(jpeg: bytes, alt: str, width: int, height: int) -> Html:
    """An image inside the page. alt: what it shows, for who cannot see it; width, height: its pixels."""
    data = base64.b64encode(jpeg).decode()
    return Html(f'<img src="data:image/jpeg;base64,{data}" alt="{escaped(alt)}" width="{width}" height="{height}">')


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: range, note: str = "") -> Html:
    """A table under its title, which scrolls by itself where it is wider than the screen.

    heads: of the columns; those of `numbers` hold numbers, which are aligned at their ends. What is no number there takes the
    room of the empty cells that follow it. note: stands under the table.
    """
    name = escaped(title)
    head = "".join(f'<th scope="col"{_aligned(i in numbers)}>{escaped(text)}</th>' for i, text in enumerate(heads))
    body = "\n".join(f"<tr>{_cells(row, numbers)}</tr>" for row in rows)
    below = f'\n<p class="note">{escaped(note)}</p>' if note else ""
    return Html(
        f'<h2>{name}</h2>\n<div class="scroll" role="region" aria-label="{name}" tabindex="0">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>{below}"
    )


def _cells(row: Sequence[str], numbers: range) -> str:
    cells = [f'<th scope="row">{escaped(row[0])}</th>']
    i = 1
    while i < len(row):
        text, span = row[i], 1
        number = i in numbers and (not text or bool(_NUMBER.fullmatch(text)))
        while not number and i + span in numbers and i in numbers and not row[i + span]:
            span += 1
        wide = f' colspan="{span}"' if span > 1 else ""
        cells.append(f"<td{_aligned(number)}{wide}>{escaped(text)}</td>")
        i += span
    return "".join(cells)


def _aligned(number: bool) -> str:
    return ' class="number"' if number else ""
