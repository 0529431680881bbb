"""The benchmarks' two training sides do the same work: on every operation, at small shapes, their results agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")

from benchmarks import case_values, sides
from benchmarks.cases import Case, registry
from benchmarks.worker import Worker

pytestmark = pytest.mark.peers

drawn = case_values.arrays

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


#: Each side rounds a result to bfloat16 (8 significant bits): PyTorch the filters' gradients too, which ours keeps in float32.
BFLOAT16 = 2 * 2.0**-8


def away_from_kinks(case: Case) -> dict[str, np.ndarray]:
    """The case's arrays; what goes into a ReLU is made of small integers and a half, which float32 sums exactly in any order.

    Else each side rounds filters and sums in its own way, outputs near 0 fall on either side of the kink, and where masks
    differ gradients do by their full size (5 % in norm), though each is right for its own output.
    """
    found = drawn(case)
    if case.op in ("conv2d", "linear"):
        scale = 2 / found["w"].std()
        found |= {"x": np.rint(2 * found["x"]), "w": np.rint(scale * found["w"]), "b": np.rint(10 * found["b"]) + 0.5}
    return {name: np.ascontiguousarray(a, np.float32 if a.dtype.kind == "f" else a.dtype) for name, a in found.items()}


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.id)
def test_both_sides_come_to_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_values, "arrays", away_from_kinks)
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
    allowed = 1e-5 if case.dtype == "float32" else BFLOAT16
    assert sides.distance(outputs["pycap"], outputs["torch"]) < allowed


def test_ways_are_the_two_memory_formats() -> None:
    case = next(case for case in small_cases() if case.op == "conv2d")
    assert set(sides.load("torch", 1).prepare(case)) == {"contiguous", "channels_last"}
