"""The command `pycap doctor`: of data folders, of the machine, or of what a run needs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pycap.doctor import machine, plan

if TYPE_CHECKING:
    from pycap.doctor.layouts import Recognised


def examine(args: argparse.Namespace) -> int:
    """`pycap doctor`: print a report, as JSON where args.json. Of the data folders that were named, status 1 where there is an
    error in one; of a plan, where the run would end for want of disk; else 0. 128 + n after signal n.

    Raises DataError for folders that are none, ConfigError for a run that does not fit on the GPU.
    """
    if args.plan:
        return _plan(args)
    if args.folders or args.data or args.datasets:
        return _folders(args)
    for name in ("output", "sample", "stage", "strict"):
        if getattr(args, name):
            raise ValueError(f"--{name} is of a data folder; name one, as pycap doctor DIR")
    found = machine.report()
    print(json.dumps(found, indent=1) if args.json else machine.as_text(found))
    return 0


def _plan(args: argparse.Namespace) -> int:
    from pycap.config import parse_args

    config = parse_args(args.options, "pycap doctor --plan")
    planned = plan.of_run(config, args.vocabulary, args.ranks)
    print(json.dumps(planned, indent=1) if args.json else plan.as_text(planned, config))
    return int(any(finding["severity"] == "error" for finding in planned["disk"]["findings"]))


def _folders(args: argparse.Namespace) -> int:
    """Look at each folder by itself; with --datasets at all of its sets together."""
    from pycap.data import DataError
    from pycap.doctor import folder, layouts, report
    from pycap.doctor.watch import Shown
    from pycap.signals import Stopping

    output = Path(args.output) if args.output else None
    if output:
        report.require_place(output)
    named: list[tuple[str, Recognised]] = []
    if args.datasets:
        if args.folders:
            raise DataError("--datasets names the sets already; leave the folders out, or leave it out")
        root = Path(args.data) if args.data else None
        parts = layouts.parse(args.datasets, root)
        named.append((args.datasets, layouts.Recognised("+".join(part.kind for part in parts), parts)))
    else:
        for name in [*args.folders, *([args.data] if args.data else [])]:
            found = layouts.recognise(Path(name))
            named.append((name, layouts.as_kind(Path(name), args.stage) if args.stage else found))
    examined = []
    with Stopping() as signals, Shown(signals, quiet=args.json) as shown:
        for name, recognised in named:
            examined.append(
                folder.examine(name, recognised, shown, sample=args.sample or 0, threshold=args.word_count_threshold)
            )
            if signals.number:
                break
    if args.json:
        print(json.dumps(report.plain(examined), indent=1))
    else:
        report.show(examined)
    if output:
        report.write(output, examined)
        print(f"written: {output}", file=sys.stderr if args.json else sys.stdout)
    if signals.number:
        return 128 + signals.number
    strict = args.strict and any(each.findings.counts()["warning"] for each in examined)
    return report.status(examined) or int(bool(strict))
