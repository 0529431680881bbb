"""The look of every page that pycap makes: one stylesheet, and pages that need nothing outside themselves.

| file | its job |
|---|---|
| `style.css` | colours for light and dark, sizes, elements, and the components that several pages have |
| `parts.py` | those components as HTML: facts, badges, pictures, tables |
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from pycap.pages.parts import Html, badge, facts, picture, table

__all__ = ["Html", "badge", "document", "facts", "picture", "stylesheet", "table"]

# Of a page that is a file: whatever the texts of a data set hold, nothing is run or fetched.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@cache
def stylesheet() -> str:
    """The one stylesheet, light and dark."""
    return files("pycap.pages").joinpath("style.css").read_text("utf-8")


def document(title: str, body: str, intro: str = "", about: Sequence[Mapping[str, str]] = ()) -> str:
    """A whole HTML page with the stylesheet in it.

    title, intro: plain text, escaped here; about: under them, rows of names and values (see `facts`); body: HTML, put into the
    page's `main`.
    """
    name = html.escape(title)
    header = [f"<h1>{name}</h1>"]
    header += [f"<p>{html.escape(intro)}</p>"] if intro else []
    header += [facts(row) for row in about]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="generator" content="pycap">
<title>{name}</title>
<style>
{stylesheet()}</style>
</head>
<body>
<header class="page">
{chr(10).join(header)}
</header>
<main class="page">
{body}
</main>
</body>
</html>
"""
