"""Checkpoints of small captioners with random weights whose captions vary; images in files; the example of docs/export.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pycap import checkpoint
from pycap.captioner import build_classifier, build_model
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec
from pycap.data.vocab import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = Vocabulary([f"{a}{b}" for a in "bdgklmnprst" for b in "aeiou"])


def save(folder: Path, *, spoilt: str = "", **options: Any) -> Path:
    """A checkpoint of a captioner (of a classifier, with stage "pretrain") that was never trained. spoilt: a parameter that
    gets an infinity."""
    small = {"cnn": "vgg_micro", "image_size": 32, "cnn_width": 0.5, "fc_size": 20, "rnn_size": 24, "max_length": 9}
    config = TrainConfig(**({"input_encoding_size": 17, "seed": 5} | small | options))
    spec = PreprocessSpec(resize=config.resize_to, crop=config.image_size)
    model = (build_classifier if config.classifies else build_model)(config, len(VOCABULARY))
    rng = np.random.default_rng(config.seed)
    for name, parameter in model.named_parameters().items():
        if parameter.data.ndim == 1:
            parameter.data += rng.standard_normal(parameter.shape).astype(np.float32) * np.float32(0.1)
        elif name.startswith(("projection.", "lstm.", "decoder.")):  # so that what was said decides what follows
            parameter.data *= np.float32(5)
    if not config.classifies:
        model.projection.bias.data[VOCABULARY.END] += np.float32(2)  # so that sentences differ in length
    arrays = model.state_arrays()
    if spoilt:
        arrays[spoilt].flat[0] = np.inf
    checkpoint.save(
        folder, model=arrays, optimizer=None, state={}, vocab=VOCABULARY, config=config, preprocess=spec.to_dict()
    )
    return folder


def scene(width: int, height: int, seed: int) -> Image.Image:
    """A picture of broad colours with some detail, as photographs are."""
    rng = np.random.default_rng(seed)
    broad = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    levels = np.asarray(broad, np.int64) + rng.integers(-24, 25, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def photographs(folder: Path) -> list[str]:
    """JPEGs that a decoder reduces and such that it does not, upright and turned, and PNGs of several modes."""
    folder.mkdir(exist_ok=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    kept = {
        "large.jpg": (scene(401, 299, 0), {}),
        "turned.jpg": (scene(333, 250, 1), {"exif": turned}),
        "small.jpg": (scene(50, 41, 2), {}),
        "grey.jpg": (scene(120, 160, 3).convert("L"), {}),
        "cmyk.jpg": (scene(150, 99, 4).convert("CMYK"), {}),
        "plain.png": (scene(75, 130, 5), {"exif": turned}),
        "palette.png": (scene(90, 64, 6).quantize(16), {"transparency": 3}),
    }
    deep = np.asarray(scene(70, 90, 9).convert("L"), np.uint16) * 256 + 91
    kept["16-bit.png"] = Image.fromarray(deep), {}
    seen_through = scene(64, 80, 7).convert("RGBA")
    seen_through.putalpha(scene(64, 80, 8).convert("L"))
    kept["transparent.png"] = seen_through, {}
    kept["grey-transparent.png"] = seen_through.convert("LA"), {}
    for name, (image, how) in kept.items():
        image.save(folder / name, **how)
    return [str(folder / name) for name in kept]


def example() -> str:
    """The Python program in docs/export.md."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "export.md").read_text("utf-8"), re.DOTALL | re.M)
    return str(code)
