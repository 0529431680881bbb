"""Exported captioners in ONNX Runtime: as exact as pycap in float32, and the documented program says what pycap says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed; make test PEERS=1 installs it")
pytest.importorskip("onnx", reason="onnx is not installed; make test PEERS=1 installs it")

import pycap
from pycap import backends, ops
from pycap.autograd import Tensor, no_grad
from pycap.cli import main
from pycap.export import folder
from pycap.export.check import logprobs
from pycap.export.command import export_onnx
from tests.export.models import VOCABULARY, example, photographs, save
from tests.peers.compare import close

pytestmark = pytest.mark.peers


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def outputs(model: Any, images: Any, words: np.ndarray, dtype: type) -> list[dict[str, np.ndarray]]:
    """What the model gives in `dtype` by the reference: the state after the images, then log-probabilities and state after
    each of the words [T,N]."""
    for parameter in model.named_parameters().values():
        parameter.data = parameter.data.astype(dtype)
    with backends.use("reference"), no_grad():
        state = model.begin(images)
        found = [{part: tensor.data for part, tensor in vars(state).items()}]
        for row in words:
            logits, state = model.advance(state, row.astype(np.int32))
            found.append({"logprobs": logprobs(logits)} | {f"next_{p}": t.data for p, t in vars(state).items()})
    return found


@pytest.mark.parametrize("kind", ["nic", "merge"])
@pytest.mark.parametrize(
    ("cnn", "size", "width"),
    [("vgg16", 64, 0.125), ("vgg19", 64, 0.125), ("vgg_small6", 64, 1.0), ("vgg_micro", 32, 1)],
)
def test_it_errs_no_more_than_float32_does(tmp_path: Path, kind: str, cnn: str, size: int, width: float) -> None:
    source = save(tmp_path / "saved", model=kind, cnn=cnn, image_size=size, cnn_width=width)
    export_onnx(source, tmp_path / "onnx")
    told = json.loads((tmp_path / "onnx" / "export.json").read_text())
    see, step = (session(tmp_path / "onnx" / told[part]["file"]) for part in ("encoder", "decoder"))
    captioner = pycap.load(source)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, size, size, 3), np.uint8)
    words = np.array([np.full(3, VOCABULARY.START), *rng.integers(0, len(VOCABULARY), (3, 3))])
    found = [dict(zip(told["encoder"]["outputs"], see.run(None, {"images": images}), strict=True))]
    for row in words:
        state = dict(zip(told["state"], list(found[-1].values())[-len(told["state"]) :], strict=True))
        given = step.run(None, {"words": row, **state})
        found.append(dict(zip(told["decoder"]["outputs"], given, strict=True)))
    spec = captioner.spec
    normalised = ops.preprocess(images, np.zeros((3, 3), np.int32), size, spec.mean, spec.std)
    plain = outputs(captioner.model, normalised, words, np.float32)
    exact = outputs(captioner.model, Tensor(normalised.data.astype(np.float64)), words, np.float64)
    for i, (theirs, ours, true) in enumerate(zip(found, plain, exact, strict=True)):
        assert list(theirs) == list(true)
        for name, array in theirs.items():
            said = np.isfinite(true[name])
            assert array.dtype == np.float32 and np.array_equal(np.isfinite(array), said)
            close(f"{name} after {i} words", array[said], ours[name][said], true[name][said])


def test_rows_are_free(tmp_path: Path) -> None:
    export_onnx(save(tmp_path / "saved", model="merge"), tmp_path / "onnx")
    see, step = (session(tmp_path / "onnx" / f"{part}.onnx") for part in ("encoder", "decoder"))
    for rows in (1, 2, 7):
        state = see.run(None, {"images": np.zeros((rows, 32, 32, 3), np.uint8)})
        said, *after = step.run(
            None, {"words": np.full(rows, VOCABULARY.START), **dict(zip(("h", "c", "image"), state, strict=True))}
        )
        assert [part.shape for part in (*state, *after)] == [(rows, 24)] * 6
        assert said.shape == (rows, len(VOCABULARY))


def test_weights_beside_the_model_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, images = save(tmp_path / "saved"), np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), np.uint8)
    export_onnx(source, tmp_path / "inside")
    monkeypatch.setattr(folder, "MOST_INSIDE", 4096)
    export_onnx(source, tmp_path / "beside")
    assert (tmp_path / "beside" / "encoder.onnx.data").exists()
    h, beside = (
        session(tmp_path / place / "encoder.onnx").run(["h"], {"images": images})[0] for place in ("inside", "beside")
    )
    assert np.array_equal(h, beside)


def test_the_command_says_how_near_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["export", str(save(tmp_path / "saved")), "--onnx", str(tmp_path / "onnx")])
    assert done.value.code == 0
    assert f"ONNX Runtime {onnxruntime.__version__}: log-probabilities of 5 words" in capsys.readouterr().out


# The documented program -----------------------------------------------------------------------------------------------


def program(tmp_path: Path, exported: Path, beam: int, images: list[str]) -> list[dict[str, Any]]:
    """What the program in docs/export.md prints, run where pycap cannot be imported."""
    (tmp_path / "caption.py").write_text(example())
    code = "import runpy, sys; sys.modules['pycap'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "caption.py"), str(exported), str(beam), *images]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def same(tmp_path: Path, source: Path, images: list[str]) -> set[str]:
    """Assert that the program says of images what pycap says, by greedy search and a beam of three; what was said."""
    export_onnx(source, tmp_path / "onnx")
    captioner, said = pycap.load(source), set()
    for beam in (1, 3):
        found = program(tmp_path, tmp_path / "onnx", beam, images)
        expected = [
            (file, text, logprob)
            for file, caption in zip(images, captioner.caption(images, beam_size=beam), strict=True)
            for text, logprob in caption.beams
        ]
        assert [(row["file"], row["caption"]) for row in found] == [(file, text) for file, text, _ in expected]
        assert [row["logprob"] for row in found] == pytest.approx([logprob for *_, logprob in expected], abs=1e-4)
        said |= {row["caption"] for row in found}
    return said


@pytest.mark.parametrize("kind", ["nic", "merge"])
def test_the_documented_program_says_what_pycap_says(tmp_path: Path, kind: str) -> None:
    said = same(tmp_path, save(tmp_path / "saved", model=kind), photographs(tmp_path / "images"))
    assert len(said) > 9 and len({len(text.split()) for text in said}) > 2, "all alike: the test shows too little"


@pytest.mark.realdata
def test_it_says_the_same_of_real_photographs(tmp_path: Path, data_root: Path) -> None:
    files = sorted((data_root / "flickr8k" / "Flicker8k_Dataset").glob("*.jpg"))[:24]
    if not files:
        pytest.skip(f"{data_root} holds no Flickr8k")
    said = same(tmp_path, save(tmp_path / "saved", image_size=64, cnn="vgg_small6"), [str(file) for file in files])
    assert len(said) > 9
