"""`make sanitize`: the tests of the C++ backend on modules that watch memory and arithmetic, and on one that watches threads.

For each build: planted faults first, each of which must be reported, and the same done right, which must not; then the tests,
with each instruction set's kernels. Any report fails the run. `--json FILE` writes the figures down, build by build.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.results import Part
from tests.sanitizers.builds import BUILDS, ROOT, Build, Missing

# Of a run's tests: nothing that runs elsewhere than in C++ (gradients are checked on the reference, in float64), or is slow.
MARKERS = "not (gradcheck or triton or emu or gpu or peers or mpi or realdata or browser or slow)"
NAMES = "not (reference or stand_in)"

REFUSED = re.compile(r"^==\d+==WARNING: \w+Sanitizer failed to allocate 0x[0-9a-f]+ bytes$", re.MULTILINE)

_PLANT = """
import ctypes, sys
import numpy as np
from tests.sanitizers.exact import Exact
planted = ctypes.CDLL(sys.argv[1]).planted
x = Exact().empty((4099,), np.dtype(np.float32))
x.fill(0)
known = planted(sys.argv[2].encode(), ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(x.size), int(sys.argv[3]))
sys.exit(0 if known else 3)
"""


def reports(folder: Path) -> str:
    """What sanitizers have written down, and take it away. Memory that nobody has is none: malloc returned null, as it may."""
    files = sorted(folder.glob("report.*"))
    text = "\n".join(REFUSED.sub("", file.read_text("utf-8", "replace")) for file in files)
    for file in files:
        file.unlink()
    return text.strip()


def watched(build: Build, isa: str, threads: int, arguments: Sequence[str], **options: Any) -> tuple[int, str]:
    """Run pytest on a build: its status, and what sanitizers said: into their files, or, as GCC's UBSan does whatever it is
    told, to the standard error, which pytest must not hold back from a process that is ended. options: of subprocess.run."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.sanitizers.exact", "-p", "no:cacheprovider", "-q"]
    command += ["--capture=sys", "-m", MARKERS, "-k", NAMES, *arguments]
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run(command, env=build.environment(isa, threads), cwd=ROOT, stderr=errors, **options)
        errors.seek(0)
        spoken = errors.read().decode("utf-8", "replace")
    spoken = spoken if "runtime error: " in spoken else ""
    return done.returncode, "\n".join(filter(None, (reports(build.reports), spoken)))


def self_test(build: Build, library: Path, environment: Mapping[str, str], threads: int) -> list[str]:
    """What is wrong with the sanitizer itself: faults that it does not report, and what it reports where there are none."""
    wrong = []
    for fault, words in {"none": "", **build.faults}.items():
        command = [sys.executable, "-c", _PLANT, str(library), fault, str(threads)]
        done = subprocess.run(command, env=dict(environment), cwd=ROOT, capture_output=True, text=True, timeout=300)
        said = reports(build.reports) + done.stderr
        if done.returncode == 3:
            wrong.append(f"{library.name} has no fault called {fault!r}")
        elif words and (done.returncode == 0 or words not in said):
            wrong.append(f"{fault!r} was not reported (status {done.returncode}, no {words!r} in: {said[-400:]!r})")
        elif not words and (done.returncode or said):
            wrong.append(f"reported though nothing is wrong (status {done.returncode}): {said[-2000:]}")
    return wrong


def count(junit: Path) -> dict[str, int]:
    """Tests, failures and skips of a run; nothing where it was ended before it could say."""
    if not junit.exists():
        return {}
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}


def parallel_regions() -> set[str]:
    """The place of each `omp parallel` of the kernels, as "csrc/cpu/file:line"."""
    return set(_regions(ROOT / "csrc" / "cpu"))


def _regions(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.suffix in {".cpp", ".h"}:
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if re.match(r"\s*#pragma omp parallel\b", line):
                    yield f"{path.relative_to(ROOT)}:{number}"


def regions_run(folder: Path) -> dict[str, set[int]]:
    """By place the numbers of threads, two or more, that a region has run on."""
    ran: dict[str, set[int]] = {}
    for file in folder.glob("regions-*"):
        for line in file.read_text("utf-8").splitlines():
            place, threads, _ = line.rsplit(" ", 2)
            if int(threads) > 1:
                relative = place[place.rindex("csrc/cpu/") :] if "csrc/cpu/" in place else place
                ran.setdefault(relative, set()).add(int(threads))
    return ran


def compiler(build: Build) -> str:
    """The compiler's name and version, as it says them."""
    said = subprocess.run([build.compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0]


def sanitize(
    build: Build, jobs: int, pytest_args: Sequence[str], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Make the build and test it; its figures, with "problems": what was found. keep: gets the figures after each run."""
    began = time.monotonic()
    build.environment()  # what is missing is told before minutes of building
    print(f"== {build.name}: building {os.path.relpath(build.folder, ROOT)}", flush=True)
    build.make(jobs)
    build.reports.mkdir(parents=True, exist_ok=True)
    for left in build.reports.iterdir():
        left.unlink()
    figures: dict[str, Any] = {"compiler": compiler(build), "build_s": round(time.monotonic() - began)}
    print(f"== {build.name}: {len(build.faults)} planted faults", flush=True)
    problems = self_test(build, build.modules / "planted.so", build.environment(), 2)
    figures |= {"planted": len(build.faults), "runs": [], "problems": problems}
    for one in build.runs if not problems else ():
        title = f"{build.name}, {one.isa}, {one.threads} threads"
        print(f"== {title}", flush=True)
        started, junit = time.monotonic(), build.reports / "junit.xml"
        junit.unlink(missing_ok=True)
        arguments = [f"--junitxml={junit}", *one.tests, *pytest_args]
        arguments += [f"--deselect={test}" for test in build.deselected]
        status, said = watched(build, one.isa, one.threads, arguments)
        ran = count(junit)
        found = max(said.count("SUMMARY:"), int(bool(said)))
        minutes = round((time.monotonic() - started) / 60, 1)
        row = {"isa": one.isa, "threads": one.threads, "minutes": minutes, **ran, "reports": found, "status": status}
        figures["runs"].append(row)
        if said:
            print(said, flush=True)
            problems.append(f"{title}: {found} reports, above")
        if status or not ran.get("tests"):
            problems.append(f"{title}: pytest ended with status {status}")
        keep(figures)
    if build.sanitize == "thread" and not problems and not pytest_args:
        threads = regions_run(build.reports)
        figures["regions"] = {place: sorted(threads.get(place, ())) for place in sorted(parallel_regions())}
        problems += [
            f"{place}: no test ran this region on two threads" for place, on in figures["regions"].items() if not on
        ]
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """0 where nothing was found; 1 otherwise, and where a tool is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.sanitizers.run", description=__doc__.splitlines()[0])
    parser.add_argument("builds", nargs="*", metavar="BUILD", help=f"only these of {', '.join(BUILDS)}")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default 2; each takes up to 1 GB)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, beside those of another build")
    parser.add_argument("--pytest", default="", help='more arguments of pytest, as in "-k lstm"')
    args = parser.parse_args(argv)
    if unknown := set(args.builds) - set(BUILDS):
        parser.error(f"no build is called {', '.join(sorted(unknown))}; there are {', '.join(BUILDS)}")
    figures = {}
    try:
        for name in args.builds or BUILDS:
            part = Part(name, "tests.sanitizers.run", args.json) if args.json else None
            keep = partial(part.keep, complete=False) if part else lambda _: None
            figures[name] = sanitize(BUILDS[name], args.jobs, args.pytest.split(), keep)
            if part:
                part.keep(figures[name], complete=True)
    except (Missing, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    problems = [problem for found in figures.values() for problem in found["problems"]]
    for name, found in figures.items():
        tests = sum(run.get("tests", 0) - run.get("skipped", 0) for run in found["runs"])
        print(f"{name}: {found['planted']} planted faults, {tests} tests in {len(found['runs'])} runs")
    print("\n".join(problems) or "nothing was found")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
