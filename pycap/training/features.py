"""A frozen CNN's features: extracted once, into a file that says what made them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np

from pycap import ops
from pycap.autograd import no_grad
from pycap.backends import WeightCache, constant_weights, set_float32_products
from pycap.captioner import cnn_origin
from pycap.config import TrainConfig
from pycap.data import Example
from pycap.data.features import FeatureStore
from pycap.data.images import ImageError, PreprocessSpec, centre_crops
from pycap.data.items import Reference, read_ahead
from pycap.device import activation_dtype, float32_products, to_host
from pycap.distributed import ALONE, Ranks
from pycap.models.vgg import VGG
from pycap.training.shares import led


def open_store(config: TrainConfig, cnn: VGG, spec: PreprocessSpec, ranks: Ranks = ALONE) -> FeatureStore | None:
    """The file of features that a run trains on, made where it is missing; None where it trains on images.

    ranks: which all call this. Several only read it, from the first vector on that is asked for: until then it can be added to.
    DataError where the file is of other weights or another preprocessing.
    """
    if config.features == "none":
        return None
    path = config.run_dir / "features.h5" if config.features == "auto" else Path(config.features)
    own = cnn_origin(cnn, spec)
    if ranks.size == 1:
        return FeatureStore(path, own)
    led(ranks, lambda: FeatureStore(path, own).close())  # made, or found to fit
    return FeatureStore(path, own, writable=False)


def extract(
    cnn: VGG, store: FeatureStore, examples: Sequence[Example], *, batch_size: int, precision: str, workers: int
) -> Generator[ImageError | None, None, None]:
    """Add the examples' vectors to `store`; for each of them in turn, None, or why its image cannot be read.

    cnn: what the store's origin was made of. examples: what the store misses. Before an image is yielded its vector is in the
    file, so that nothing is lost where this is interrupted, and nothing done twice. DataError where the file cannot be written.
    """
    spec, dtype = store.origin.preprocess, activation_dtype(precision)
    set_float32_products(float32_products(precision))
    forms = WeightCache()
    items = (Reference(str(example.path)).item() for example in examples)
    batches = read_ahead(items, [spec.resize], batch_size, workers)
    for first, (_, arrays, errors) in zip(range(0, len(examples), batch_size), batches, strict=True):
        batch = examples[first : first + batch_size]
        readable = [example for example, error in zip(batch, errors, strict=True) if error is None]
        if readable:
            crops = centre_crops(spec, len(readable))
            with no_grad(), cnn.evaluating(), constant_weights(forms):
                seen = cnn(ops.pixels(arrays[spec.resize], crops, spec.crop, spec.mean, spec.std, dtype))
                store.add(readable, to_host(ops.cast(seen, np.float32).data))
        for example, error in zip(batch, errors, strict=True):
            if error is not None:
                store.fail(example, error)
            yield error
