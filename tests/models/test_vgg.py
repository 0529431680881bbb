"""VGG: the paper's configurations, shapes, dropout's place, and bad options."""

from __future__ import annotations

import numpy as np
import pytest

from pycap.autograd import Tensor
from pycap.models.vgg import BLOCKS, VGG

# Weights of the convolutions and of fc6, fc7 at 224, counted by hand from Simonyan & Zisserman's table 1:
# table 2 of the paper gives 133, 133, 138 and 144 million with fc8 (4096 * 1000 + 1000) on top.
PARAMETERS = {"vgg11": 128_766_336, "vgg13": 128_950_848, "vgg16": 134_260_544, "vgg19": 139_570_240}


def count(name: str) -> int:
    """From the configuration alone, without building a model of half a gigabyte."""
    total, inputs = 0, 3
    for block in BLOCKS[name]:
        for channels in block:
            total += channels * 9 * inputs + channels
            inputs = channels
    return total + 49 * inputs * 4096 + 4096 + 4096 * 4096 + 4096


@pytest.mark.parametrize("name", PARAMETERS)
def test_configuration_has_the_papers_parameter_count(name: str) -> None:
    assert count(name) == PARAMETERS[name]
    layers = sum(len(block) for block in BLOCKS[name])
    assert layers + 3 == int(name.removeprefix("vgg"))  # fc6, fc7, fc8


@pytest.mark.parametrize("name", BLOCKS)
def test_built_model_follows_the_configuration(name: str) -> None:
    vgg = VGG(name, 64, np.random.default_rng(0), width=0.25, fc_size=24)
    shapes = {n: t.shape for n, t in vgg.named_parameters().items()}
    inputs = 3
    for i, block in enumerate(BLOCKS[name], 1):
        for j, channels in enumerate(block, 1):
            outputs = max(8, round(channels / 4 / 8) * 8)
            assert shapes[f"conv{i}_{j}.weight"] == (outputs, 3, 3, inputs)
            inputs = outputs
    side = 64 // 2 ** len(BLOCKS[name])
    assert shapes["fc6.weight"] == (24, side * side * inputs)
    assert shapes["fc7.weight"] == (24, 24)
    assert vgg(Tensor(np.zeros((2, 64, 64, 3), np.float32))).shape == (2, 24)


def test_pools_halve_where_the_blocks_end() -> None:
    vgg = VGG("vgg11", 32, np.random.default_rng(0), width=0.125, fc_size=8)
    pools = [n for n, m in vgg.children() if getattr(m, "pool", False)]
    assert pools == ["conv1_1", "conv2_1", "conv3_2", "conv4_2", "conv5_2"]


def test_dropout_acts_in_training_only() -> None:
    vgg = VGG("vgg_micro", 32, np.random.default_rng(0), width=0.25, fc_size=64)
    x = Tensor(np.random.default_rng(1).standard_normal((3, 32, 32, 3)).astype(np.float32))
    for drop in (vgg.drop6, vgg.drop7):
        drop.place(7, 0, 3, 3)
    trained = vgg(x).data
    vgg.train(False)
    assert np.array_equal(vgg(x).data, vgg(x).data)
    assert not np.array_equal(trained, vgg(x).data)


@pytest.mark.parametrize(("name", "size", "named"), [("vgg17", 224, "vgg17"), ("vgg16", 100, "100"), ("vgg16", 0, "0")])
def test_bad_options_are_named(name: str, size: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VGG(name, size, np.random.default_rng(0))
