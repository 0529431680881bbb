"""Whether `make sanitize` would see it: faults put into the kernels one at a time, each of which its build must report.

python -m tests.sanitizers.mutants [address] [thread] [--json FILE] works on a copy of the sources, in build/.
Status 1 where a fault went unreported, or the code that it is put into has changed so that it is not found any more.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.results import Part
from tests.sanitizers.builds import BUILDS, ROOT, Build, Missing
from tests.sanitizers.run import compiler, reports, watched


class Mutant(NamedTuple):
    """A fault: in the file of csrc/cpu `old`, which stands there once, becomes `new`. tests: where it shows; isa: of which
    kernels."""

    what: str
    file: str
    old: str
    new: str
    tests: str
    isa: str = "v3"
    threads: int = 2


MEMORY = (
    Mutant(
        "an id below the padding's is looked up",
        "embedding.cpp",
        "if (ids[m] < 0)\n      memset",
        "if (ids[m] < -1)\n      memset",
        "tests/ops/test_embedding.py",
    ),
    Mutant(
        "a bias longer by one",
        "softmax_xent.cpp",
        "v < V; ++v) row[v] += b[v]",
        "v <= V; ++v) row[v] += b[v]",
        "tests/ops/test_softmax_xent.py",
    ),
    Mutant(
        "an optimiser's share goes on behind its tensor",
        "optim.cpp",
        "end = min64(mine.end - base, t[i].n)",
        "end = mine.end - base",
        "tests/ops/test_optimiser_steps.py",
    ),
    Mutant(
        "a row of the image read behind its end",
        "pool.cpp",
        "const Num* bottom = top + W * C;",
        "const Num* bottom = top + 2 * W * C;",
        "tests/ops/test_pool.py",
    ),
    Mutant(
        "patches with the pixel behind a row",
        "conv_im2col.cpp",
        "if (v >= 0 && v < s.W)\n          memcpy",
        "if (v >= 0 && v <= s.W)\n          memcpy",
        "tests/ops/test_conv2d.py",
    ),
    Mutant(
        "patches' scratch for one thread fewer",
        "conv_im2col.cpp",
        "(forward_floats(s, pool) * threads)",
        "(forward_floats(s, pool) * (threads - 1))",
        "tests/ops/test_conv2d.py",
    ),
    Mutant(
        "Winograd's scratch without its row of zeros",
        "winograd.cpp",
        "(zeros_floats(s) + tap_floats(p) + common",
        "(tap_floats(p) + common",
        "tests/ops/test_conv2d.py",
    ),
    Mutant(
        "the LSTM's scratch without the cells' list",
        "lstm.cpp",
        "(size_t)BackwardScratch(s, threads).cells + cells_bytes(s)",
        "(size_t)BackwardScratch(s, threads).cells",
        "tests/ops/test_lstm.py",
    ),
    Mutant(
        "the LSTM's columns one unit too far",
        "lstm.cpp",
        "memcpy(ht, h_prev + n * H + j0, sizeof(float) * nc);",
        "memcpy(ht, h_prev + n * H + j0, sizeof(float) * (nc + 1));",
        "tests/ops/test_lstm.py",
    ),
    Mutant(
        "dropout's last vector behind the row",
        "dropout.cpp",
        "for (; f + VL <= F; f += VL)",
        "for (; f < F; f += VL)",
        "tests/ops/test_dropout.py",
    ),
    Mutant(
        "an image's weights not filled up to four",
        "resize.cpp",
        "to(to), padded(rounded_up(to, 4))",
        "to(to), padded(to)",
        "tests/data/test_resize.py",
    ),
    Mutant(
        "a weight shifted by its whole width",
        "resize.cpp",
        "j % 2 ? 16 : 0",
        "j % 2 ? 32 : 0",
        "tests/data/test_resize.py",
    ),
    Mutant(
        "a weight too large for its integer",
        "resize.cpp",
        "(int32_t)(0.5 + weight * (1 << kBits))",
        "(int32_t)(0.5 + weight * 1e12)",
        "tests/data/test_resize.py",
    ),
)
THREADS = (
    Mutant(
        "no barrier between the LSTM's steps",
        "lstm.cpp",
        "memset(gt + gate * H, 0, sizeof(float) * nc);\n      }\n      if (grid.tn > 1) {\n#pragma omp barrier",
        "memset(gt + gate * H, 0, sizeof(float) * nc);\n      }\n      if (grid.tn > 1) {",
        "tests/kernels/test_threads.py",
    ),
    Mutant(
        "filters used while others still transform them",
        "winograd.cpp",
        "#pragma omp for schedule(static)\n    for (int64_t i = 0; i < ib * ob",
        "#pragma omp for schedule(static) nowait\n    for (int64_t i = 0; i < ib * ob",
        "tests/ops/test_conv2d.py",
    ),
    Mutant(
        "tiles multiplied while others still transform them",
        "winograd.cpp",
        "#pragma omp for schedule(dynamic, 8)",
        "#pragma omp for schedule(dynamic, 8) nowait",
        "tests/ops/test_conv2d.py",
    ),
    Mutant(
        "all threads add to all columns",
        "embedding.cpp",
        "split(E, omp_get_num_threads(), omp_get_thread_num(), 16)",
        "split(E, 1, 0, 16)",
        "tests/ops/test_embedding.py tests/kernels/test_threads.py",
    ),
    Mutant(
        "threads share one image's patches",
        "conv_im2col.cpp",
        "forward_floats(s, e.argmax) * omp_get_thread_num()",
        "forward_floats(s, e.argmax) * 0",
        "tests/ops/test_conv2d.py",
    ),
    Mutant(
        "shares of an update that overlap",
        "optim.cpp",
        "const Range mine = split(total, parts, id, 16);",
        "Range mine = split(total, parts, id, 16);\n    mine.end = min64(total, mine.end + 16);",
        "tests/ops/test_optimiser_steps.py tests/kernels/test_threads.py",
    ),
)
MUTANTS = {"address": MEMORY, "thread": THREADS}


def plant(source: Path, mutant: Mutant) -> tuple[Path, str]:
    """Put a fault into a copy of the sources; the file and what it held. Raises ValueError where it has no place any more."""
    path = source / "csrc" / "cpu" / mutant.file
    sound = path.read_text("utf-8")
    if sound.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {sound.count(mutant.old)} places for {mutant.what!r}: {mutant.old!r}")
    path.write_text(sound.replace(mutant.old, mutant.new), "utf-8")
    return path, sound


def copied(build: Build) -> Build:
    """The build of a copy of the sources, which may be changed."""
    made = replace(build, name=f"{build.name}-mutants")
    made = replace(made, source=made.folder / "source")
    for path in [ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*")]:
        to = made.source / path.relative_to(ROOT)
        if path.is_file() and not (to.is_file() and to.read_bytes() == path.read_bytes()):
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())  # now: what was built of other contents is older
    for path in made.source.rglob("*"):
        if path.is_file() and not (ROOT / path.relative_to(made.source)).exists():
            path.unlink()
    return made


_KINDS = re.compile(r"AddressSanitizer: ([\w-]+) on|ThreadSanitizer: ([\w ]+) \(|runtime error: (.+)")


def reported(build: Build, mutant: Mutant) -> str:
    """What the build calls a fault when its tests are run; empty where it says nothing."""
    _, said = watched(
        build, mutant.isa, mutant.threads, ["-x", *mutant.tests.split()], stdout=subprocess.DEVNULL, timeout=1200
    )
    found = _KINDS.search(said)
    return found[found.lastindex or 0] if found else ""


def hunt(build: Build, mutants: Sequence[Mutant], jobs: int) -> dict[str, Any]:
    """Each fault by itself; {"compiler", "reported": what is said of each, "problems": those of which nothing is said}."""
    made = copied(build)
    made.reports.mkdir(parents=True, exist_ok=True)
    reports(made.reports)
    figures: dict[str, Any] = {"compiler": compiler(build), "reported": {}, "problems": []}
    for mutant in mutants:
        path, sound = plant(made.source, mutant)
        try:
            made.make(jobs)
            said = reported(made, mutant)
        finally:
            path.write_text(sound, "utf-8")
        print(f"{mutant.what}: {said or 'NOT REPORTED'}", flush=True)
        figures["reported"][mutant.what] = said
        if not said:
            figures["problems"].append(f"{build.name}: {mutant.what}: not reported")
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitizers.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("builds", nargs="*", metavar="BUILD", help=f"only these of {', '.join(MUTANTS)}")
    parser.add_argument("--only", default="", metavar="WORDS", help="faults whose name has these words")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default 2)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, beside those of other programs")
    args = parser.parse_args(argv)
    if unknown := set(args.builds) - set(MUTANTS):
        parser.error(f"no build is called {', '.join(sorted(unknown))}; there are {', '.join(MUTANTS)}")
    problems = []
    for name in args.builds or MUTANTS:
        part = Part(f"{name}-mutants", "tests.sanitizers.mutants", args.json) if args.json else None
        try:
            figures = hunt(BUILDS[name], [mutant for mutant in MUTANTS[name] if args.only in mutant.what], args.jobs)
        except (Missing, ValueError, subprocess.CalledProcessError) as error:
            print(error, file=sys.stderr)
            return 1
        problems += figures["problems"]
        if part:
            part.keep(figures, complete=True)
    print("\n".join(problems) or "all were reported")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
