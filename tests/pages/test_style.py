"""The stylesheets: every pair of colours that they can bring together can be read, in the light scheme and in the dark one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from pycap import pages

SURFACES = ("ground", "surface", "sunk")  # what text and controls may stand on
# The least contrast of WCAG 2.2, level AA: of text (1.4.3), of what shows where a control is (1.4.11).
TEXT, SHAPE = 4.5, 3.0
CONTROLS = re.compile(r"\b(button|input|select|textarea|kbd|dialog)\b")

# What writes pages as files.
WRITERS = [("pages", "__init__.py"), ("pages", "parts.py"), ("training", "samples.py"), ("paper", "page.py")]
STATIC = Path(str(files("pycap.web").joinpath("static")))

Tokens = dict[str, tuple[str, str]]
Rule = tuple[str, dict[str, str]]


def tokens(css: str) -> Tokens:
    """The colour tokens of a stylesheet -> (light, dark)."""
    return {n: (a, b) for n, a, b in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)}


def rules(css: str) -> list[Rule]:
    """(selector, property -> value) of each rule, those inside of @media too."""
    found = re.findall(r"([^{};]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", css, flags=re.S))
    return [
        (selector.strip(), dict((p.strip() for p in part.split(":", 1)) for part in body.split(";") if ":" in part))
        for selector, body in found
    ]


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """From 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def named(value: str) -> list[str]:
    """The properties whose values a value has."""
    return re.findall(r"var\(--([\w-]+)", value)


def pairs(found: list[Rule], colours: Tokens) -> Iterator[tuple[str, str, str, float]]:
    """(selector, token in front, token behind, least contrast) of every pair that the rules can bring together."""
    own: dict[str, list[str]] = {}  # properties of a stylesheet's own -> the tokens that they are set to
    for _, rule in found:
        for name, value in rule.items():
            if name.startswith("--"):
                own.setdefault(name, []).extend(named(value))

    def tokens_of(value: str) -> list[str]:
        return [t for name in named(value) for t in ([name] if name in colours else own.get(f"--{name}", []))]

    for selector, rule in found:
        if selector == ":root":
            continue
        behind = [t for p in ("background", "background-color") for t in tokens_of(rule.get(p, ""))]
        for front in tokens_of(rule.get("color", "")):
            yield from ((selector, front, back, TEXT) for back in behind or SURFACES)
        shapes = [value for p, value in rule.items() if p.startswith(("border", "outline", "accent-color", "stroke"))]
        fronts = [t for value in shapes for t in tokens_of(value) if t != "line"]
        if "color" not in rule:  # it has no text of its own, and says something by being there
            fronts += [t for t in behind if t not in SURFACES]
        yield from ((selector, front, back, SHAPE) for front in fronts for back in SURFACES)


def unreadable(css: str, colours: Tokens) -> list[str]:
    """What of a stylesheet cannot be read, or not be seen."""
    return [
        f"{selector}: --{front} {colours[front][scheme]} on --{back} {colours[back][scheme]}, {scheme_name}: {ratio:.2f}"
        for selector, front, back, least in pairs(rules(css), colours)
        for scheme, scheme_name in enumerate(("light", "dark"))
        if (ratio := contrast(colours[front][scheme], colours[back][scheme])) < least
    ]


def sheets() -> dict[str, str]:
    """Every stylesheet by its name."""
    return {
        "style.css": pages.stylesheet(),
        **{path.name: path.read_text("utf-8") for path in sorted(STATIC.glob("*.css"))},
    }


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    # Two greys that accessibility guides give as the last that passes on white, and the first that does not.
    assert contrast("#767676", "#ffffff") > 4.5 > contrast("#777777", "#ffffff")


@pytest.mark.parametrize("name", sheets())
def test_what_a_stylesheet_brings_together_can_be_read(name: str) -> None:
    css, colours = sheets()[name], tokens(pages.stylesheet())
    assert len(colours) >= 10
    assert not unreadable(css, colours)
    assert name != "style.css" or len(list(pairs(rules(css), colours))) > 50


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("token", sorted(set(tokens(pages.stylesheet())) - {"line"}))
def test_a_bad_token_is_found(token: str, scheme: int) -> None:
    """Each token, made a grey that is neither light nor dark, breaks some pair in that scheme."""
    colours = tokens(pages.stylesheet())
    bad = list(colours[token])
    bad[scheme] = "#808080"
    found = unreadable(pages.stylesheet(), colours | {token: (bad[0], bad[1])})
    if token == "edge":  # where that grey is good enough
        bad[scheme] = colours["line"][scheme]
        found = unreadable(pages.stylesheet(), colours | {token: (bad[0], bad[1])})
    assert found and all(f"--{token} " in line for line in found)


@pytest.mark.parametrize("name", sheets())
def test_a_faint_line_only_divides(name: str) -> None:
    """A control's border, which shows where it is, is an edge."""
    for selector, rule in rules(sheets()[name]):
        if CONTROLS.search(selector):
            assert "line" not in named(" ".join(rule.values())), selector


def test_every_token_is_defined_once_and_used() -> None:
    every = sheets()
    defined = re.findall(r"^\s*--([\w-]+):", pages.stylesheet().split("@media")[0], re.M)
    assert sorted(defined) == sorted(set(defined))
    assert set(defined) <= {name for css in every.values() for name in named(css)}


@pytest.mark.parametrize("name", sheets())
def test_what_a_stylesheet_names_is_there(name: str) -> None:
    css = sheets()[name]
    scripts = "".join(path.read_text("utf-8") for path in STATIC.glob("*.js"))
    set_elsewhere = re.findall(r"[\"']--([\w-]+)[\"']", scripts)
    defined = re.findall(r"--([\w-]+):", css + pages.stylesheet())
    assert {*named(css)} <= {*defined, *set_elsewhere}


@pytest.mark.parametrize("name", sheets())
def test_colours_are_tokens(name: str) -> None:
    """So that each has a light and a dark side; but for the veil behind a dialog, which darkens both."""
    for selector, rule in rules(sheets()[name]):
        if selector != ":root" and not selector.endswith("::backdrop"):
            assert not re.search(
                r"#[0-9a-f]{3,8}\b|\b(rgb|hsl|oklch)a?\(|\b(white|black|gr[ae]y)\b", " ".join(rule.values())
            ), selector


def test_every_class_and_id_of_a_stylesheet_is_on_some_page() -> None:
    """Of its own page; the common one's on any, or on those that are written as files."""
    written = [Path(str(files("pycap").joinpath(*name))).read_text("utf-8") for name in WRITERS]
    for name, css in sheets().items():
        stem = "*" if name == "style.css" else Path(name).stem + "*"
        sources = [path.read_text("utf-8") for end in ("html", "js") for path in STATIC.glob(f"{stem}.{end}")]
        words = set(re.findall(r"[\w-]+", " ".join([*sources, *(written if stem == "*" else [])])))
        named_there = {each for selector, _ in rules(css) for each in re.findall(r"[.#]([A-Za-z][\w-]*)", selector)}
        assert named_there <= words, name
