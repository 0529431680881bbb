"""The LSTM over a sequence on a GPU: which batches are timed beside cuDNN's, in which of pycap's forms, and what a step takes.

A step's time is the difference between two long sequences over the steps between them: launches, the first reading of the
weights and whatever else is done once a call drop out, and the GPU's work is long enough there to hide the host's. What is
left is the recurrence and its share of the products over all steps, of both sides alike. All of it (forms, PyTorch, each
length) is timed in the same turns.
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
#: Calls of 50 us to a few ms, by fifteen sides.
BUDGET = Budget(rounds=5, most_rounds=9, seconds=0.5, turn_s=0.01)


def registry(rehearsal: bool = False) -> list[Case]:
    """Every sequence; for a rehearsal on a CPU small ones, of the least size that every form takes."""
    sequence = gpu_cases.sequence
    if rehearsal:
        whole = [sequence(8, 64, dtype, MODES[1], 2) for dtype in DTYPES]
        return [*whole, *(sequence(8, 64, dtype, MODES[1], 2, packed=True) for dtype in DTYPES[1::2])]
    return [sequence(n, h, dtype, mode, packed=p) for n, h, p in BATCHES for dtype in DTYPES for mode in MODES]


def spans(case: Case) -> tuple[int, int]:
    """The two lengths whose difference tells what a step takes; in a rehearsal short ones."""
    steps = case.shape["T"]
    return (5 * steps, 10 * steps) if steps >= 20 else (steps + 1, steps + 2)


def _side(name: str, steps: int) -> str:
    """A side that does a case at one of its `spans`."""
    return f"{name}, {steps} steps"


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
    for steps in (case.shape["T"], *spans(case)):
        made = replace(case, shape={**case.shape, "T": steps})
        arrays = gpu_cases.arrays(made, where.xp)
        works = {form: partial(form_work, made, arrays, where.xp, form) for form in FORMS}
        works |= {peer: partial(peer_work, made, arrays, peer) for peer in case.peers if peer in peers}
        sides |= works if made == case else {_side(name, steps): partial(_uncompared, w) for name, w in works.items()}
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
    return rows, any(name.partition(",")[0] in FORMS for name in found.failed)


def _uncompared(prepare: Callable[[], Work]) -> Work:
    """The work without its results, which would take longer to copy to the host than to make."""
    return Work(prepare().run, lambda _: {})


def steps_of(case: Case, samples: Mapping[str, Samples], form: str, peer: str) -> Row:
    """step_us, peer_step_us and step_ratio, as far as there are samples of both lengths."""
    row: Row = {}
    short, long = spans(case)
    for key, name in (("step_us", form), ("peer_step_us", peer)):
        ends = [samples[side].median for side in (_side(name, short), _side(name, long)) if side in samples]
        if len(ends) == 2:
            row[key] = 1e6 * (ends[1] - ends[0]) / (long - short)
    if len(row) == 2 and row["step_us"] > 0:
        row["step_ratio"] = row["peer_step_us"] / row["step_us"]
    return row


def _variant(case: Case, peer: str) -> str:
    from benchmarks.peers import torch_gpu

    return torch_gpu.lstm_path(case) if peer == "eager" else ""
