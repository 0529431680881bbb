"""`pycap features`: vectors that are the CNN's, of images and of data sets; interrupted, resumed, refused."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pycap import ops
from pycap.autograd import no_grad
from pycap.captioner import Captioner, cnn_origin
from pycap.data import Example
from pycap.data.features import FeatureStore
from pycap.data.images import PreprocessSpec, centre_crops, decode_image
from pycap.models.vgg import VGG
from pycap.training.features import extract
from pycap.weights import VGGWeights, save
from tests.data.fixtures import write_jpeg
from tests.train.test_commands import run

SPEC = PreprocessSpec(resize=40, crop=32, mean=(120, 110, 100), std=(60, 60, 60))


def micro(seed: int = 0) -> VGG:
    return VGG("vgg_micro", 32, np.random.default_rng(seed), width=0.25, fc_size=12)


def pictures(folder: Path, count: int = 7) -> list[Example]:
    return [Example(i, f"{i}.jpg", write_jpeg(folder / f"{i}.jpg", seed=i), ()) for i in range(count)]


def seen(cnn: VGG, path: Path, spec: PreprocessSpec) -> np.ndarray:
    """The vector of one image alone."""
    pixels = decode_image(path, spec.resize)[None]
    with no_grad(), cnn.evaluating():
        return cnn(ops.pixels(pixels, centre_crops(spec, 1), spec.crop, spec.mean, spec.std)).data[0]


def in_file(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return dict(zip((name.decode() for name in file["index"]["name"]), file["data"][:], strict=True))


def extracting(cnn: VGG, store: FeatureStore, examples: list[Example]) -> Any:
    return extract(cnn, store, store.missing(examples), batch_size=3, precision="fp32", workers=1)


def test_vectors_are_those_of_the_centre_crops_whatever_the_batch(tmp_path: Path) -> None:
    cnn, examples = micro(), pictures(tmp_path / "images")
    cnn.train(True)  # dropout is left out all the same
    with FeatureStore(tmp_path / "f.h5", cnn_origin(cnn, SPEC)) as store:
        assert list(extracting(cnn, store, examples)) == [None] * 7
        for example in examples:
            expected = seen(cnn, example.path, SPEC)
            assert np.abs(expected).max() > 0.1
            np.testing.assert_allclose(store.get(example), expected, rtol=1e-5, atol=1e-6)


def test_interrupted_it_goes_on_and_makes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cnn, examples = micro(), pictures(tmp_path / "images", 8)
    looked: list[int] = []
    look = VGG.__call__
    monkeypatch.setattr(VGG, "__call__", lambda self, images: looked.append(images.shape[0]) or look(self, images))
    with FeatureStore(tmp_path / "f.h5", cnn_origin(cnn, SPEC)) as store:
        making = extracting(cnn, store, examples)
        next(making)
        making.close()  # as Ctrl-C does
    assert looked == [3]
    with FeatureStore(tmp_path / "f.h5", cnn_origin(cnn, SPEC)) as store:
        assert [e.file_name for e in store.missing(examples)] == [f"{i}.jpg" for i in range(3, 8)]
        assert list(extracting(cnn, store, examples)) == [None] * 5
        assert list(extracting(cnn, store, examples)) == []
    assert looked == [3, 3, 2] and list(in_file(tmp_path / "f.h5")) == [f"{i}.jpg" for i in range(8)]


def test_an_image_that_cannot_be_read_is_told_and_left_out(tmp_path: Path) -> None:
    cnn, examples = micro(), pictures(tmp_path / "images", 4)
    examples[1].path.write_bytes(b"no image")
    with FeatureStore(tmp_path / "f.h5", cnn_origin(cnn, SPEC)) as store:
        errors = list(extracting(cnn, store, examples))
        assert [error is None for error in errors] == [True, False, True, True] and "1.jpg" in str(errors[1])
        assert store.missing(examples) == [examples[1]]


def test_the_origin_follows_the_weights_not_their_file() -> None:
    assert cnn_origin(micro(), SPEC) == cnn_origin(micro(), SPEC) != cnn_origin(micro(1), SPEC)


def test_the_command_with_a_file_of_weights_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cnn, output = micro(), tmp_path / "f.h5"
    pictures(tmp_path / "images", 3)
    write_jpeg(tmp_path / "images" / "below" / "x.jpg", seed=9)
    weights = tmp_path / "micro.safetensors"
    save(VGGWeights(cnn.state_arrays(), Path("x"), "drawn", SPEC.mean, SPEC.std), weights)
    command = ["features", "--vgg-weights", weights, tmp_path / "images", "--output", output]
    code, text = run(capsys, *command)
    assert code == 0 and "4 made, 4 vectors of 12" in text, text
    found = in_file(output)
    assert sorted(found) == ["0.jpg", "1.jpg", "2.jpg", "below/x.jpg"]
    whole = PreprocessSpec(resize=32, crop=32, mean=SPEC.mean, std=SPEC.std)  # nothing is cut off
    expected = seen(cnn, tmp_path / "images" / "below" / "x.jpg", whole)
    np.testing.assert_allclose(found["below/x.jpg"], expected, rtol=1e-5, atol=1e-6)
    code, text = run(capsys, *command)
    assert code == 0 and "4 of 4 vectors are there already" in text and "0 made" in text
    save(VGGWeights(micro(1).state_arrays(), Path("x"), "drawn", SPEC.mean, SPEC.std), weights)
    code, text = run(capsys, *command)
    assert code and all(cnn_origin(c, whole).weights[:16] in text for c in (micro(), micro(1))), text


def test_the_command_with_a_list_and_with_what_has_no_files(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples, output = pictures(tmp_path / "images", 3), tmp_path / "f.h5"
    (tmp_path / "list.txt").write_text(f"{examples[2].path}\n{examples[0].path}\n")
    code, text = run(capsys, "features", trained, tmp_path / "list.txt", "--output", output)
    assert code == 0 and list(in_file(output)) == ["2.jpg", "0.jpg"], text
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(examples[0].path)
    code, _ = run(capsys, "features", trained, tmp_path / "shard.tar", "--output", output)
    assert isinstance(code, str) and "shard.tar: features are made of image files; unpack it" in code


def test_the_command_with_a_run_and_its_data_set(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "f.h5"
    code, text = run(capsys, "features", trained, "--data", data, "--split", "val", "--output", output)
    assert code == 0, text
    found, captioner = in_file(output), Captioner.load(trained)
    files = sorted((data / "val2017").iterdir())
    assert sorted(found) == [file.name for file in files]
    expected = seen(captioner.model.cnn, files[0], captioner.spec)
    np.testing.assert_allclose(found[files[0].name], expected, rtol=1e-5, atol=1e-6)


REFUSED = {
    "no CNN": ([], "of which CNN"),
    "no images": (["--vgg-weights", "w.h5"], "of which images"),
    "images and a data set": (["run", "a.jpg", "--data", "."], "of which images"),
    "no such file": (["nowhere.h5", "a.jpg"], "nowhere.h5"),
}


@pytest.mark.parametrize(("argv", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_given_is_asked_for(
    argv: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = run(capsys, "features", *argv, "--output", tmp_path / "f.h5")
    assert isinstance(code, str) and told in code and not (tmp_path / "f.h5").exists()


def test_a_data_set_of_unknown_kind_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "micro.safetensors"
    save(VGGWeights(micro().state_arrays(), Path("x"), "drawn", SPEC.mean, SPEC.std), weights)
    code, _ = run(capsys, "features", "--vgg-weights", weights, "--data", tmp_path, "--output", tmp_path / "f.h5")
    assert isinstance(code, str) and "give --stage" in code
