"""The program in docs/export.md: pixels and captions are pycap's. Here onnx's own evaluator stands for ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import pycap
from pycap.data.images import PreprocessSpec, decode_image
from pycap.export.command import export_onnx
from tests.export.models import example, save


@pytest.fixture
def program(onnxruntime_standin):
    """The example as a module."""
    module = ModuleType("caption")
    exec(compile(example(), "docs/export.md", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(("resize", "crop"), [(40, 32), (37, 32), (64, 64)])
def test_its_pixels_are_those_of_pycap(program, images, resize, crop):
    top, left, _ = PreprocessSpec(resize=resize, crop=crop).centre()
    for file in images:
        expected = decode_image(file, resize)[top : top + crop, left : left + crop]
        assert np.array_equal(program.prepared(file, resize, crop), expected), file


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("nic", 5),
        ("merge", 5),
        ("nic", 9),
    ],  # in the last, a sentence that is not at its end yet overtakes three that are
)
def test_its_captions_are_those_of_pycap(program, images, tmp_path, kind, seed):
    source = save(tmp_path / "saved", model=kind, seed=seed)
    export_onnx(source, tmp_path / "onnx")
    theirs, ours = program.Captioner(Path(tmp_path / "onnx")), pycap.load(source)
    said = set()
    for beam in (1, 3):
        for file, caption in zip(images, ours.caption(images, beam_size=beam), strict=True):
            found = theirs.caption(file, beam)
            assert [text for text, _ in found] == [text for text, _ in caption.beams]
            # Sums of ten logarithms, from float32 that was rounded in another order; what it may be is held in tests/peers.
            assert [total for _, total in found] == pytest.approx([total for _, total in caption.beams], abs=1e-4)
            said |= {text for text, _ in found}
    lengths = {len(text.split()) for text in said}
    assert len(said) > 7 and len(lengths) > 2, "the captions are all alike: the test shows too little"
