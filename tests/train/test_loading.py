"""Loading a captioner: its weights are the checkpoint's own, mapped; nothing is drawn, and learning leaves the file alone."""

from __future__ import annotations

import mmap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycap import checkpoint, optim
from pycap.autograd import Tensor
from pycap.captioner import Captioner, build_model, load_weights
from pycap.data.images import PreprocessSpec
from pycap.data.vocab import Vocabulary
from tests.train.checkpoints import vouch
from tests.train.runs import tiny

SPEC = PreprocessSpec(resize=64, crop=64)
VOCAB = Vocabulary(("a", "dog", "runs"))


def save(folder: Path, **options: Any) -> dict[str, np.ndarray]:
    config = tiny(folder, folder, **options)
    arrays = build_model(config, len(VOCAB)).state_arrays()
    checkpoint.save(folder, model=arrays, optimizer=None, state={}, vocab=VOCAB, config=config, preprocess=asdict(SPEC))
    return arrays


def is_mapped(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def test_loading_draws_nothing_and_copies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save(tmp_path / "best")

    def drawn(*_: object) -> None:
        raise AssertionError("random numbers were drawn for weights that the checkpoint has")

    monkeypatch.setattr(np.random, "default_rng", drawn)
    loaded = Captioner.load(tmp_path / "best").model.state_arrays()
    assert loaded.keys() == saved.keys()
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, saved[name])
        assert is_mapped(array), name


@pytest.mark.parametrize("pretrain", [0, 1])
def test_the_classifier_of_words_is_there_where_the_checkpoint_has_it(tmp_path: Path, pretrain: int) -> None:
    saved = save(tmp_path / "best", pretrain_words=pretrain)
    assert ("word_head.weight" in saved) == bool(pretrain)
    (tmp_path / "best" / "config.yaml").write_text(
        (tmp_path / "best" / "config.yaml").read_text().replace("pretrain_words: 0", "pretrain_words: 1")
    )
    vouch(tmp_path / "best")
    loaded = Captioner.load(tmp_path / "best").model
    assert loaded.state_arrays().keys() == saved.keys()  # never weights that nothing was loaded into


def test_a_loaded_model_learns_and_the_file_stays(tmp_path: Path) -> None:
    saved = save(tmp_path / "best")
    before = (tmp_path / "best" / "model.safetensors").read_bytes()
    model = Captioner.load(tmp_path / "best").model
    parameters = model.named_parameters()
    optimizer = optim.SGD([optim.ParamGroup("all", parameters, lr=0.1)])
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    tokens = np.array([[1, 1], [4, 5], [2, 2]], np.int32)
    model.loss(Tensor(images), tokens).backward()
    optimizer.step()
    changed = [name for name, array in model.state_arrays().items() if (array != saved[name]).any()]
    assert "projection.weight" in changed and "cnn.fc6.weight" in changed
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == before
    again = Captioner.load(tmp_path / "best").model.state_arrays()
    np.testing.assert_array_equal(again["projection.weight"], saved["projection.weight"])


def test_weights_to_train_from_are_copies(tmp_path: Path) -> None:
    save(tmp_path / "best")
    read = checkpoint.load(tmp_path / "best")
    model = build_model(read.config, len(read.vocab))
    own = model.state_arrays()
    load_weights(model, read)
    for name, array in model.state_arrays().items():
        assert array is own[name] and not is_mapped(array)
        np.testing.assert_array_equal(array, read.model[name])


def test_weights_of_another_dtype_are_converted() -> None:
    model = build_model(tiny(Path("unused"), Path("unused")), len(VOCAB), draw=False)
    arrays = {name: np.ones(a.shape, np.float64) for name, a in model.state_arrays().items()}
    model.load_arrays(arrays, copy=False)
    assert all(a.dtype == np.float32 and (a == 1).all() for a in model.state_arrays().values())
