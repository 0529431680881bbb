"""Finds the fastest block sizes of the GPU kernels on this GPU: python -m benchmarks.tune [--kernel conv2d.] [--seconds 300].

For each row of the configuration table that the cases of benchmarks.gpu use, its neighbours (block sizes halved and
doubled, other numbers of warps and stages) are compiled, checked against the row's own results, and timed on those
cases. A neighbour that is at least two per cent faster replaces the row in kernels/tuned.json, with where it was measured.
The form of each convolution and of each LSTM, Triton's or CUDA's, is chosen first.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import gpu_cases, gpu_lstm, gpu_pycap, machine
from benchmarks.cases import Case, select
from benchmarks.gpu import DISTRIBUTIONS, Machine
from benchmarks.gpu_turns import timed
from benchmarks.sides import distance
from pycap import backends, cubins
from pycap.backends.triton import launching
from pycap.device import DeviceError

_rows, _launch, _store, _compile = (launching.kernel_module(n) for n in ("_rows", "_launch", "_store", "_compile"))
Row = launching.Row

#: How far a neighbour's result may be from the row's own: the same sums in another order, rounded to the case's type.
ROUNDING = {"bfloat16": 1e-2, "float16": 2e-3, "tf32": 1e-3, "float32": 1e-5}
GAIN = 1.02


def neighbours(row: Row) -> Iterator[Row]:
    """Rows near `row`: each block size halved, kept or doubled (at most two of them changed), warps and stages around it."""
    sizes = [
        name
        for name, value in row.blocks.items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 8
    ]
    for factors in itertools.product((1, 2, 0.5), repeat=len(sizes)):
        if sum(factor != 1 for factor in factors) > 2:
            continue
        blocks = {**row.blocks, **{name: int(row.blocks[name] * f) for name, f in zip(sizes, factors, strict=True)}}
        if any(blocks[name] < 16 for name in sizes):
            continue
        for warps, stages in ((4, 2), (4, 3), (4, 4), (8, 2), (8, 3), (8, 4)):
            made = replace(row, blocks=blocks, warps=warps, stages=stages)
            if (made.blocks, made.warps, made.stages) != (row.blocks, row.warps, row.stages):
                yield made


@dataclass
class Use:
    """What a row is used for: cases, and the forms in which their launches were compiled."""

    kernel: Any
    row: Row
    cases: list[Case] = field(default_factory=list)
    forms: set[Any] = field(default_factory=set)


def uses(cases: Sequence[Case], where: Machine) -> list[Use]:
    """Which rows of which kernels the cases use, found by running each once."""
    found: dict[tuple[str, int], Use] = {}
    prepare = launching.Kernel._prepare
    current = cases[0] if cases else None

    def recording(
        self: Any, machine_: Any, device: int, row: Row, aligned: bool, arguments: Any, constants: Any
    ) -> Any:
        types = tuple(sorted(self.bind(arguments).items()))
        use = found.setdefault((self.name, id(row)), Use(self, row))
        use.forms.add((types, tuple(sorted(constants.items())), aligned))
        if current not in use.cases:
            use.cases.append(current)
        return prepare(self, machine_, device, row, aligned, arguments, constants)

    launching.Kernel._prepare = recording
    try:
        for current in cases:
            for kernel in _launch.KERNELS.values():
                kernel._ready.clear()  # so that each launch of the case is prepared, and seen
            gpu_pycap.prepare(current, gpu_cases.arrays(current, where.xp), where.xp, backends.kernels).run()
            where.synchronize()
    finally:
        launching.Kernel._prepare = prepare
    return list(found.values())


def compile_ahead(work: tuple[str, Row, Any, str]) -> str:
    """Compile one form of a kernel with a row into the user's cache; "" or why it will not do (another process)."""
    name, row, (types, constants, aligned), arch = work
    cubins.variants(arch, name)  # declares the kernels
    variant = _launch.Variant(_launch.KERNELS[name], row, types, constants, aligned)
    if _store.load(variant.key(arch)) is not None:
        return ""
    try:
        compiled, _ = variant.compile(arch)
    except (RuntimeError, ValueError) as error:
        return str(error)
    if _compile.resources(compiled.cubin)["STACK"]:
        return "it needs stack"
    if compiled.shared > cubins.SHARED.get(arch, cubins.SHARED["sm_80"]):
        return f"{compiled.shared} bytes of shared memory"
    _store.save(variant.key(arch), compiled)
    return ""


def seconds_of(use: Use, row: Row, where: Machine, expected: list[Any] | None) -> tuple[float, list[Any]]:
    """(total of the medians over a use's cases, their results). Infinite where a result is not the expected one."""
    total, results = 0.0, []
    launching.forced[use.kernel.name] = row
    try:
        for number, case in enumerate(use.cases):
            work = gpu_pycap.prepare(case, gpu_cases.arrays(case, where.xp), where.xp, backends.kernels)
            outputs = {key: where.host(array) for key, array in work.outputs(work.run()).items()}
            results.append(outputs)
            if expected is not None and not distance(outputs, expected[number]) <= ROUNDING[case.dtype]:
                return float("inf"), results
            turn = timed(work.run, where.synchronize)
            calls = max(1, min(50, int(0.02 / max(turn(2)[0], 1e-6))))
            total += float(np.median([turn(calls)[0] for _ in range(3)]))
    finally:
        del launching.forced[use.kernel.name]
    return total, results


def best_of(
    use: Use, candidates: Sequence[Row], measure: Callable[[Row, list[Any] | None], tuple[float, list[Any]]]
) -> tuple[Row, float, float]:
    """(the fastest row, its seconds, the present row's). The present one stays unless another gains two per cent.

    measure(row, expected results or None): as `seconds_of`.
    """
    own, expected = measure(use.row, None)
    best, fastest = use.row, own
    for row in candidates:
        seconds, _ = measure(row, expected)
        if seconds < fastest and seconds * GAIN < own:
            best, fastest = row, seconds
    return best, fastest, own


@dataclass(frozen=True)
class Forms:
    """A choice among forms: the pseudo-kernel in the table, of which op's cases, the form that stays unless another is
    faster, the others, and the rows' sizes by the names of the cases' shapes."""

    name: str
    op: str
    default: str
    others: tuple[str, ...]
    sizes: dict[str, str]


FORMS = (
    Forms("conv2d.form", "conv2d", "portable", ("hopper", "cuda"), {"h": "H", "c": "C", "k": "K"}),
    Forms("lstm.form", "lstm", "step", ("persistent", "cooperative", "cluster"), {"hidden": "H", "n": "N"}),
    Forms("lstm_cell.form", "lstm_cell", "portable", ("cuda",), {"hidden": "H", "n": "N"}),
)
_HOPPER_ONLY = frozenset(("hopper", "cluster"))
_BY_CUDA = frozenset(("cuda", "cooperative", "cluster"))
#: For which types rows are that cases of a dtype decide; where none is float16, those of bfloat16 decide for it too.
_DECIDES = {"bfloat16": ("bf16",), "float16": ("fp16",), "float32": ("fp32",), "tf32": ("fp32",)}


def form_rows(
    forms: Forms, cases: Sequence[Case], arch: str, cuda: bool,
    measure: Callable[[Use, Row, list[Any] | None], tuple[float, list[Any]]],
) -> list[Row]:  # fmt: skip
    """Rows that name, for each type and sizes among the cases, the fastest form; none where there are no cases.

    cuda: whether the CUDA backend can serve. measure(use, row, expected): as `seconds_of`.
    """
    groups: dict[tuple[tuple[str, ...], tuple[int, ...]], list[Case]] = {}
    own = [case for case in cases if case.op == forms.op and case.shape.get("C") != 3]
    for case in own:
        types = _DECIDES[case.dtype]
        if types == ("bf16",) and all(other.dtype != "float16" for other in own):
            types = ("bf16", "fp16")
        groups.setdefault((types, tuple(case.shape[of] for of in forms.sizes.values())), []).append(case)
    default = Row({"FORM": forms.default})
    fit = [f for f in forms.others if (f not in _HOPPER_ONLY or arch == "sm_90") and (f not in _BY_CUDA or cuda)]
    rows = [replace(default, upto={"c": 3})] if forms.op == "conv2d" and groups else []  # which no case measures
    for (types, sizes), chosen in sorted(groups.items()):
        use = Use(SimpleNamespace(name=forms.name), default, chosen)
        tried = [Row({"FORM": form}) for form in fit]
        best, fastest, present = best_of(use, tried, lambda row, expected, use=use: measure(use, row, expected))
        upto = dict(zip(forms.sizes, sizes, strict=True))
        print(
            f"{forms.name} {types[0]} {upto}: {best.blocks['FORM']}, {present / fastest:.2f}x {forms.default}",
            flush=True,
        )
        rows.append(replace(best, types=types, upto=upto))
    return [*rows, default] if groups else []


def main(argv: Sequence[str] | None = None) -> int:
    """Tune what the command line names; returns 1 where there is nothing to tune."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__, allow_abbrev=False)
    parser.add_argument("--kernel", default="", metavar="PREFIX", help="kernels whose names begin so")
    parser.add_argument("--op", default="", metavar="OP,...", help="on the cases of these operations")
    parser.add_argument("--case", default="", metavar="TEXT", help="on cases whose id holds this")
    parser.add_argument("--batch", type=int, default=64, help="images (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, help="begin no row after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--output", type=Path, default=_rows.TUNED, metavar="FILE")
    own = parser.parse_args(argv)
    try:
        backends.select("cuda", "triton")  # without which there is nothing to tune
        backends.select("cuda", "auto")
    except (backends.BackendError, DeviceError) as error:
        parser.error(str(error))
    where, arch = Machine(False), _launch.arch()
    about = {"hardware": where.name, "commit": machine.commit(), "versions": machine.versions(DISTRIBUTIONS)}
    registry = gpu_cases.registry(own.batch)
    known = {case.id for case in registry}
    registry += [case for case in gpu_lstm.registry() if case.id not in known]
    cases = select(registry, ops=[op for op in own.op.split(",") if op], name=own.case)
    begin = time.perf_counter()
    unfit = backends.available("cuda", "cuda")
    if unfit:
        print(f"without the forms of the CUDA backend: {unfit}")
    for forms in FORMS:
        if not forms.name.startswith(own.kernel) or time.perf_counter() - begin > own.seconds:
            continue
        rows = form_rows(forms, cases, arch, not unfit, lambda *a: seconds_of(a[0], a[1], where, a[2]))
        if rows:
            _rows.write_tuned(forms.name, arch, rows, about, own.output)
            launching.kernel_module("configs").ROWS[forms.name][arch] = tuple(rows)
    chosen = [use for use in uses(cases, where) if use.kernel.name.startswith(own.kernel)]
    for use in chosen:
        if time.perf_counter() - begin > own.seconds:
            print(f"{own.seconds:.0f} s are over; {use.kernel.name} and the rest stay as they are")
            break
        tried = list(neighbours(use.row))
        work = [(use.kernel.name, row, form, arch) for row in tried for form in sorted(use.forms)]
        with ProcessPoolExecutor(own.jobs) as pool:
            said = list(pool.map(compile_ahead, work, chunksize=4))
        failed = {id(row) for (_, row, _, _), problem in zip(work, said, strict=True) if problem}
        fit = [row for row in tried if id(row) not in failed]
        best, fastest, before = best_of(use, fit, lambda row, expected, use=use: seconds_of(use, row, where, expected))
        gain = f"{before / fastest:.2f}x with {best.blocks}, {best.warps} warps, {best.stages} stages"
        print(f"{use.kernel.name} {use.row.blocks}: {len(fit)} of {len(tried)} neighbours, {gain}", flush=True)
        if best is not use.row:
            table = _rows.find(launching.kernel_module("configs").ROWS, use.kernel.name, arch)
            rows = [best if row is use.row else row for row in table]
            _rows.write_tuned(use.kernel.name, arch, rows, about, own.output)
            launching.kernel_module("configs").ROWS[use.kernel.name][arch] = tuple(rows)
    return 0 if chosen else 1


if __name__ == "__main__":
    sys.exit(main())
