"""What was found in data folders, told: on a terminal, as plain text, Markdown, JSON, or a page."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycap import __version__, pages
from pycap.data import DataError, forms
from pycap.doctor.findings import Findings
from pycap.doctor.folder import Examined
from pycap.doctor.kinds import ERROR, KINDS, WARNING, plural
from pycap.pages.parts import escaped

TITLE = "pycap doctor"
FORMAT = "pycap-doctor"
SUFFIXES = (".html", ".htm", ".json", ".md", ".txt")
_SHOWN = 4  # names of a finding, in text
_WIDTH = 110
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_STATES: dict[str, bool | None] = {"error": False, "warning": None, "note": None}


def plain(examined: Sequence[Examined]) -> dict[str, Any]:
    """Plain JSON values. status: as `status`; folders: of each what it is, what it holds, and `findings`, the worst first."""
    return {
        "format": FORMAT,
        "pycap": __version__,
        "status": status(examined),
        "folders": [
            {
                "folder": each.folder,
                "kind": each.kind,
                "stopped": each.stopped,
                "counts": each.findings.counts(),
                "splits": each.splits,
                "words": each.words,
                "images": each.images,
                "findings": each.findings.plain(each.folder),
            }
            for each in examined
        ],
    }


def status(examined: Sequence[Examined]) -> int:
    """1 where there is an error, else 0."""
    return int(any(each.findings.errors for each in examined))


def as_text(examined: Sequence[Examined]) -> str:
    """For people: what the folder holds, then the findings with their remedies."""
    return "\n\n".join("\n".join(line for line, _ in _lines(each)) for each in examined)


def show(examined: Sequence[Examined]) -> None:
    """As `as_text`, on the standard output; on a terminal in colours."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for number, each in enumerate(examined):
        if number:
            console.print()
        for line, style in _lines(each):
            console.print(Text(line, style=style) if console.is_terminal else Text(line))


def require_place(path: Path) -> None:
    """DataError where a report cannot be written there: of another suffix, without a folder, or where something else lies."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: a report ends in {', '.join(SUFFIXES)}; name it so")
    forms.require_place(path)
    if path.exists():
        with open(path, "rb") as file:
            begins = file.read(4096)
        if begins and TITLE.encode() not in begins and FORMAT.encode() not in begins:
            raise DataError(f"{path}: holds something else than a report of pycap doctor; name another file")


def write(path: Path, examined: Sequence[Examined]) -> None:
    """A whole report, or nothing: as a page, JSON, Markdown or text, by the suffix."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = json.dumps(plain(examined), indent=1, ensure_ascii=False) + "\n"
    elif suffix in (".html", ".htm"):
        text = as_page(examined)
    elif suffix == ".md":
        text = as_markdown(examined)
    else:
        text = f"{TITLE} {__version__}\n\n{as_text(examined)}\n"
    forms.replace(path, [text.encode("utf-8", "backslashreplace")])


def as_markdown(examined: Sequence[Examined]) -> str:
    parts = [f"# {TITLE}\n\npycap {__version__}\n"]
    for each in examined:
        parts.append(f"## `{each.folder}`\n\n" + "".join(f"* {n}: {value}\n" for n, value in _facts(each).items()))
        for f in each.findings.plain(each.folder):
            names = "".join(f"* {_code(n['name'])} {_code(n['detail']) if n['detail'] else ''}\n" for n in f["first"])
            rest = f"* and {f['count'] - len(f['first'])} more\n" if f["count"] > len(f["first"]) else ""
            parts.append(
                f"### {f['severity']}: {f['count']} {f['what']}\n\n{_sentence(f['why'])} Remedy: {f['remedy']}.\n\n"
                f"{names}{rest}"
            )
        parts.append(f"{verdict(each.findings, each.stopped)}\n")
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


def as_page(examined: Sequence[Examined]) -> str:
    """A page that needs nothing outside itself."""
    body = []
    for each in examined:
        body.append(f"<h2>{escaped(each.folder)}</h2>\n{pages.facts(_facts(each))}")
        body.append(f"<p>{escaped(verdict(each.findings, each.stopped))}</p>")
        for f in each.findings.plain(each.folder):
            names = "\n".join(f"<li><code>{escaped(n['name'])}</code> {escaped(n['detail'])}</li>" for n in f["first"])
            more = f["count"] - len(f["first"])
            rest = f'\n<p class="note">and {more} more</p>' if more > 0 else ""
            body.append(
                f"<section>\n<h3>{pages.badge(f['severity'], _STATES[f['severity']])} {f['count']} "
                f"{escaped(f['what'])}</h3>\n<p>{escaped(_sentence(f['why']))}<br>Remedy: {escaped(f['remedy'])}.</p>\n"
                f"<details{' open' if f['severity'] == ERROR else ''}><summary>which</summary>\n<ul>\n{names}\n</ul>{rest}\n"
                "</details>\n</section>"
            )
    return pages.document(
        TITLE, "\n".join(body), intro="What a training run on this data would stumble over, and the remedies."
    )


def verdict(findings: Findings, stopped: bool = False) -> str:
    """In a sentence, and what to do next."""
    counts = findings.counts()
    told = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items() if count)
    what = told or "nothing found"
    if stopped:
        return f"stopped before all was seen; so far {what}"
    if counts[ERROR]:
        what += ": do not train before the errors are settled"
    elif counts[WARNING]:
        what += ": it can be trained on; see whether the warnings are meant"
    else:
        what += ": ready to train"
    return what


def _facts(each: Examined) -> dict[str, str]:
    """What the folder holds, by name."""
    facts = {"data": f"{each.folder}: {each.kind or 'no layout that pycap knows'}"}
    for split, c in each.splits.items():
        of = f" of {c['listed']}" if c["listed"] != c["images"] else ""
        facts[split] = f"{c['images']}{of} images"
        if each.words:
            facts[split] += f", {c['captions']} captions, {c['words']} words; the longest has {c['longest_caption']}"
    if each.words:
        unknown = ", ".join(f"{share:g} % of {split}" for split, share in each.words["unknown_percent"].items())
        facts["vocabulary"] = (
            f"{each.words['words_kept']} of {each.words['words_seen']} words are seen {each.words['threshold']} times or "
            f"more ({each.words['seen_once']} once); unknown: {unknown}"
        )
    if each.images:
        i = each.images
        forms_told = ", ".join(f"{form} {count}" for form, count in i["forms"].items())
        sizes = f"; {_size(i['smallest'])} to {_size(i['largest'])} pixels" if i["smallest"] else ""
        facts["images"] = (
            f"{i['readable']} of {i['looked_at']} decoded{'' if i['looked_at'] == i['named'] else ' of ' + str(i['named'])}, "
            f"{i['per_second']:.0f} a second ({forms_told or 'none'}{sizes})"
        )
    return facts


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _lines(each: Examined) -> list[tuple[str, str]]:
    """Lines, and the style of each on a terminal."""
    lines = [(_row(name, value), "") for name, value in _facts(each).items()]
    for f in each.findings.sorted():
        kind = KINDS[f.kind]
        lines.append(("", ""))
        lines.append((f"{kind.severity:8} {f.count} {plural(f.kind, f.count)}  [{f.kind}]", _COLOURS[kind.severity]))
        for name, detail in f.first[:_SHOWN]:
            lines.append((f"           {_printable(name)}{': ' + _printable(detail) if detail else ''}", ""))
        if f.count > min(_SHOWN, len(f.first)):
            lines.append((f"           and {f.count - min(_SHOWN, len(f.first))} more", "dim"))
        lines.append((_indented("why:", kind.why), "dim"))
        lines.append((_indented("remedy:", kind.remedy.replace("{folder}", each.folder)), ""))
    lines += [("", ""), (verdict(each.findings, each.stopped), "bold")]
    return lines


def _printable(text: str) -> str:
    """Without what would change the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _row(name: str, text: str) -> str:
    return textwrap.fill(
        _printable(text), _WIDTH, initial_indent=f"{name:12} ", subsequent_indent=" " * 13, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def _indented(name: str, text: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=f"  {name:8} ", subsequent_indent=" " * 11, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
