"""How an op or a model is compared with PyTorch: same inputs, outputs and gradients against PyTorch's in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from pycap.autograd import Tensor


def close(what: str, ours: Any, peer: Any, exact: Any, slack: float = 0.0) -> None:
    """Assert that our float32 array errs at most twice as much as PyTorch's float32 one, both judged by its float64 one.

    That is FlashAttention's rule, with the largest error of the whole array. Added to it: 1e-6 of the largest value (8 units in
    the last place of float32), because PyTorch may happen to be exact, and `slack` of it, for algorithms that are known to
    round more.
    """
    ours, peer, exact = (np.asarray(a, np.float64) for a in (ours, peer, exact))
    assert ours.shape == exact.shape, f"{what}: shape {ours.shape}, PyTorch's is {exact.shape}"
    if not exact.size:
        return
    error, allowed = np.abs(ours - exact).max(), 2 * np.abs(peer - exact).max() + (1e-6 + slack) * np.abs(exact).max()
    assert error <= allowed, (
        f"{what}: off by {error:.3g}, allowed {allowed:.3g} (largest value {np.abs(exact).max():.3g})"
    )


def compare(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    inputs: Mapping[str, np.ndarray],
    *,
    slack: float = 0.0,
) -> None:
    """Run both functions on `inputs` (passed by name) and compare every output and the gradient of every input.

    The functions return a tensor or a tuple of them; each output gets its own random upstream gradient. `theirs` takes
    arrays in our layouts and permutes them itself, so that its gradients come back in our layouts.
    """
    leaves = {name: Tensor(array.copy(), True) for name, array in inputs.items()}
    outputs = _tuple(ours(**leaves))
    rng = np.random.default_rng(99)
    seeds = [rng.standard_normal(o.shape).astype(np.float32) for o in outputs]
    values = [o.data.copy() for o in outputs]
    sum((o * Tensor(seed)).sum() for o, seed in zip(outputs, seeds, strict=True)).backward()
    peer_values, peer_gradients = _run_peer(theirs, inputs, seeds, torch.float32)
    exact_values, exact_gradients = _run_peer(theirs, inputs, seeds, torch.float64)
    assert len(values) == len(exact_values)
    for i, value in enumerate(values):
        close(f"output {i}", value, peer_values[i], exact_values[i], slack)
    for name, leaf in leaves.items():
        assert leaf.fresh, f"no gradient was written for {name}"
        close(f"gradient of {name}", leaf.grad, peer_gradients[name], exact_gradients[name], slack)
        assert np.array_equal(leaf.data, inputs[name]), f"{name} was modified"


def _tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _run_peer(
    theirs: Callable[..., Any], inputs: Mapping[str, np.ndarray], seeds: list[np.ndarray], dtype: torch.dtype
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    leaves = {name: torch.tensor(array, dtype=dtype, requires_grad=True) for name, array in inputs.items()}
    outputs = _tuple(theirs(**leaves))
    sum((o * torch.tensor(seed, dtype=dtype)).sum() for o, seed in zip(outputs, seeds, strict=True)).backward()
    return [o.detach().numpy() for o in outputs], {name: leaf.grad.numpy() for name, leaf in leaves.items()}


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Float32 numbers from N(0, scale^2)."""
    return (rng.standard_normal(shape) * scale).astype(np.float32)
