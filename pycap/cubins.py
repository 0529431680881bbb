"""Compiles every GPU kernel ahead of time, without a GPU: `python -m pycap.cubins` writes kernels/cubins/sm_NN.zip.

A wheel that carries these files runs on a GPU with CuPy alone. With --check nothing is written: each variant is compiled,
and one that uses stack or more shared memory than its architecture has is an error.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pycap.backends import triton as host
from pycap.device import cpu_count

try:
    from pycap.kernels import _compile, _launch, _store, configs
except ImportError:  # a checkout that is not installed: kernels/ stands at its top
    from kernels import _compile, _launch, _store, configs

#: Machine code for sm_80 serves sm_86 and sm_89 as well, so its rows keep to the shared memory that those have.
SHARED = {"sm_80": _compile.SHARED_LIMIT["sm_86"], "sm_90": _compile.SHARED_LIMIT["sm_90"]}


def variants(arch: str, only: str = "", float16: bool = False) -> list[Any]:
    """Every declared variant of every kernel whose name begins with `only`, for an architecture.

    float16: those in bfloat16, and in float16 instead.
    """
    for module in pkgutil.iter_modules(host.__path__):
        importlib.import_module(f"{host.__name__}.{module.name}")
    kernels = (_launch.KERNELS[name] for name in sorted(_launch.KERNELS) if name.startswith(only))
    declared = [variant for kernel in kernels for variant in kernel.built_variants(configs.ROWS, arch)]
    if float16:
        declared = [
            replace(variant, types=tuple((name, kind.replace("bf16", "fp16")) for name, kind in variant.types))
            for variant in declared
            if "bf16" in dict(variant.types).values()
        ]
    return list({variant.describe(): variant for variant in declared}.values())  # rows may differ in sizes only


def coverage(arch: str) -> tuple[int, int]:
    """(how many of the declared variants lie prebuilt for an architecture, how many there are)."""
    built = _launch.code_arch(arch)
    if built not in SHARED:
        return 0, len(variants("sm_80"))
    declared = variants(built)
    there = _store.bundled(built)
    return sum(variant.key(built) in there for variant in declared), len(declared)


def build(arch: str, number: int, only: str, float16: bool) -> tuple[str, str, Any, dict[str, int], str]:
    """Compile one variant, by its place among `variants`: (description, key, code, resources, what is wrong or "")."""
    variant = variants(arch, only, float16)[number]
    try:
        compiled, ptx = variant.compile(arch)
    except (RuntimeError, ValueError) as error:
        return variant.describe(), "", None, {}, str(error)
    usage = _compile.resources(compiled.cubin)
    problems = []
    if usage["STACK"]:
        problems.append(f"{usage['STACK']} bytes of stack")
    if compiled.shared > SHARED[arch]:
        problems.append(f"{compiled.shared} bytes of shared memory; {SHARED[arch]} are there")
    ranks = [len(box) for box, _ in compiled.descriptors]
    packed = [entry[1:] for entry in _launch.layout(variant.kernel.parameters, compiled.scratch, ranks)]
    if packed != _compile.ptx_parameters(ptx):
        problems.append(f"parameters are packed as {packed}, the PTX has {_compile.ptx_parameters(ptx)}")
    return variant.describe(), variant.key(arch), compiled, usage, "; ".join(problems)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile; returns 1 where a variant does not compile or breaks a limit, and says which."""
    parser = argparse.ArgumentParser(prog="python -m pycap.cubins", description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90"], choices=sorted(SHARED), metavar="sm_NN")
    parser.add_argument("--only", default="", metavar="PREFIX", help="kernels whose names begin so")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--float16", action="store_true", help="check the variants in bfloat16 in float16 instead")
    parser.add_argument("--verbose", action="store_true", help="a line a variant")
    parser.add_argument("--jobs", type=int, default=cpu_count(), metavar="N")
    parser.add_argument("--output", type=Path, default=_store.HERE / "cubins", metavar="DIR")
    args = parser.parse_args(argv)
    if args.float16 and not args.check:
        parser.error("--float16 goes with --check: no precision of pycap uses it")
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # two thirds of the code's size, for profilers only
    failed = 0
    for arch in args.arch:
        start = time.monotonic()
        count = len(variants(arch, args.only, args.float16))
        made = {}
        with ProcessPoolExecutor(args.jobs) as pool:
            chosen = ([arch] * count, range(count), [args.only] * count, [args.float16] * count)
            results = pool.map(build, *chosen, chunksize=4)
            for number, (description, key, compiled, usage, problem) in enumerate(results, 1):
                if problem:
                    failed += 1
                    print(f"{arch} {description}: {problem}", file=sys.stderr)
                else:
                    made[key] = compiled
                if args.verbose and compiled:
                    print(f"{arch} {description}: {usage['REG']} registers, {compiled.shared} bytes shared")
                elif sys.stderr.isatty():
                    print(f"\r{arch}: {number} of {count}", end="", file=sys.stderr)
        size = sum(len(c.cubin) for c in made.values())
        if not args.check and not failed:
            path = args.output / f"{arch}.zip"
            _store.write_bundle(path, made)
            written = f", {path} has {path.stat().st_size / 1e6:.1f} MB"
        else:
            written = ""
        seconds = time.monotonic() - start
        print(f"{arch}: {len(made)} of {count} variants, {size / 1e6:.1f} MB of code in {seconds:.0f} s{written}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
