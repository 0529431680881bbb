"""Ranks that begin with other weights are told apart before the first step."""

from __future__ import annotations

import numpy as np
import pytest

from pycap.distributed import DistributedError
from pycap.training.shares import require_same
from tests.lockstep import Lockstep, together


def arrays() -> dict[str, np.ndarray]:
    return {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "w.step": np.array(4)}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("w", np.arange(6, dtype=np.float32).reshape(3, 2)),
        ("w", np.array([[0, 1, 2], [3, 4, 5.0000005]], np.float32)),
        ("w.step", np.array(5)),
        ("v", np.zeros(1, np.float32)),
    ],
)
def test_the_first_that_differs_is_named_on_all(name: str, other: np.ndarray) -> None:
    def part(ranks: Lockstep) -> str:
        own = arrays() | ({name: other} if ranks.rank == 1 else {})
        with pytest.raises(DistributedError) as raised:
            require_same(ranks, own)
        return str(raised.value)

    said = together(3, part)
    assert len(set(said)) == 1 and said[0].startswith("rank 1 begins with other weights than rank 0")


def test_the_same_values_are_the_same_wherever_they_lie() -> None:
    def part(ranks: Lockstep) -> None:
        own = arrays()
        own["w"] = np.asfortranarray(own["w"]) if ranks.rank else own["w"]
        require_same(ranks, dict(reversed(own.items())) if ranks.rank else own)

    together(2, part)
