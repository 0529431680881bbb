"""Captioning on device "cuda", the stand-in for CuPy: steps of the search are replayed, and read nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycap
from pycap import backends, device, memory
from pycap.backends import weights_changed
from pycap.data.images import centre_crops
from pycap.models.nic import NIC
from tests import cupy_standin


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setattr(memory, "_scratch", {})
    monkeypatch.setenv("PYCAP_BACKEND", "reference")
    with backends.use("reference"):
        yield


def test_a_captioner_keeps_its_graphs_until_the_weights_change(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pycap.load(trained, device="cpu").spec
    images = np.random.default_rng(0).integers(0, 256, (3, 4, spec.resize, spec.resize, 3)).astype(np.uint8)
    crops = centre_crops(spec, 4)
    steps: list[int] = []
    reads: list[int] = []
    plain = NIC.advance

    def advance(self: NIC, state: Any, words: Any) -> Any:
        before = cupy_standin.ndarray.reads
        result = plain(self, state, words)
        steps.append(words.size)
        reads.append(cupy_standin.ndarray.reads - before)
        return result

    found: dict[str, list[Any]] = {}
    for name in ("cpu", "cuda"):
        captioner = pycap.load(trained, device=name)
        monkeypatch.setattr(NIC, "advance", advance if name == "cuda" else plain)
        found[name] = [captioner.caption_batch(some, crops, beam_size=3) for some in images]
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        for mine, right in zip(ours, theirs, strict=True):
            assert [text for text, _ in mine] == [text for text, _ in right]
            assert [logprob for _, logprob in mine] == pytest.approx([logprob for _, logprob in right], rel=1e-6)
    assert len({str(beams) for beams in found["cpu"]}) == 3
    assert steps == [12, 12] and reads == [0, 0]
    for parameter in captioner.model.named_parameters().values():
        parameter.data *= np.float32(0.5)
    weights_changed()
    assert captioner.caption_batch(images[0], crops, beam_size=3) != found["cuda"][0]
    assert steps == [12] * 4
