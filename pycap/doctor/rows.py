"""Lines of the machine's report: a name, and beside it a text."""

from __future__ import annotations

import textwrap


def row(name: str, text: str) -> str:
    """One or several lines of at most 110 letters, the text beginning at the 13th."""
    return textwrap.fill(text, 110, initial_indent=f"{name:13}", subsequent_indent=" " * 13, break_on_hyphens=False)
