"""Times pycap beside its peers: python -m benchmarks.run [--op conv2d] [--short] [--peers torch,openvino] [--json FILE].

Every side works in a process of its own and in turns, on the same values and with the same number of threads. What an
operation's tests have not passed is not timed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, report
from benchmarks.cases import Case, registry, select
from benchmarks.measure import Sides, about_this_run, groups, measure_ceilings, rows_of, run_case
from benchmarks.results import Writer
from benchmarks.sides import SIDES
from benchmarks.timing import FULL, SHORT
from benchmarks.verify import failures
from pycap.device import cpu_count

RESULTS = Path(__file__).parent / "results"


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__, allow_abbrev=False)
    cases = registry()
    ops = list(dict.fromkeys(case.op for case in cases))
    what = parser.add_argument_group("what is timed (default: everything)")
    what.add_argument("--headline", action="store_true", help="only what README's table shows")
    what.add_argument("--op", type=_names, default=[], metavar="OP,...", help=", ".join(ops))
    what.add_argument("--case", default="", metavar="TEXT", help="cases whose id holds this (--list shows ids)")
    what.add_argument("--mode", type=_names, default=[], help="forward, backward, forward+backward, step")
    what.add_argument("--dtype", type=_names, default=[], help="float32, bfloat16")
    what.add_argument("--peers", type=_names, default=[n for n in SIDES if n != "pycap"], help="default: all")
    what.add_argument("--list", action="store_true", help="show the cases and stop")
    how = parser.add_argument_group("how")
    how.add_argument("--short", action="store_true", help="fewer repetitions")
    how.add_argument("--threads", type=int, default=cpu_count(), help="of every side (default: all CPUs)")
    how.add_argument("--no-verify", action="store_true", help="do not run the operations' tests first")
    out = parser.add_argument_group("results")
    out.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=RESULTS / "local" / "latest.jsonl",
        help="rows as JSON Lines, and as CSV beside it (default: %(default)s)",
    )
    out.add_argument("--plot", action="store_true", help="draw the picture beside the rows (needs matplotlib)")
    out.add_argument("--update-readme", action="store_true", help="write the headline table and picture into README.md")
    return parser


def _check(parser: argparse.ArgumentParser, own: argparse.Namespace) -> list[Case]:
    cases = registry()
    for option, given, known in (
        ("--op", own.op, {case.op for case in cases}),
        ("--mode", own.mode, {case.mode for case in cases}),
        ("--dtype", own.dtype, {case.dtype for case in cases}),
        ("--peers", own.peers, set(SIDES) - {"pycap"}),
    ):
        unknown = sorted(set(given) - known)
        if unknown:
            parser.error(f"{option} {','.join(unknown)}: choose from {', '.join(sorted(known))}")
    if own.threads < 1:
        parser.error(f"--threads {own.threads}: at least 1")
    chosen = select(cases, ops=own.op, name=own.case, modes=own.mode, dtypes=own.dtype, headline=own.headline)
    if not chosen:
        parser.error("no case fits these options; --list shows all")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line describes; returns the exit status: 1 where tests failed, 130 after Ctrl-C."""
    parser = _parser()
    own = parser.parse_args(argv)
    cases = _check(parser, own)
    own.budget = SHORT if own.short else FULL
    if own.list:
        for case in cases:
            print(f"{case.id:55} {', '.join(case.peers)}")
        return 0
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(own.threads)  # for the sides' processes, before their libraries load
    writer = Writer(own.json)
    status = 0
    try:
        status = _run(cases, own, writer)
    except KeyboardInterrupt:
        print(f"interrupted; {len(writer.rows)} rows are kept", file=sys.stderr)
        status = 130
    finally:
        writer.close()
    if writer.rows:
        shown = report.show(
            writer.rows, own.json, headline_only=own.headline, plot=own.plot, readme=own.update_readme and not status
        )
        print(f"rows: {writer.jsonl} and {writer.csv.name}")
        status = status or shown
    return status


def _run(cases: Sequence[Case], own: argparse.Namespace, writer: Writer) -> int:
    """Measure the cases op by op: new processes for each op, so that none works in another's left-over memory."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    red: dict[str, str] = {}
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(text)
            if not console.is_terminal and ": round" not in text:
                console.print(text, highlight=False)

        if not own.no_verify:
            say("the tests of what is to be timed")
            red = failures(cases)
            for path, said in red.items():
                console.print(f"tests/{path} fails, so what it tests is not timed:\n{said}", markup=False)
        opened = Sides(own.threads)
        about = about_this_run(own.threads)
        memory = 0.5 * machine.available_gib()
        try:
            ceilings = measure_ceilings(opened, [n for n in ("pycap", "torch") if n == "pycap" or n in own.peers], say)
            console.print(_ceilings_line(ceilings))
            for _, group in itertools.groupby(cases, key=lambda case: case.op):
                opened.close()
                for case in group:
                    if red.keys() & set(case.tests):
                        continue
                    names = ["pycap", *(name for name in case.peers if name in own.peers)]
                    for together in groups(case, names, memory):
                        outcomes = run_case(case, opened, together, own.budget, say)
                        for row in rows_of(case, outcomes, ceilings, about):
                            writer.add(row)
                            console.print(_row_line(row), highlight=False, markup=False)
        finally:
            opened.close()
    return 1 if red else 0


def _ceilings_line(ceilings: dict[str, float]) -> str:
    names = {"float32": "sgemm 4096^3", "bfloat16": "bf16 gemm 4096^3"}
    parts = [f"{text} {ceilings[key] / 1e9:.0f} GFLOP/s" for key, text in names.items() if key in ceilings]
    if "copy" in ceilings:
        parts.append(f"copy {ceilings['copy'] / 1e9:.1f} GB/s")
    return "ceilings: " + ", ".join(parts)


def _row_line(row: report.Row) -> str:
    work = f"{row['op']} {row['case']} {row['mode']} {row['dtype']}"
    ratio = f"{row['ratio']:.2f}x" if row.get("ratio") else "-"
    times = f"{report.seconds(row.get('median_s'))} / {report.seconds(row.get('peer_median_s'))}"
    return f"{work:52} {row.get('peer') or '':28} {times:22} {ratio:8} {row['note']}"


if __name__ == "__main__":
    raise SystemExit(main())
