"""The LSTM over a sequence on a GPU: which batches are timed beside cuDNN's, in which of pycap's forms, and what a step takes.

A step's time is how much longer twice the steps take, over those added: launches, the first reading of the weights and
whatever else is done once a call drop out. What is left is the recurrence and its share of the products of all inputs, of
both sides alike. All of it (forms, PyTorch, both lengths) is timed in the same turns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import gpu_cases, gpu_pycap
from benchmarks.cases import HIDDEN, Case
from benchmarks.gpu_rows import against, rows_of
from benchmarks.gpu_turns import compete, peer_work
from benchmarks.results import Row
from benchmarks.sides import Unavailable, Work
from benchmarks.timing import Budget, Samples
from pycap import backends
from pycap.backends.triton import launching
from pycap.device import current

#: Forms of the recurrence, as the configuration table names them, and the backend that has each.
FORMS = {"step": "triton", "persistent": "triton", "cooperative": "cuda", "cluster": "cuda"}
DTYPES = ("float16", "bfloat16", "tf32", "float32")
#: (N, H, packed): cuDNN's persistent way serves float16 up to N = 128, unpacked.
BATCHES = (
    (64, HIDDEN, False), (128, HIDDEN, False), (320, HIDDEN, False), (64, HIDDEN, True), (320, HIDDEN, True),
    (64, 256, False), (64, 1024, False),
)  # fmt: skip
MODES = ("forward", "forward+backward")
#: Ends the names of the sides that take twice the steps.
LONGER = ", twice the steps"


def registry(rehearsal: bool = False) -> list[Case]:
    """Every sequence; for a rehearsal on a CPU small ones, of the least size that every form takes."""
    sequence = gpu_cases.sequence
    if rehearsal:
        whole = [sequence(8, 64, dtype, MODES[1], 2) for dtype in DTYPES]
        return [*whole, *(sequence(8, 64, dtype, MODES[1], 2, packed=True) for dtype in DTYPES[1::2])]
    return [sequence(n, h, dtype, mode, packed=p) for n, h, p in BATCHES for dtype in DTYPES for mode in MODES]


def longer(case: Case) -> Case:
    """The same with twice the steps."""
    return replace(case, shape={**case.shape, "T": 2 * case.shape["T"]})


def form_work(case: Case, arrays: gpu_cases.Arrays, xp: Any, form: str) -> Work:
    """pycap's work in this form and no other. Raises Unavailable."""
    backend = FORMS[form]
    reason = backends.available(backend, current())
    if not reason:
        passes = (False, True) if case.mode != "forward" else (False,)
        obstacle = importlib.import_module(f"pycap.backends.{backend}.lstm").obstacle
        work = gpu_pycap.prepare(case, arrays, xp, importlib.import_module(f"pycap.backends.{backend}"))
        reason = next(
            filter(None, (obstacle(form, backward, arrays["w_h"], case.shape["N"]) for backward in passes)), ""
        )
    if reason:
        raise Unavailable(reason)
    preferred = launching.Row({"FORM": form})

    def run() -> Any:
        launching.forced["lstm.form"] = preferred
        try:
            return work.run()
        finally:
            del launching.forced["lstm.form"]

    return Work(run, work.outputs)


def run_case(
    case: Case, where: Any, peers: Sequence[str], budget: Budget, ceilings: Mapping[str, float], about: Row
) -> tuple[list[Row], bool]:
    """The rows of a case, one a form and peer, and whether pycap failed in one. where: a `gpu.Machine`."""
    sides: dict[str, Callable[[], Work]] = {}
    for made, suffix in ((case, ""), (longer(case), LONGER)):
        arrays = gpu_cases.arrays(made, where.xp)
        sides |= {form + suffix: partial(form_work, made, arrays, where.xp, form) for form in FORMS}
        sides |= {peer + suffix: partial(peer_work, made, arrays, peer) for peer in case.peers if peer in peers}
    found = compete(sides, where, budget)
    rows = []
    for form, backend in FORMS.items():
        what = {**about, "backend": backend, "form": form}
        ours = found.samples.get(form)
        for row in rows_of(case, ours, against(case, found, form), found.reason(form), ceilings, what):
            peer = str(row.get("peer", "")).removeprefix("torch ")
            row |= steps_of(case, found.samples, form, peer)
            if peer in found.samples:
                row["peer_variant"] = _variant(case, peer)
            rows.append(row)
    return rows, any(name.removesuffix(LONGER) in FORMS for name in found.failed)


def steps_of(case: Case, samples: Mapping[str, Samples], form: str, peer: str) -> Row:
    """step_us, peer_step_us and step_ratio, as far as there are samples of both lengths."""
    row: Row = {}
    for key, name in (("step_us", form), ("peer_step_us", peer)):
        if name in samples and name + LONGER in samples:
            row[key] = 1e6 * (samples[name + LONGER].median - samples[name].median) / case.shape["T"]
    if len(row) == 2 and row["step_us"] > 0:
        row["step_ratio"] = row["peer_step_us"] / row["step_us"]
    return row


def _variant(case: Case, peer: str) -> str:
    from benchmarks.peers import torch_gpu

    return torch_gpu.lstm_path(case) if peer == "eager" else ""
