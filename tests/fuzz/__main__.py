"""Files that nobody meant, for every reader: python -m tests.fuzz [--reader NAME ...] [--runs 10000] [--engine both]

A table a reader, and where it was measured, in benchmarks/results/fuzz.json. Status 1 where a reader crashed, hung, took more
memory than it may, raised what is no error of pycap's, or gave what cannot be right: the input is kept, and
`python -m tests.fuzz --reader NAME --input FILE` reads it again.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from pycap.data import disk
from tests.fuzz.readers import TARGETS
from tests.fuzz.target import PATIENCE_S
from tests.fuzz.watch import ROOT, Found, fuzz

RESULTS = ROOT / "benchmarks/results/fuzz.json"
ENGINES = ("hypothesis", "atheris")
_SHM = Path("/dev/shm")
_COLUMNS = ("inputs", "accepted", "refused", "slowest_ms", "peak_mib", "crashes", "hangs", "failures")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--reader", nargs="+", default=list(TARGETS), choices=sorted(TARGETS), metavar="NAME", help=", ".join(TARGETS)
    )
    parser.add_argument("--runs", type=int, default=10_000, help="inputs a reader, of each engine")
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default="hypothesis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=ROOT / "build/fuzz", help="where inputs that fail are put")
    parser.add_argument("--input", type=Path, help="one input, of one reader: what it answers is printed")
    parser.add_argument(
        "--out", type=Path, help=f"figures of these readers are put into this file ({RESULTS.name}: {RESULTS})"
    )
    own = parser.parse_args(arguments)
    if own.input:
        return _one(own.reader[0], own.input)
    engines = ENGINES if own.engine == "both" else (own.engine,)
    if "atheris" in engines and importlib.util.find_spec("atheris") is None:
        print(
            f"atheris is not installed; it has wheels for some versions of Python only, and this is {sys.version.split()[0]}. "
            "`pip install atheris` in .venv, or --engine hypothesis",
            file=sys.stderr,
        )
        return 2
    faults, commit = 0, machine.commit()  # as it is now: results that are written make a checkout differ
    with tempfile.TemporaryDirectory(dir=_SHM if _SHM.is_dir() else None, prefix="pycap-fuzz-") as scratch:
        print(f"{'reader':24} {'engine':10} " + " ".join(f"{name:>10}" for name in _COLUMNS), flush=True)
        for name in own.reader:
            for engine in ("hostile", *engines):
                faults += _run(name, engine, own, commit, Path(scratch))
    return 1 if faults else 0


def _run(name: str, engine: str, own: argparse.Namespace, commit: str, scratch: Path) -> int:
    target = TARGETS[name]
    if engine == "hostile" and not target.hostile():
        return 0
    begun = time.perf_counter()
    found = fuzz({name: target}, engine, own.runs, own.seed, scratch / name, own.keep)[name]
    row = _row(found)
    print(f"{name:24} {engine:10} " + " ".join(f"{row[column]:>10}" for column in _COLUMNS), flush=True)
    for why, kept in found.faults[:20]:
        first, _, rest = why.partition("\n")
        print(
            f"    {first}\n        {rest[-1200:]}\n    python -m tests.fuzz --reader {name} --input {kept}", flush=True
        )
    if own.out:
        row |= {"bound_mib": target.memory_mib, "seed": own.seed, "seconds": round(time.perf_counter() - begun, 1)}
        _record(own.out, name, engine, row | {"commit": commit, "cpu": machine.cpu_name()})
    return len(found.faults)


def _row(found: Found) -> dict[str, Any]:
    row = {key: value for key, value in asdict(found).items() if key != "faults"}
    return {**row, "failures": len(found.faults) - found.crashes - found.hangs}


def _record(path: Path, name: str, engine: str, row: dict[str, Any]) -> None:
    """Put a reader's figures among those that the file has, of other runs too, which may go on beside this one."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        body = json.loads(path.read_text("utf-8")) if path.exists() else {"readers": {}}
        body["patience_s"] = PATIENCE_S
        body["versions"] = machine.versions(
            ("hypothesis", "atheris", "h5py", "numpy", "pillow", "PyYAML", "safetensors")
        )
        body["readers"].setdefault(name, {})[engine] = row
        disk.write_whole(path, json.dumps(body, indent=1, sort_keys=True) + "\n")
    finally:
        os.close(folder)


def _one(name: str, path: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name]
        target.prepare(Path(folder))
        outcome = target.try_(Path(folder), path.read_bytes())
    print(f"{name}: {outcome.verdict} in {outcome.seconds * 1e3:.1f} ms: {outcome.why}")
    return 1 if outcome.verdict == "failed" else 0


if __name__ == "__main__":
    raise SystemExit(main())
