"""Runs the tests of what is about to be timed: no speed is reported on a red test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.cases import Case

TESTS = Path(__file__).resolve().parents[1] / "tests"


def run_tests(paths: Iterable[str], tests: Path = TESTS) -> str:
    """Run test files, given relative to `tests`, in a process of their own; returns "" or what failed."""
    files = [str(tests / path) for path in paths]
    lost = [path for path in files if not Path(path).is_file()]
    if lost:
        return f"{', '.join(lost)}: no such test file; benchmarks/cases.py names it"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout[-2000:] + done.stderr[-1000:]


def failures(cases: Iterable[Case], tests: Path = TESTS) -> dict[str, str]:
    """The test files of these cases that fail, with what they say."""
    paths = list(dict.fromkeys(path for case in cases for path in case.tests))
    if not paths or not run_tests(paths, tests):
        return {}
    found = {path: run_tests([path], tests) for path in paths}  # which of them it was
    return {path: said for path, said in found.items() if said}
