"""Steps that stay on a device, on a GPU: the CPU's losses, recorded as graphs, on the arena, the same bits as launched."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from pycap import backends, memory
from pycap.distributed.nccl import ExchangeError
from pycap.graphs import Graphs
from tests.train.test_step import OPTIONS, batch, device_step, exchanging, trainer, trajectory, weights

pytestmark = pytest.mark.gpu


def cycled(made: Any) -> list[float]:
    """Three times the same four batches: launched, recorded, replayed."""
    return [loss for _ in range(3) for loss in trajectory(made, 4)]


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("tf32", 3e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_losses_are_the_cpus(options: dict[str, Any], precision: str, bound: float) -> None:
    said: list[str] = []
    with backends.use("reference"):
        expected = cycled(trainer(False, **options))
    with backends.use("auto", "cuda"):
        made = trainer(True, said.append, precision=precision, **options)
        assert cycled(made) == pytest.approx(expected, rel=bound)
        step = device_step(made)
        assert len(step.graphs) >= 2 and step.arena_bytes > 0 and said == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_steps_are_the_launched_ones_bit_for_bit(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    with backends.use("auto", "cuda"):
        recorded = trainer(True, precision=precision)
        expected = cycled(recorded)
        monkeypatch.setattr("pycap.training.step.Graphs", partial(Graphs, limit=0))
        with memory.poisoned():
            launched = trainer(True, lambda text: None, precision=precision)
            assert cycled(launched) == expected and len(device_step(launched).graphs) == 0
        assert weights(launched) == weights(recorded)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rank_alone_exchanges_with_itself(precision: str) -> None:
    """NCCL in recorded steps, as far as one GPU can show it: in float32 the same bits as without."""
    said: list[str] = []
    with backends.use("auto", "cuda"):
        expected = cycled(trainer(True, precision=precision))
        try:
            made = exchanging(trainer(True, said.append, precision=precision))
        except ExchangeError as error:
            pytest.skip(str(error))
        assert cycled(made) == (expected if precision == "fp32" else pytest.approx(expected, rel=1e-2))
        assert len(device_step(made).graphs) >= 2 and said == []
        made.close()


def test_the_host_runs_ahead() -> None:
    """Results are asked for when all steps have been launched: they are those of steps that were waited for one by one."""
    with backends.use("auto", "cuda"):
        expected = cycled(trainer(True))
        made = trainer(True)
        pending = [made.launch(batch(number)) for _ in range(3) for number in range(4)]
        assert [each.result().loss for each in pending] == expected
