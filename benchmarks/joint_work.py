"""What the whole-step benchmarks work on: a configuration without YAML, drawn batches of COCO's kind, and the step's FLOPs."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pycap.config import FIELDS, TYPES, TrainConfig
from pycap.data import DataError
from pycap.data.loader import Batch, Loader, empty_pixels
from pycap.data.vocab import END, PAD, START, UNK, Vocabulary
from pycap.models.vgg import BLOCKS
from pycap.training import sources
from pycap.training.feed import Fed
from pycap.training.trainer import Pending, Trainer

#: Words of COCO's training captions that are seen five times or more, with the four specials.
COCO_WORDS = 9_956
#: recipes/coco.yaml's options that are not the defaults; batch and precision are those of the comparison.
COCO: dict[str, Any] = {
    "batch_size": 64,
    "precision": "bf16",
    "resize": 256,
    "max_length": 16,
    "beta1": 0.8,
    "cnn_learning_rate": 1e-4,
    "grad_clip": 0.1,
    "val_images_use": 3200,
    "save_checkpoint_every": 2500,
}
#: Small enough for a rehearsal on one core.
TINY: dict[str, Any] = {
    "cnn": "vgg_micro",
    "cnn_width": 0.5,
    "image_size": 32,
    "resize": 36,
    "fc_size": 32,
    "rnn_size": 16,
    "input_encoding_size": 16,
    "batch_size": 4,
    "seq_per_img": 2,
    "threads": 1,
    "device": "cpu",
}
TINY_WORDS = 120
#: Lengths of COCO's captions in words: mean and deviation.
_LENGTH = (10.5, 2.2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option of train.py, without jsonargparse and YAML, which a machine with a GPU may lack."""
    group = parser.add_argument_group("train.py's options (over recipes/coco.yaml)")
    for name, field in FIELDS.items():
        kinds = [kind for kind in getattr(TYPES[name], "__args__", (TYPES[name],)) if kind is not type(None)]
        how: dict[str, Any] = {"type": kinds[0], "dest": name, "default": argparse.SUPPRESS}
        if kinds[0] is bool:
            how |= {"type": _boolean, "nargs": "?", "const": True}
        group.add_argument("--" + name.replace("_", "-"), help=field.metadata["help"].replace("%", "%%"), **how)


def _boolean(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def make_config(parsed: argparse.Namespace, **below: Any) -> TrainConfig:
    """The configuration: COCO's recipe, then `below`, then what stands on the command line. ConfigError says what is wrong."""
    given = {name: value for name, value in vars(parsed).items() if name in FIELDS}
    return TrainConfig(**{**COCO, **below, **given}).validate()


def vocabulary(words: int) -> Vocabulary:
    """`words` ids, the four specials counted."""
    return Vocabulary([f"word{number}" for number in range(words - 4)])


def batches(
    config: TrainConfig, count: int, words: int, allocate: Callable[[tuple[int, ...]], np.ndarray] = empty_pixels
) -> list[Batch]:
    """Decoded batches drawn from the config's seed: smooth images, random crops and flips, captions as long as COCO's.

    allocate: gives the memory of a batch's images.
    """
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0xBA7C]))
    side, images = config.resize_to, config.batch_size
    made = []
    for index in range(count):
        pixels = allocate((images, side, side, 3))
        for image in pixels:
            image[...] = smooth_image(rng, side)
        room = side - config.image_size + 1
        crops = rng.integers(0, (room, room, 2), (images, 3)).astype(np.int32)
        captions = images * config.seq_per_img
        lengths = np.clip(np.rint(rng.normal(*_LENGTH, captions)), 1, config.max_length).astype(int)
        tokens = np.full((lengths.max() + 2, captions), PAD, np.int32)
        tokens[0] = START
        for column, length in enumerate(lengths):
            tokens[1 : length + 1, column] = rng.integers(UNK, words, length)
            tokens[length + 1, column] = END
        names = tuple(f"drawn-{index}-{i}" for i in range(images))
        made.append(Batch(pixels, crops, tokens, names, names, (), 0, index))
    return made


def smooth_image(rng: np.random.Generator, side: int) -> np.ndarray:
    """Coarse noise made smooth, with a little fine noise: neighbouring pixels of photographs are alike."""
    coarse = rng.integers(0, 256, (9, 9, 3)).astype(np.float32)
    at = np.linspace(0, 7.999, side)
    low, part = at.astype(int), (at % 1).astype(np.float32)
    rows = coarse[low] * (1 - part)[:, None, None] + coarse[low + 1] * part[:, None, None]
    smooth = rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
    return np.clip(smooth + rng.integers(-12, 13, (side, side, 3)), 0, 255).astype(np.uint8)


def run_steps(trainer: Trainer, batches: Iterable[Batch | Fed]) -> list[float]:
    """Losses of a Trainer's steps, made as train.py makes them: on a GPU a result is read when the next step is under way."""
    losses: list[float] = []
    under_way: deque[Pending] = deque()
    for item in batches:
        batch, images = (item.batch, item.images) if isinstance(item, Fed) else (item, None)
        under_way.append(trainer.launch(batch, images))
        while len(under_way) > trainer.ahead:
            losses.append(under_way.popleft().result().loss)
    return losses + [pending.result().loss for pending in under_way]


def jpeg_loader(config: TrainConfig, words: int, allocate: Callable[[tuple[int, ...]], np.ndarray]) -> Loader:
    """Training batches of `config.data`, each image decoded each time it is used. DataError where it has too many words."""
    source, config = sources.find(config, lambda text: None)
    vocab = sources.vocabulary(source, config)
    if len(vocab) > words:
        raise DataError(f"{config.data}: {len(vocab)} words, the model has {words}: give --words {len(vocab)}")
    threads = sources.workers(config)
    return Loader(
        source.train, vocab, sources.preprocess_spec(config), batch_size=config.batch_size, seq_per_img=config.seq_per_img,
        max_length=config.max_length, train=True, seed=config.seed, workers=threads, prefetch=max(4, threads * 3 // 2),
        flip=config.flip, cache_bytes=0, allocate=allocate,
    )  # fmt: skip


# FLOPs ----------------------------------------------------------------------------------------------------------------


def cnn_flops(config: TrainConfig, learns: bool) -> float:
    """Of one image through the CNN up to fc7: forward and, where it learns, backward (no gradient of the pixels)."""
    side, inputs, total = config.image_size, 3, 0.0
    for block in BLOCKS[config.cnn]:
        for channels in block:
            outputs = channels if config.cnn_width == 1 else max(8, round(channels * config.cnn_width / 8) * 8)
            forward = 2.0 * side * side * 9 * inputs * outputs
            passes = 1 if not learns else 2 if inputs == 3 else 3
            total += passes * forward
            inputs = outputs
        side //= 2
    dense = 2.0 * config.fc_size * (side * side * inputs + config.fc_size)
    return total + (3 if learns else 1) * dense


def step_flops(config: TrainConfig, made: Sequence[Batch], words: int) -> float:
    """Of one training step, on average over the batches: the plain algorithm's products, padding not counted."""
    learns = not config.freeze_cnn
    hidden, width = config.rnn_size, config.input_encoding_size
    per_step, per_token = 8.0 * hidden * (width + hidden), 2.0 * hidden * words
    total = 0.0
    for batch in made:
        targets = int(np.count_nonzero(batch.tokens[1:] != PAD))
        images, captions = len(batch.images), batch.tokens.shape[1]
        total += images * cnn_flops(config, learns)
        total += (3 if learns else 2) * images * 2.0 * config.fc_size * width  # no gradient for a frozen CNN
        total += 3 * (per_step * (targets + captions) + per_token * targets)
    return total / len(made)
