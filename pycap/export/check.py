"""What was written against the model itself: the same pixels and words through both, in ONNX Runtime where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pycap import ops
from pycap.autograd import no_grad
from pycap.captioner import Captioner
from pycap.data.vocab import Vocabulary
from pycap.export import ExportError
from pycap.export.captioners import IMAGES, WORDS, state_sizes
from pycap.models.captions import CaptionModel

_IMAGES, _WORDS = 2, 5
# Rounding differs by some 1e-6 of the largest number a layer, of which there are 20 at most; what a wrong layout gives
# differs by about 1.
_LIMIT = 1e-3


def compare(captioner: Captioner, folder: Path) -> str:
    """Run encoder.onnx and decoder.onnx in `folder` beside the model, over random pixels and the words that it chooses.

    Returns a sentence that says by how much the log-probabilities differ, or that ONNX Runtime is not there. ExportError where
    they differ by more than rounding.
    """
    if find_spec("onnxruntime") is None:
        return "not run: ONNX Runtime is not installed (pip install onnxruntime)"
    import onnxruntime

    def session(name: str) -> Any:
        return onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])

    spec, vocab, model = captioner.spec, captioner.vocab, captioner.model
    assert isinstance(model, CaptionModel)
    state = state_sizes(model)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_IMAGES, spec.crop, spec.crop, 3), np.uint8)
    words = np.full(_IMAGES, vocab.START)
    decoder, worst = session("decoder"), 0.0
    theirs = session("encoder").run(None, {IMAGES: images})
    with no_grad(), model.evaluating():
        ours = model.begin(ops.pixels(images, np.zeros((_IMAGES, 3), np.int32), spec.crop, spec.mean, spec.std))
        for _ in range(_WORDS):
            logits, ours = model.advance(ours, words.astype(np.int32))
            expected = logprobs(logits)
            found, *theirs = decoder.run(None, {WORDS: words, **dict(zip(state, theirs, strict=True))})
            said = np.isfinite(expected)
            if not np.array_equal(said, np.isfinite(found)):
                raise ExportError("the exported model gives other words no probability than pycap; report this")
            worst = max(worst, float(np.abs(found[said] - expected[said]).max()))
            words = expected.argmax(1)
    if not worst <= _LIMIT:
        raise ExportError(
            f"log-probabilities of the exported model differ from pycap's by {worst:.2g}, and rounding explains "
            f"{_LIMIT:g}; report this"
        )
    return (
        f"ONNX Runtime {onnxruntime.__version__}: log-probabilities of {_WORDS} words of {_IMAGES} random images differ from "
        f"pycap's by {worst:.1g} at most"
    )


def logprobs(logits: np.ndarray) -> np.ndarray:
    """float64 log-probabilities of logits [N,V], as a search takes them: PAD, START and UNK are never said."""
    z = logits.astype(np.float64)
    z[:, [Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]] = -np.inf
    z -= z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))
