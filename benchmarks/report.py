"""Tables of results: on a screen, and as the marked block of README (python -m benchmarks.report FILE --update-readme)."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import results
from benchmarks.results import Row
from benchmarks.sides import SIDES

if TYPE_CHECKING:
    from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


def markers(name: str) -> tuple[str, str]:
    """The lines between which a block of a page is written."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


BEGIN, END = markers("benchmarks")


def seconds(value: float | None) -> str:
    """A time for people: three digits, and the unit that fits."""
    if value is None:
        return "-"
    unit, scale = ("s", 1.0) if value >= 1 else ("ms", 1e3) if value >= 1e-3 else ("us", 1e6)
    number = value * scale
    return f"{number:.0f} {unit}" if number >= 99.95 else f"{number:.3g} {unit}"


def peer_name(row: Row) -> str:
    """The peer's name for people, without its version."""
    name = str(row["peer"] or "").partition(" ")[0]
    return SIDES[name][2] if name in SIDES else name


def table(rows: Iterable[Row]) -> Table:
    """Every row: work, times with their 20 and 80 % quantiles, ratio, rates, error."""
    from rich.table import Table

    shown = Table(title="pycap beside its peers (ratio: peer's time / pycap's)")
    for heading in ("case", "peer", "pycap", "20..80 %", "peer's", "ratio", "GFLOP/s", "GB/s", "% of ceiling", "err"):
        shown.add_column(heading, justify="left" if heading in ("case", "peer") else "right", no_wrap=heading != "case")
    for row in rows:
        shown.add_row(
            f"{row['op']} {row['case']} {row['mode']} {row['dtype']}",
            peer_name(row),
            seconds(row["median_s"]),
            f"{seconds(row['q20_s'])}..{seconds(row['q80_s'])}" if row["median_s"] else "-",
            seconds(row["peer_median_s"]),
            _number(row["ratio"], ".2f"),
            _number(row["gflops"], ".0f"),
            _number(row["gbps"], ".1f"),
            _number(row["ceiling_pct"], ".0f"),
            _number(row["err"], ".1e"),
        )
    return shown


def notes(rows: Iterable[Row]) -> list[str]:
    """What is missing and why; each reason once, with the number of rows that it has taken something from."""
    counts = Counter(row["note"] for row in rows if row["note"])
    return [f"{note} ({count} row{'' if count == 1 else 's'})" for note, count in counts.items()]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def headline(rows: Iterable[Row]) -> list[list[str]]:
    """Work, pycap's time, then for each peer its time and the ratio; one line a label, a heading first."""
    labelled = [row for row in rows if row.get("label")]
    peers = [name for name in (side[2] for side in SIDES.values()) if any(peer_name(row) == name for row in labelled)]
    lines = [["work", "pycap", *peers]]
    for label in dict.fromkeys(row["label"] for row in labelled):
        of_label = [row for row in labelled if row["label"] == label]
        cells = [label, seconds(of_label[0]["median_s"])]
        for name in peers:
            row = next((row for row in of_label if peer_name(row) == name), None)
            if row is None or row["peer_median_s"] is None:
                cells.append("")
            elif row["ratio"] is None:
                cells.append(seconds(row["peer_median_s"]))
            else:
                cells.append(f"{seconds(row['peer_median_s'])} ({row['ratio']:.2f}x)")
        lines.append(cells)
    return lines


def headline_table(rows: Iterable[Row]) -> Table:
    """`headline` for a screen."""
    from rich.table import Table

    heading, *lines = headline(rows)
    shown = Table(title="each peer's time (and that over pycap's)")
    for name in heading:
        shown.add_column(name, justify="left" if name == "work" else "right")
    for line in lines:
        shown.add_row(*line)
    return shown


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column stands left and the others right."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows))


def markdown(rows: Sequence[Row], picture: str | None) -> str:
    """The block of README: where it was measured, the headline table, and the picture (a path relative to README)."""
    heading, *lines = headline(rows)
    first = rows[0]
    versions = {k: v for k, v in first["versions"].items() if k in SIDES}
    peers = ", ".join(f"{SIDES[name][2]} {version}" for name, version in versions.items())
    text = [
        f"{first['hardware']} on all sides; {peers}; commit {first['commit'] or 'unknown'}.",
        "Medians, and in brackets how many times as long as pycap the peer takes.",
        "",
        markdown_table(heading, lines),
    ]
    memory = [row for row in rows if row["op"] == "joint" and row["peak_mib"] and row["peer_peak_mib"]]
    if memory:
        sides = [
            f"{row['peak_mib']:.0f} MiB ({peer_name(row)} {row['peer_peak_mib']:.0f} MiB) in {row['dtype']}"
            for row in memory
        ]
        text += ["", f"Peak memory of the joint step: {', '.join(sides)}."]
    if picture:
        text += ["", f"![Time of each peer beside pycap's, and the roofline of VGG16's layers]({picture})"]
    return "\n".join(text)


def replace_block(text: str, block: str, name: str = "README.md", mark: str = "benchmarks") -> str:
    """`text` with what stands between the two markers `mark` replaced. ValueError where there is not one pair of them."""
    begin, end = markers(mark)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(
            f"{name}: needs one line {begin} and after it one line {end}, between which the table is written"
        )
    head, tail = text.partition(begin)[0], text.partition(end)[2]
    return f"{head}{begin}\n{block}\n{end}{tail}"


def update_readme(rows: Sequence[Row], picture: Path | None, readme: Path = ROOT / "README.md") -> None:
    """Write the headline table, and the picture's link where the file is there, into README."""
    link = picture.resolve().relative_to(readme.resolve().parent).as_posix() if picture and picture.exists() else None
    readme.write_text(replace_block(readme.read_text("utf-8"), markdown(rows, link), readme.name), "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Show a file of results; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("file", type=Path, help="a .jsonl file that benchmarks.run wrote")
    parser.add_argument("--headline", action="store_true", help="the headline table only")
    parser.add_argument("--plot", action="store_true", help="draw the picture, FILE.svg")
    parser.add_argument("--update-readme", action="store_true", help="write headline table and picture into README.md")
    own = parser.parse_args(argv)
    try:
        rows = results.read(own.file)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return show(rows, own.file, headline_only=own.headline, plot=own.plot, readme=own.update_readme)


def show(rows: Sequence[Row], file: Path, *, headline_only: bool, plot: bool, readme: bool) -> int:
    """Print the tables and, where asked for, draw FILE.svg and write README; returns the exit status."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    if not headline_only:
        console.print(table(rows))
    if any(row["label"] for row in rows):
        console.print(headline_table(rows))
    for note in notes(rows):
        console.print(f"not measured: {note}", markup=False, highlight=False)
    picture = file.with_suffix(".svg")
    if plot:
        try:
            from benchmarks.plot import draw
        except ImportError as error:
            console.print(f"--plot needs matplotlib ({error}): pip install matplotlib")
            return 1
        try:
            draw(rows, picture)
        except ValueError as error:
            console.print(f"no picture: {error}")
        else:
            console.print(f"picture: {picture}")
    if readme:
        update_readme(rows, picture)
        console.print("README.md: table written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
