"""`pycap import-vgg` and `--vgg-weights`: a run starts from the weights that others trained, prepared as they ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pycap
from pycap import checkpoint, cli, weights
from pycap.config import ConfigError, TrainConfig, resumed
from pycap.data.images import PreprocessSpec
from pycap.weights import WeightsError
from tests.train.runs import tiny
from tests.weights import forms

CAFFE_MEAN = (123.68, 116.779, 103.939)


def keras(path: Path, size: int = 64, width: float = 0.25, fc: int = 24) -> Path:
    """vgg_micro as `tiny` has it, in Keras' form."""
    return forms.write_keras(path, forms.keras_net("vgg_micro", width, size, fc))


def prepared(folder: Path) -> PreprocessSpec:
    return PreprocessSpec.from_dict(checkpoint.load(folder).preprocess)


def trained(config: TrainConfig) -> checkpoint.Checkpoint:
    return checkpoint.load(pycap.train(config).folder, prefer="last")


def test_a_run_starts_from_the_weights_and_prepares_images_as_they_ask(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = keras(tmp_path / "w.h5")
    saved = trained(tiny(data, tmp_path / "run", epochs=1, freeze_cnn=True, vgg_weights=source))
    wanted = weights.load(source)
    for name, array in wanted.arrays.items():
        np.testing.assert_array_equal(saved.model[f"cnn.{name}"], array, err_msg=name)
    spec = prepared(saved.folder)
    assert (spec.mean, spec.std, spec.crop, spec.resize) == (CAFFE_MEAN, (1.0, 1.0, 1.0), 64, 64)
    assert f"vgg_micro from {source} (keras, sha256 {wanted.sha256[:16]}...): all layers" in capsys.readouterr().out


def test_joint_training_moves_them_and_resumes_without_the_file(data: Path, tmp_path: Path) -> None:
    source = keras(tmp_path / "w.h5")
    first = weights.load(source).arrays
    config = tiny(data, tmp_path / "run", epochs=1, vgg_weights=source, cnn_learning_rate=1e-5)
    saved = trained(config)
    moved = np.abs(saved.model["cnn.conv1_1.weight"] - first["conv1_1.weight"]).max()
    assert 0 < moved < 1e-3
    source.unlink()
    again = trained(resumed(tmp_path / "run", epochs=2))
    assert prepared(again.folder).mean == CAFFE_MEAN
    assert 0 < np.abs(again.model["cnn.fc7.weight"] - first["fc7.weight"]).max() < 1e-3


def test_fine_tuning_keeps_the_preprocessing_of_the_weights(data: Path, tmp_path: Path) -> None:
    source = keras(tmp_path / "w.h5")
    first = trained(tiny(data, tmp_path / "one", epochs=1, vgg_weights=source)).folder
    second = trained(tiny(data, tmp_path / "two", epochs=1, init_from=first))
    assert prepared(second.folder) == prepared(first)
    assert prepared(second.folder).mean == CAFFE_MEAN


def test_other_image_sizes_take_the_convolutions_and_say_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = keras(tmp_path / "w.h5", size=96)
    options = {"epochs": 1, "learning_rate": 0.0, "vgg_weights": source}
    saved = trained(tiny(data, tmp_path / "run", **options))
    wanted = weights.load(source).arrays
    for name, array in wanted.items():
        if name.startswith("conv"):
            np.testing.assert_array_equal(saved.model[f"cnn.{name}"], array, err_msg=name)
    plain = trained(tiny(data, tmp_path / "plain", epochs=1, learning_rate=0.0))
    for name in ("fc6.weight", "fc7.weight", "fc7.bias"):  # as they are drawn
        np.testing.assert_array_equal(saved.model[f"cnn.{name}"], plain.model[f"cnn.{name}"], err_msg=name)
    inputs = wanted["fc6.weight"].shape[1]
    told = f"fc6 is 24 x {inputs} there, 24 x {inputs * 16 // 36} in the model; to have them, give --image-size 96 --fc-size 24"
    assert told in capsys.readouterr().out
    with pytest.raises(WeightsError, match="--freeze-cnn would leave them at random values"):
        pycap.train(tiny(data, tmp_path / "frozen", freeze_cnn=True, vgg_weights=source))


def test_weights_without_top_leave_fc6_and_fc7_at_random(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = forms.keras_net("vgg_micro", 0.25, 64, 24, top=False)
    trained(tiny(data, tmp_path / "run", epochs=1, max_steps=1, vgg_weights=forms.write_keras(tmp_path / "w.h5", net)))
    assert "fc6 and fc7 start at random: the file has none" in capsys.readouterr().out


def test_what_does_not_fit_the_model_is_refused_before_the_run_begins(data: Path, tmp_path: Path) -> None:
    source = keras(tmp_path / "w.h5")
    with pytest.raises(WeightsError, match="holds a vgg_micro, and the model is a vgg_small6; give --cnn vgg_micro"):
        pycap.train(tiny(data, tmp_path / "run", cnn="vgg_small6", vgg_weights=source))
    with pytest.raises(WeightsError, match="give the --cnn-width of the weights"):
        pycap.train(tiny(data, tmp_path / "run", cnn_width=0.5, vgg_weights=source))
    with pytest.raises(ConfigError, match="vgg_weights: a contradicts init_from b"):
        TrainConfig(vgg_weights=Path("a"), init_from=Path("b")).validate()
    assert not (tmp_path / "run").exists()


def test_import_vgg_writes_a_file_that_serves_as_the_source_does(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = keras(tmp_path / "w.h5")
    with pytest.raises(SystemExit) as done:
        cli.main(["import-vgg", str(source), "--output", str(tmp_path / "models")])
    assert done.value.code == 0
    target = tmp_path / "models" / "w.safetensors"
    told = capsys.readouterr().out
    assert f"vgg_micro from {source} (keras, sha256 " in told and "fc6 and fc7 of 24, for images of 64" in told
    assert "left out" in told and f"--cnn vgg_micro --vgg-weights {target}" in told
    a = trained(tiny(data, tmp_path / "a", epochs=1, vgg_weights=source))
    b = trained(tiny(data, tmp_path / "b", epochs=1, vgg_weights=target))
    assert prepared(a.folder) == prepared(b.folder)
    for name, array in a.model.items():
        np.testing.assert_array_equal(array, b.model[name], err_msg=name)


def test_import_vgg_tells_errors_in_one_line_and_spares_its_source(tmp_path: Path) -> None:
    net = forms.torch_net("vgg11", 0.125, 64, 12)
    source = forms.write_safetensors(tmp_path / "w.safetensors", forms.state_dict(net))
    before = source.read_bytes()
    with pytest.raises(SystemExit, match="pycap import-vgg: error: .*is the file to read; give another --output"):
        cli.main(["import-vgg", str(source), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="pycap import-vgg: error: .*cannot be read"):
        cli.main(["import-vgg", str(tmp_path / "none"), "--output", str(tmp_path / "x.safetensors")])
    assert source.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
