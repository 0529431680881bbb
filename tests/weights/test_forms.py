"""Every form of a pre-trained VGG gives pycap's VGG the features that the network it was written by has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pycap import ops, weights
from pycap.autograd import no_grad
from pycap.data.images import centre_crops
from pycap.models.vgg import BLOCKS, VGG
from pycap.weights import canonical
from tests.weights import forms

WIDTH, SIZE, FC = 0.125, 64, 12
CAFFE = ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def pixels(size: int = SIZE) -> np.ndarray:
    """Two images whose channels differ in their means, so that a swap shows."""
    rng = np.random.default_rng(3)
    return np.clip(rng.normal((60, 120, 200), 50, (2, size, size, 3)), 0, 255).astype(np.uint8)


def ours(found: weights.VGGWeights, images: np.ndarray, width: float = WIDTH) -> np.ndarray:
    """fc7 of pycap's VGG with these weights, of images prepared as they ask for."""
    spec = found.preprocess()
    model = VGG(found.cnn, spec.crop, None, width=width, fc_size=len(found.arrays["fc7.bias"]))
    model.load_arrays(dict(found.arrays))
    model.train(False)
    crops = np.zeros((len(images), 3), np.int32)
    assert centre_crops(spec, 1).shape == (1, 3)
    with no_grad():
        return np.asarray(model(ops.pixels(images, crops, spec.crop, spec.mean, spec.std, np.float32)).data)


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    """To 1e-4 of the largest feature, and there are features to speak of."""
    assert (want > 0).mean() > 0.2
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def bgr_caffe(images: np.ndarray) -> np.ndarray:
    """keras.applications' preprocess_input, mode caffe."""
    return images[..., ::-1].astype(np.float64) - [103.939, 116.779, 123.68]


def rgb_torch(images: np.ndarray) -> np.ndarray:
    """torchvision's ToTensor and Normalize."""
    return (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


@pytest.mark.parametrize("naming", sorted(forms.KERAS_NAMES))
@pytest.mark.parametrize("cnn", ["vgg16", "vgg19"])
def test_keras(tmp_path: Path, cnn: str, naming: str) -> None:
    net = forms.keras_net(cnn, WIDTH, SIZE, FC)
    found = weights.load(forms.write_keras(tmp_path / "w.h5", net, naming))
    assert (found.cnn, found.source, found.image_size) == (cnn, "keras", SIZE)
    assert (found.mean, found.std) == CAFFE
    assert len(found.dropped) == 2 and all("predictions" in name for name in found.dropped)
    assert_same(ours(found, pixels()), forms.features(net, bgr_caffe(pixels()), "hwio", "HWC"))


def test_keras_without_top(tmp_path: Path) -> None:
    net = forms.keras_net("vgg16", WIDTH, SIZE, FC, top=False)
    found = weights.load(forms.write_keras(tmp_path / "w.h5", net))
    assert found.cnn == "vgg16" and not found.has_dense and not found.dropped
    assert len(found.arrays) == 26
    assert found.preprocess().crop == 224


def test_frossard(tmp_path: Path) -> None:
    net = forms.frossard_net("vgg16", WIDTH, SIZE, FC)
    found = weights.load(forms.write_frossard(tmp_path / "w.npz", net))
    assert (found.cnn, found.source, found.mean, found.std) == ("vgg16", "frossard", *CAFFE)
    rgb = pixels().astype(np.float64) - [123.68, 116.779, 103.939]
    assert_same(ours(found, pixels()), forms.features(net, rgb, "hwio", "HWC"))


def _safetensors(path: Path, net: forms.Net) -> Path:
    return forms.write_safetensors(path, forms.state_dict(net))


def _timm(path: Path, net: forms.Net) -> Path:
    return forms.write_safetensors(path, forms.timm_state_dict(net))


def _pth(path: Path, net: forms.Net) -> Path:
    return forms.write_pth(path, forms.state_dict(net))


def _older_pth(path: Path, net: forms.Net) -> Path:
    return forms.write_older_pth(path, forms.state_dict(net))


@pytest.mark.parametrize(
    ("write", "source"),
    [(_safetensors, "torchvision-safetensors"), (_timm, "timm-safetensors"), (_pth, "torchvision-pth"),
     (_older_pth, "torchvision-pth")],
)  # fmt: skip
@pytest.mark.parametrize("cnn", ["vgg11", "vgg16"])
def test_torchvision(tmp_path: Path, cnn: str, write: Callable[[Path, forms.Net], Path], source: str) -> None:
    net = forms.torch_net(cnn, WIDTH, SIZE, FC)
    found = weights.load(write(tmp_path / "w", net))
    assert (found.cnn, found.source, found.image_size) == (cnn, source, SIZE)
    assert (found.mean, found.std) == IMAGENET
    assert len(found.dropped) == 2
    assert_same(ours(found, pixels()), forms.features(net, rgb_torch(pixels()), "oihw", "CHW"))


@pytest.mark.parametrize("cnn", sorted(BLOCKS))
def test_every_depth_is_recognised(tmp_path: Path, cnn: str) -> None:
    size = 2 * 2 ** len(BLOCKS[cnn])
    for write, net in (
        (forms.write_keras, forms.keras_net(cnn, WIDTH, size, FC)),
        (_safetensors, forms.torch_net(cnn, WIDTH, size, FC)),
    ):
        found = weights.load(write(tmp_path / "w", net))
        shapes = {n: a.shape for n, a in VGG(cnn, size, None, width=WIDTH, fc_size=FC).state_arrays().items()}
        assert found.cnn == cnn and {n: a.shape for n, a in found.arrays.items()} == shapes


def test_depths_are_the_models() -> None:
    assert canonical.LAYERS == {name: tuple(map(len, blocks)) for name, blocks in BLOCKS.items()}


def test_what_import_writes_reads_back_equal(tmp_path: Path) -> None:
    source = forms.write_keras(tmp_path / "w.h5", forms.keras_net("vgg16", WIDTH, SIZE, FC))
    first = weights.load(source)
    weights.save(first, tmp_path / "deeper" / "w.safetensors")
    again = weights.load(tmp_path / "deeper" / "w.safetensors")
    assert first.arrays.keys() == again.arrays.keys()
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert again.preprocess() == first.preprocess() and again.mean == CAFFE[0]
    assert again.source == "keras"
    assert again.sha256 == first.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["w.safetensors"]


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    """VGG16 at 224 x 224, 138 million parameters: shapes, and single values where the layouts say they must be."""
    blocks = BLOCKS["vgg16"]
    layers, inputs = {}, 3
    for b, block in enumerate(blocks, 1):
        for j, outputs in enumerate(block, 1):
            layers[f"block{b}_conv{j}"] = (np.zeros((3, 3, inputs, outputs), np.float32), np.zeros(outputs, np.float32))
            inputs = outputs
    layers["fc1"] = (np.zeros((25088, 4096), np.float32), np.zeros(4096, np.float32))
    layers["fc2"] = (np.zeros((4096, 4096), np.float32), np.zeros(4096, np.float32))
    layers["predictions"] = (np.zeros((4096, 1000), np.float32), np.zeros(1000, np.float32))
    layers["block1_conv1"][0][2, 0, 0, 63] = 1.0  # blue
    layers["fc1"][0][(3 * 7 + 5) * 512 + 500, 4000] = 2.0
    found = weights.load(forms.write_keras(tmp_path / "vgg16.h5", forms.Net(blocks, 7, layers)))
    own = VGG("vgg16", 224, None).state_arrays()
    assert {n: a.shape for n, a in found.arrays.items()} == {n: a.shape for n, a in own.items()}
    assert found.image_size == 224 and found.preprocess().resize == 256
    assert found.arrays["conv1_1.weight"][63, 2, 0, 2] == 1.0
    assert found.arrays["fc6.weight"].reshape(4096, 7, 7, 512)[4000, 3, 5, 500] == 2.0
    assert sum(int(np.count_nonzero(a)) for a in found.arrays.values()) == 2
