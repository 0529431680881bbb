"""The work of the whole-step benchmarks: FLOPs against hand counts, the recipe's options, batches that repeat."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from benchmarks import joint_work
from pycap import config as configuration
from pycap.config import ConfigError, TrainConfig
from pycap.data.vocab import END, PAD, START


def _parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    joint_work.add_options(parser)
    return parser.parse_args(list(argv))


def test_vgg16_at_224_takes_92_6_gflop_an_image_forward_and_backward() -> None:
    """15.35 billion multiplications in the convolutions (Simonyan & Zisserman 2014, configuration D), 0.1195 in fc6 and fc7;
    the first layer, 3 -> 64 at 224x224, has no gradient of its input."""
    config = TrainConfig(image_size=224)
    plain = 2 * (15.3466e9 + 25088 * 4096 + 4096 * 4096)
    assert joint_work.cnn_flops(config, learns=False) == pytest.approx(plain, rel=1e-4)
    assert joint_work.cnn_flops(config, learns=True) == pytest.approx(3 * plain - 2 * 27 * 64 * 224 * 224, rel=1e-4)
    assert joint_work.cnn_flops(config, learns=True) / 1e9 == pytest.approx(92.6, abs=0.05)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_small_step_is_what_a_hand_count_says(frozen: bool) -> None:
    """vgg_micro at 32x32: maps of 32, 16, 8 and 4, channels 16, 32, 48, 64, and 2x2x64 numbers into fc6."""
    config = TrainConfig(
        cnn="vgg_micro", image_size=32, fc_size=10, rnn_size=6, input_encoding_size=5, batch_size=2, seq_per_img=1,
        max_length=3, freeze_cnn=frozen, resize=32,
    )  # fmt: skip
    [batch] = joint_work.batches(config, 1, 20)
    targets = int((batch.tokens[1:] != PAD).sum())
    layers = [32 * 32 * 27 * 16, 16 * 16 * 9 * 16 * 32, 8 * 8 * 9 * 32 * 48, 4 * 4 * 9 * 48 * 64]
    dense = 256 * 10 + 10 * 10
    cnn = sum(layers) + dense if frozen else 3 * (sum(layers) + dense) - layers[0]
    embedding = (2 if frozen else 3) * 10 * 5
    sequence = 3 * ((targets + 2) * 4 * 6 * (5 + 6) + targets * 6 * 20)
    assert joint_work.step_flops(config, [batch], 20) == 2 * (2 * (cnn + embedding) + sequence)


def test_the_options_are_those_of_the_recipe() -> None:
    pytest.importorskip("yaml")
    recipe = TrainConfig(**configuration.recipe("coco"))
    ours = joint_work.make_config(_parsed("--batch-size", "16", "--precision", "fp32"))
    assert ours == recipe


def test_options_are_read_without_yaml_and_checked() -> None:
    config = joint_work.make_config(_parsed("--freeze-cnn", "--flip=false", "--cnn-optimizer", "sgd"), fc_size=8)
    assert config.freeze_cnn and not config.flip and config.cnn_optimizer == "sgd" and config.fc_size == 8
    assert config.batch_size == 64 and config.precision == "bf16"
    with pytest.raises(ConfigError, match="precision"):
        joint_work.make_config(_parsed("--precision", "fp8"))
    with pytest.raises(SystemExit):
        _parsed("--flip", "perhaps")


def test_batches_come_from_the_seed_alone() -> None:
    config = TrainConfig(**joint_work.TINY, seed=5)
    first, again = (joint_work.batches(config, 2, 30) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert (
            np.array_equal(a.images, b.images)
            and np.array_equal(a.tokens, b.tokens)
            and np.array_equal(a.crops, b.crops)
        )
    batch = first[0]
    assert not np.array_equal(batch.images, first[1].images)
    assert batch.images.shape == (4, 36, 36, 3) and batch.tokens.shape[1] == 8
    assert (batch.tokens[0] == START).all() and ((batch.tokens == END).sum(0) == 1).all() and batch.tokens.max() < 30
    assert (batch.crops[:, :2] <= 4).all() and (batch.tokens[-1] != PAD).any(), "no step without a word"
