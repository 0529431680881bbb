"""The joint model on the CUDA backend, emulated: its own kernels, and Triton's for the rest, learn as the reference does."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap import backends
from pycap.decode import beam_search
from pycap.models.nic import NIC
from pycap.models.vgg import VGG
from pycap.optim import SGD, ParamGroup
from tests.models.test_nic import V, batch

pytestmark = pytest.mark.emu


def _model() -> NIC:
    """Sizes that the CUDA kernels take."""
    rng = np.random.default_rng(0)
    cnn = VGG("vgg_micro", 32, rng, width=0.25, fc_size=20)
    return NIC(cnn, V, rng, rnn_size=64, input_encoding_size=16)


@pytest.fixture
def called(monkeypatch):
    """The compiled functions that were called, while the backend is the CUDA one."""
    reason = backends.available("cuda")
    if reason:
        pytest.skip(f"backend cuda: {reason}")
    native = importlib.import_module("pycap.backends.cuda.native")
    call, names = native.call, set()
    monkeypatch.setattr(native, "call", lambda name, *arguments: names.add(name) or call(name, *arguments))
    return names


def test_it_learns_as_the_reference_does_and_captions_alike(called) -> None:
    images, tokens = batch(images=2)
    losses, gradients, captions = {}, {}, {}
    for backend in ("reference", "cuda"):
        with backends.use(backend):
            model = _model()
            optimizer = SGD([ParamGroup("all", model.named_parameters(), lr=0.1)])
            losses[backend] = []
            for _ in range(2):
                loss = model.loss(images, tokens)
                loss.backward()
                gradients.setdefault(backend, {n: p.grad.copy() for n, p in model.named_parameters().items()})
                optimizer.step()
                losses[backend].append(loss.item())
            model.train(False)
            how = {"beam_size": 2, "max_length": 4, "start": 1, "end": 2, "suppress": (0, 1)}
            captions[backend] = [[h.ids for h in hypotheses] for hypotheses in beam_search(model, images, **how)]
    assert losses["cuda"] == pytest.approx(losses["reference"], rel=1e-5)
    for name, expected in gradients["reference"].items():
        assert np.abs(gradients["cuda"][name] - expected).max() <= 2e-5 * np.abs(expected).max(), name
    assert captions["cuda"] == captions["reference"]
    assert {"lstm_forward", "lstm_backward", "lstm_cell_forward", "conv2d_backward_data", "conv2d_weight"} <= called, (
        called
    )
    assert any(name.startswith("conv2d_forward") for name in called), called
