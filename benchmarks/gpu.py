"""Times pycap's GPU kernels beside PyTorch: python -m benchmarks.gpu [--op conv2d] [--json FILE].

Both work in one process, in turns, on the same memory of one GPU; a turn is timed from an idle device to an idle device.
--rehearse goes through everything on a CPU with small sizes: pycap in Triton's interpreter, PyTorch on its CPU kernels;
its times mean nothing, its comparison of results does.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_cases, gpu_lstm, gpu_pycap, machine
from benchmarks.cases import Case, select
from benchmarks.gpu_rows import against, rows_of, table
from benchmarks.gpu_turns import compete, measure_ceilings, peer_work
from benchmarks.results import Row, Writer
from benchmarks.sides import Work, sample
from benchmarks.timing import Budget, Samples
from pycap import backends
from pycap.backends import triton as primitives
from pycap.backends.triton import launching
from pycap.device import DeviceError

RESULTS = Path(__file__).parent / "results"
BUDGET = Budget(rounds=5, most_rounds=9, seconds=0.8, turn_s=0.04)
ONCE = Budget(rounds=1, most_rounds=1, seconds=0.0, turn_s=0.0)
DISTRIBUTIONS = ("pycap-captioning", "numpy", "cupy-cuda13x", "triton", "ml_dtypes", "torch", "nvidia-cudnn-cu13")


class Machine:
    """Where the cases run: its array module, its name, and how to wait for it."""

    def __init__(self, rehearsal: bool) -> None:
        if rehearsal:
            self.xp: Any = np
            self.name = f"rehearsal: {machine.cpu_name()}"
            self.synchronize: Callable[[], None] = lambda: None
            return
        import cupy

        self.xp = cupy
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.device.get_device_id())
        driver = cupy.cuda.runtime.driverGetVersion()
        self.name = f"{properties['name'].decode()}, CUDA {driver // 1000}.{driver % 1000 // 10}"
        self.synchronize = cupy.cuda.runtime.deviceSynchronize

    def host(self, array: Any) -> np.ndarray:
        """A sample of an array of pycap's or PyTorch's, in float32 on the host."""
        if hasattr(array, "detach"):
            array = array.detach().float().contiguous().cpu().numpy()
        elif hasattr(array, "get"):
            flat = array.reshape(-1)
            array = flat[:: max(1, -(-flat.size // (1 << 18)))].get()
            return array.astype(np.float32)
        return sample(array)


def run_case(
    case: Case, where: Machine, peers: Sequence[str], primitives: Any, budget: Budget
) -> tuple[Samples | None, dict[str, tuple[Samples, float] | str], str]:
    """(pycap's samples, by peer its samples and pycap's distance from its result or why there are none, pycap's error)."""
    arrays = gpu_cases.arrays(case, where.xp)
    sides: dict[str, Callable[[], Work]] = {"pycap": lambda: gpu_pycap.prepare(case, arrays, where.xp, primitives)}
    sides |= {name: partial(peer_work, case, arrays, name) for name in case.peers if name in peers}
    found = compete(sides, where, budget)
    return found.samples.get("pycap"), against(case, found, "pycap"), found.reason("pycap")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line describes. Returns 1 where pycap failed on a case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--op", default="", metavar="OP,...", help="only these operations")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose id holds this")
    parser.add_argument("--batch", type=int, default=64, help="images (default: %(default)s)")
    parser.add_argument("--peers", default="eager,compile", help="eager, compile (default: both)")
    parser.add_argument("--seconds", type=float, default=300.0, help="begin no case after so long")
    parser.add_argument(
        "--hopper", action="store_true", help="convolutions in their form for Hopper, whatever the table says"
    )
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--json", type=Path, default=RESULTS / "local" / "gpu.jsonl", metavar="FILE")
    own = parser.parse_args(argv)
    try:
        backends.select("cpu" if own.rehearse else "cuda", "triton")
    except (backends.BackendError, DeviceError) as error:
        parser.error(str(error))
    if own.hopper:
        launching.forced["conv2d.form"] = launching.Row({"FORM": "hopper"})
    where = Machine(own.rehearse)
    cases = gpu_cases.registry(2, 32) if own.rehearse else gpu_cases.registry(own.batch)
    known = {case.id for case in cases}
    cases += [case for case in gpu_lstm.registry(own.rehearse) if case.id not in known]
    chosen = select(cases, ops=[op for op in own.op.split(",") if op], name=own.case)
    peers = [p for p in own.peers.split(",") if p] if importlib.util.find_spec("torch") else []
    ceilings = {}
    if peers:
        ceilings = measure_ceilings(where.synchronize, *((256, 1 << 20) if own.rehearse else (8192, 1 << 30)))
        print(", ".join(f"{k} {v / 1e12:.3g} T{'B' if k == 'copy' else 'FLOP'}/s" for k, v in ceilings.items()))
    backend = "triton, Hopper form" if own.hopper else "triton"
    about: Row = {
        "backend": backend,
        "commit": machine.commit(),
        "hardware": where.name,
        "versions": machine.versions(DISTRIBUTIONS),
    }
    writer = Writer(own.json)
    begin, failures = time.perf_counter(), 0
    for case in chosen:
        if time.perf_counter() - begin > own.seconds:
            print(f"{own.seconds:.0f} s are over; the cases from {case.id} on were not run")
            break
        budget = ONCE if own.rehearse else gpu_lstm.BUDGET if case.op == "lstm" else BUDGET
        if case.op == "lstm":
            rows, failed = gpu_lstm.run_case(case, where, peers, budget, ceilings, about)
        else:
            ours, found, problem = run_case(case, where, peers, primitives, budget)
            rows, failed = rows_of(case, ours, found, problem, ceilings, about), bool(problem)
        failures += failed
        for row in rows:
            writer.add(row)
            print(table([row]).splitlines()[1], flush=True)
        gc.collect()
    writer.close()
    print(f"\n{table(writer.rows)}\nrows: {writer.jsonl} and {writer.csv.name}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
