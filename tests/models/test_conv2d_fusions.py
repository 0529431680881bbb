"""The joint model from bytes, its convolutions fused, learns as it does from normalised images without any fusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pycap import backends, ops
from pycap.device import bfloat16, to_host
from pycap.models.nic import NIC
from pycap.models.vgg import BLOCKS, VGG
from pycap.optim import SGD, ParamGroup
from pycap.testing.compare import TINY_BFLOAT16
from tests.models.test_nic import V, batch

MEAN, STD = (123.68, 116.779, 103.939), (58.4, 57.1, 57.4)


@pytest.fixture
def called(monkeypatch):
    """Counts calls of fusions, of whichever backend."""
    monkeypatch.setitem(BLOCKS, "vgg_two", ((8, 8), (16, 8)))  # the first layer does not pool, unlike vgg_micro's
    counts = dict.fromkeys(backends.FUSIONS, 0)

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> None:
            counts[name] += 1
            function(*arguments)

        return call

    def install(offered: bool) -> dict[str, int]:
        for name in backends.FUSIONS:
            function = getattr(backends.kernels, name)
            backends.kernels.__dict__[name] = counted(name, function) if offered else None  # `use` restores them
        return counts

    return install


def learn(
    backend: str, fused: bool, dtype: Any, called: Any, device: str = "cpu"
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of three steps, and the first one's gradients."""
    rng = np.random.default_rng(3)
    data, tokens = rng.integers(0, 256, (3, 20, 19, 3), np.uint8), batch()[1]
    crops = np.array([[0, 0, 0], [4, 3, 1], [2, 1, 0]], np.int32)
    first: dict[str, np.ndarray] = {}
    with backends.use(backend, device):
        called(fused)
        rng = np.random.default_rng(0)
        model = NIC(VGG("vgg_two", 16, rng, fc_size=20), V, rng, rnn_size=16, input_encoding_size=16)
        optimizer = SGD([ParamGroup("all", model.named_parameters(), lr=0.05)])
        losses = []
        for _ in range(3):
            images = ops.pixels(data, crops, 16, MEAN, STD, dtype)
            loss = model.loss(images if fused else images.normalised(), tokens)  # type: ignore[arg-type]
            loss.backward()
            first = first or {name: to_host(p.grad).copy() for name, p in model.named_parameters().items()}
            optimizer.step()
            losses.append(loss.item())
    return losses, first


BACKENDS = [
    "reference",
    pytest.param("triton", marks=pytest.mark.triton),
    pytest.param("cuda", marks=[pytest.mark.triton, pytest.mark.emu]),
    pytest.param("auto", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_it_learns_as_without_fusions(called: Any, backend: str, narrow: bool) -> None:
    device = "cuda" if backend == "auto" else "cpu"
    if device == "cpu" and backends.available(backend):
        pytest.skip(f"backend {backend}: {backends.available(backend)}")
    dtype = bfloat16() if narrow else np.float32
    expected, plain = learn("reference", False, dtype, called)
    truth = learn("reference", False, np.float32, called)[1]
    losses, ours = learn(backend, True, dtype, called, device)
    counts = called(False)
    assert counts == dict(
        zip(backends.FUSIONS, (9, 3, 3), strict=True)
    )  # three of four layers, in three steps; the first
    assert losses == pytest.approx(expected, rel=2e-3 if narrow else 1e-5)
    for name, gradient in truth.items():  # the rule of two in bfloat16; in float32 sums in other orders
        error, own = np.abs(ours[name] - gradient).max(), np.abs(plain[name] - gradient).max()
        assert error <= 2 * own + (TINY_BFLOAT16 if narrow else 2e-5) * np.abs(gradient).max(), name
