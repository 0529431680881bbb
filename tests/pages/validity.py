"""What a page of HTML must have, checked on its text: balanced tags, unique ids, names for what has no text of its own."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}  # of title and headings

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        self.problems += [f"<{tag}> has {name} twice" for name in set(names) if names.count(name) > 1]
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID and "svg" not in self.open:
            self.problems.append(f"<{tag}/> is no void element")
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> where {self.open[-1] if self.open else 'nothing'} is open")
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


def problems(page: str, *, served: bool = False) -> list[str]:
    """What is wrong with a page. served: it comes from a server whose policy refuses styles and scripts inside of it."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    found = [*reader.problems, *(f"<{tag}> is never closed" for tag in reader.open)]
    tags = reader.tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    found += [f"id {each} stands twice" for each in set(ids) if ids.count(each) > 1]
    found += [] if page.startswith("<!doctype html>") else ["no doctype"]
    if not any(tag == "html" and attrs.get("lang") for tag, attrs in tags):
        found.append("html has no lang")
    if not reader.texts.get("title", "").strip():
        found.append("no title")
    if sum(tag == "h1" for tag, _ in tags) != 1:
        found.append("not one h1")
    if not any(attrs.get("name") == "viewport" for _, attrs in tags):
        found.append("no viewport")
    mains = [attrs for tag, attrs in tags if tag == "main"]
    if not mains or sum("hidden" not in attrs for attrs in mains) > 1:
        found.append("not one main")
    levels = [int(tag[1]) for tag, _ in tags if tag in ("h1", "h2", "h3", "h4")]
    found += [f"h{b} follows h{a}" for a, b in pairwise(levels) if b > a + 1]
    for tag, attrs in tags:
        if tag == "img" and "alt" not in attrs:
            found.append(f"no alt: {attrs}")
        if tag == "th" and "scope" not in attrs:
            found.append("th has no scope")
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            found += [f"{name}: no {each}" for each in (attrs.get(name) or "").split() if each not in ids]
        found += [f"<{tag}> has {name}" for name in attrs if served and (name == "style" or name.startswith("on"))]
        if served and (tag == "style" or (tag == "script" and "src" not in attrs)):
            found.append(f"<{tag}> inside of the page")
    return found
