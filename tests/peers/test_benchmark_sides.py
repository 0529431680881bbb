"""The benchmarks' two training sides do the same work: on every operation, at small shapes, their results agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")

from benchmarks import sides
from benchmarks.cases import Case, registry
from benchmarks.worker import Worker

pytestmark = pytest.mark.peers

SMALL = {
    "conv2d": {"N": 2, "H": 13, "C": 16, "K": 32},
    "linear": {"M": 3, "I": 40, "O": 24},
    "pool": {"N": 2, "H": 6, "C": 8},
    "lstm": {"T": 4, "N": 3, "I": 16, "H": 16},
    "embedding": {"V": 50, "E": 16, "M": 30},
    "softmax_xent": {"M": 12, "H": 16, "V": 30},
}


def small_cases() -> list[Case]:
    """One case of each operation, mode and dtype, and the first convolution, whose images get no gradient."""
    found = {(c.op, c.mode, c.dtype, c.shape.get("C") == 3): c for c in registry() if c.op in SMALL}
    return [
        replace(case, shape={**SMALL[case.op], **({"C": 3} if first else {})})
        for (*_, first), case in sorted(found.items(), key=lambda item: item[1].id)
    ]


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.id)
def test_both_sides_come_to_the_same(case: Case) -> None:
    outputs = {}
    for name in ("pycap", "torch"):
        worker = Worker(sides.load(name, 1))
        try:
            worker.prepare(case)
        except sides.Unavailable as reason:
            pytest.skip(str(reason))
        outputs[name] = worker.outputs()
        worker.release()
    assert all(np.isfinite(array).all() and array.any() for array in outputs["torch"].values())
    allowed = 1e-5 if case.dtype == "float32" else 2e-2
    assert sides.distance(outputs["pycap"], outputs["torch"]) < allowed


def test_ways_are_the_two_memory_formats() -> None:
    case = next(case for case in small_cases() if case.op == "conv2d")
    assert set(sides.load("torch", 1).prepare(case)) == {"contiguous", "channels_last"}
