"""The joint model on the GPU backend's kernels, in Triton's interpreter: losses, gradients and captions as elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pycap import backends, ops
from pycap.decode import beam_search
from pycap.device import bfloat16
from pycap.models.nic import NIC
from pycap.optim import SGD, ParamGroup
from tests.models.test_nic import batch, small_nic

pytestmark = pytest.mark.triton


def _trained(backend: str, steps: int, dtype: Any = np.float32) -> tuple[list[float], NIC, dict[str, np.ndarray]]:
    """Losses of some steps on one batch, with dropout; the model after them, and the gradients of the first."""
    images, tokens = batch()
    first: dict[str, np.ndarray] = {}
    with backends.use(backend):
        model = small_nic(drop=0.25)
        optimizer = SGD([ParamGroup("all", model.named_parameters(), lr=0.1)])
        losses = []
        for _ in range(steps):
            loss = model.loss(ops.cast(images, dtype), tokens)
            loss.backward()
            first = first or {name: p.grad.copy() for name, p in model.named_parameters().items()}
            optimizer.step()
            losses.append(loss.item())
    return losses, model, first


def test_reference_cpp_and_triton_learn_alike() -> None:
    """Five steps: float32 sums in three orders, so losses apart by rounding only, and gradients as far as rounding goes."""
    losses, _, gradients = _trained("reference", 5)
    assert losses[-1] < 0.97 * losses[0]
    for backend in ("triton", "cpp"):
        if backends.available(backend):
            pytest.skip(f"backend {backend}: {backends.available(backend)}")
        others, _, mine = _trained(backend, 5)
        assert others == pytest.approx(losses, rel=1e-5), backend
        for name, gradient in gradients.items():
            assert np.abs(mine[name] - gradient).max() <= 2e-5 * np.abs(gradient).max(), f"{backend}: {name}"


def test_triton_learns_in_bfloat16_as_the_reference_does() -> None:
    losses, _, _ = _trained("reference", 3, bfloat16())
    others, _, mine = _trained("triton", 3, bfloat16())
    assert others == pytest.approx(losses, rel=2e-3)  # an image's embedding is rounded to 8 bits, wherever a sum falls
    assert all(np.isfinite(gradient).all() for gradient in mine.values())


def test_captions_are_the_same() -> None:
    images, _ = batch()
    found = {}
    for backend in ("reference", "triton"):
        with backends.use(backend):
            model = small_nic()
            model.train(False)
            how = {"beam_size": 3, "max_length": 5, "start": 1, "end": 2, "suppress": (0, 1)}
            found[backend] = beam_search(model, images, **how)
    for ours, theirs in zip(found["triton"], found["reference"], strict=True):
        assert [h.ids for h in ours] == [h.ids for h in theirs]
        assert [h.logprob for h in ours] == pytest.approx([h.logprob for h in theirs], abs=1e-5)
