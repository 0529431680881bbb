"""The graphs compute what the models do: both in float64, where a wrong layout cannot hide behind rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pycap import backends
from pycap.autograd import Tensor, no_grad
from pycap.captioner import Captioner
from pycap.data.vocab import Vocabulary
from pycap.export.captioners import decoder, encoder, state_sizes
from tests.export.models import VOCABULARY, save

NEVER = [Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]
# 2x2 is the smallest last map that shows an fc6 read in the wrong order.
NETWORKS = [
    *(("nic", cnn, 64, 0.125, False) for cnn in ("vgg11", "vgg13", "vgg16", "vgg19")),
    *((model, cnn, 32, 0.5, False) for model in ("nic", "merge") for cnn in ("vgg_micro", "vgg_small6")),
    *((model, "vgg_micro", 32, 0.5, True) for model in ("nic", "merge")),
]


def in_float64(model: Any) -> Any:
    """The same ONNX model with float64 in the place of float32."""
    from onnx import TensorProto, numpy_helper

    def wide(tensor: Any) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))

    for weight in model.graph.initializer:
        wide(weight)
    for node in model.graph.node:
        for attribute in node.attribute:
            wide(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = TensorProto.DOUBLE
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def logprobs(logits: np.ndarray) -> np.ndarray:
    z = logits.copy()
    z[:, NEVER] = -np.inf
    z -= z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """float64 rounds by 1e-16 of a number, sums of up to 1,152 products by 1e-14 at most, in up to 24 layers."""
    assert found.shape == expected.shape and found.dtype == np.float64
    assert np.array_equal(np.isneginf(found), np.isneginf(expected))
    there = np.isfinite(expected)
    assert np.abs(found[there] - expected[there]).max() <= 1e-12 * np.abs(expected[there]).max()


@pytest.mark.filterwarnings("ignore:divide by zero")  # onnx's LogSoftmax takes the logarithm of what is never said
@pytest.mark.parametrize(("kind", "cnn", "size", "width", "blind"), NETWORKS)
def test_in_float64_they_are_the_model(tmp_path, kind, cnn, size, width, blind):
    from onnx.reference import ReferenceEvaluator

    captioner = Captioner.load(
        save(tmp_path / "saved", model=kind, cnn=cnn, image_size=size, cnn_width=width, blind=blind)
    )
    model, spec = captioner.model, captioner.spec
    see = ReferenceEvaluator(in_float64(encoder(model, spec).model))
    step = ReferenceEvaluator(in_float64(decoder(model).model))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, spec.crop, spec.crop, 3), np.uint8)
    scale, shift = 1 / np.array(spec.std), -np.array(spec.mean) / np.array(spec.std)
    normalised = images * scale.astype(np.float32).astype(np.float64) + shift.astype(np.float32)
    with backends.use("reference"), no_grad():
        for parameter in model.named_parameters().values():
            parameter.data = parameter.data.astype(np.float64)
        state = model.begin(Tensor(normalised))
        found = see.run(None, {"images": images})
        names = list(state_sizes(model))
        assert names == list(vars(state))
        for part, array in zip(names, found, strict=True):
            close(array.astype(np.float64), getattr(state, part).data.astype(np.float64))
        for words in (np.full(3, VOCABULARY.START), *rng.integers(0, len(VOCABULARY), (3, 3))):
            logits, state = model.advance(state, words.astype(np.int32))
            said, *found = step.run(None, {"words": words, **dict(zip(names, found, strict=True))})
            close(said, logprobs(logits))
            for part, array in zip(names, found, strict=True):
                close(array.astype(np.float64), getattr(state, part).data.astype(np.float64))


def test_images_make_a_difference_where_the_captioner_is_not_blind(tmp_path):
    """The comparison above would hold for a graph and a model that both saw nothing."""
    from onnx.reference import ReferenceEvaluator

    captioner = Captioner.load(save(tmp_path / "saved"))
    see = ReferenceEvaluator(encoder(captioner.model, captioner.spec).model)
    h, _ = see.run(None, {"images": np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8)})
    assert np.ptp(h, axis=0).max() > 0.01
