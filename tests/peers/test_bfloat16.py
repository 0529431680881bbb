"""VGG in bfloat16 errs no more than PyTorch's autocast does: features and gradients, both judged by float64."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")
from torch import nn

from pycap.autograd import Tensor
from pycap.device import bfloat16
from pycap.models.vgg import VGG

pytestmark = pytest.mark.peers


def torch_vgg(model: VGG) -> tuple[nn.Sequential, list[tuple[nn.Module, str]]]:
    """A vgg_micro in PyTorch with the same weights, and its layers in the order of ours with their names."""
    names = [name.removesuffix(".weight") for name in model.named_parameters() if name.endswith(".weight")]
    layers: list[nn.Module] = []
    named: list[tuple[nn.Module, str]] = []
    for name in names:
        weight = torch.tensor(getattr(model, name).weight.data)
        if weight.ndim == 4:
            weight = weight.permute(0, 3, 1, 2)
            layer: nn.Module = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            layers += [layer, nn.ReLU(), nn.MaxPool2d(2)]
        else:
            if name == "fc6":  # ours reads the last map in the order H, W, C; made of one pixel, both are the same
                layers.append(nn.Flatten())
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layers += [layer, nn.ReLU()]
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(torch.tensor(getattr(model, name).bias.data))
        named.append((layer, name))
    return nn.Sequential(*layers), named


def peer_run(peer: nn.Sequential, named: list, x: np.ndarray, u: np.ndarray, autocast: bool) -> dict[str, np.ndarray]:
    """Features and gradients of <u, features>; in float64 unless `autocast`."""
    model = peer.float() if autocast else peer.double()
    model.zero_grad()
    dtype = torch.float32 if autocast else torch.float64
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(torch.tensor(x, dtype=dtype).permute(0, 3, 1, 2))
    y.backward(torch.tensor(u).to(y.dtype))
    made = {"fc7": y.detach().double().numpy()}
    for layer, name in named:
        g = layer.weight.grad.double()
        made[f"{name}.weight"] = (g.permute(0, 2, 3, 1) if g.ndim == 4 else g).numpy().copy()
        made[f"{name}.bias"] = layer.bias.grad.double().numpy().copy()
    return made


def test_features_and_gradients_err_no_more_than_autocast(backend: str) -> None:
    rng = np.random.default_rng(3)
    ours = VGG("vgg_micro", 16, rng, fc_size=96)
    ours.train(False)
    x = rng.standard_normal((16, 16, 16, 3)).astype(np.float32)
    y = ours(Tensor(x.astype(bfloat16())))
    u = rng.uniform(-1, 1, y.shape).astype(np.float32).astype(bfloat16())
    y.backward(u)
    got = {"fc7": y.data, **{name: p.grad for name, p in ours.named_parameters().items()}}
    peer, named = torch_vgg(ours)
    wide = u.astype(np.float32)
    plain = peer_run(peer, named, x, wide, True)
    exact = peer_run(peer, named, x, wide, False)
    assert plain.keys() == exact.keys() == got.keys()
    for name, truth in exact.items():
        size = np.linalg.norm(truth)
        error, allowed = (np.linalg.norm(run[name].astype(np.float64) - truth) / size for run in (got, plain))
        assert 0 < error <= 1.5 * allowed, f"{name}: off by {error:.3g} of its norm, PyTorch by {allowed:.3g}"
