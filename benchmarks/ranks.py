"""Data-parallel training on CPUs: steps a second of the joint model, and how much of the exchange backward hides.

    python -m benchmarks.ranks [--threads 2]                    one process, the global batch
    mpirun -n 2 python -m benchmarks.ranks [--threads 1]        two, each with its share of it

Of several ranks, three things are timed: whole steps; steps whose sums are left out; and the sums of all buckets with nothing
beside them. Hidden is the part of the last that whole steps do not take longer than those without sums. Images and captions are
noise, of the shapes of training: 5 captions of 18 words.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pycap import backends, distributed
from pycap.captioner import build_model
from pycap.config import TrainConfig
from pycap.data.loader import Batch
from pycap.device import cpu_count
from pycap.distributed import ALONE, Ranks
from pycap.distributed.reducer import HostReducer
from pycap.training.sources import preprocess_spec
from pycap.training.trainer import Trainer

VOCABULARY, CAPTIONS, WORDS = 10_000, 5, 18


class Unsummed:
    """The ranks, whose large sums are left out."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(ALONE if name == "start_sum" else self._ranks, name)


def batch(images: int, side: int, seed: int) -> Batch:
    """Noise; `images` of it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, VOCABULARY, (WORDS + 2, images * CAPTIONS), dtype=np.int32)
    tokens[0], tokens[-1] = 1, 2
    names = tuple(f"{i}" for i in range(images))
    pixels = rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    nothing: Any = (None,) * images
    return Batch(pixels, np.zeros((images, 3), np.int32), tokens, names, names, nothing, 0, 0)


def seconds(ranks: Ranks, work: Callable[[], Any], repeats: int) -> float:
    """The least, after a first time, of what the slowest rank takes: other work on the machine only adds to it."""
    taken = []
    for _ in range(repeats + 1):
        ranks.barrier()
        began = time.perf_counter()
        work()
        taken.append(max(ranks.each(time.perf_counter() - began)))
    return min(taken[1:])


def exchange(ranks: Ranks, trainer: Trainer) -> tuple[Callable[[], None], int]:
    """(sums of all gradients of the trainer's model with nothing beside them, their bytes)."""
    reducer = HostReducer(ranks, list(trainer.model.named_parameters().values()))
    return lambda: reducer.backward(None), sum(bucket.flat.nbytes for bucket in reducer.buckets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cnn", default="vgg16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8, help="of all ranks together")
    parser.add_argument("--threads", type=int, default=0, help="of each rank (0: its part of the CPUs)")
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    with distributed.started() as ranks:
        threads = args.threads or cpu_count()
        backends.set_threads(threads)
        size = args.image_size
        config = TrainConfig(
            cnn=args.cnn, image_size=size, batch_size=args.batch_size, optimizer="sgd", learning_rate=0
        )
        share = range(args.batch_size * ranks.rank // ranks.size, args.batch_size * (ranks.rank + 1) // ranks.size)
        own = batch(len(share), config.resize_to, ranks.rank)

        def make(among: Any) -> Trainer:
            trainer = Trainer(build_model(config, VOCABULARY), config, preprocess_spec(config), 1, ranks=among)
            trainer.begin_epoch(0)
            return trainer

        trainer = make(ranks)
        step = seconds(ranks, lambda: trainer.step(own), args.steps)
        row: dict[str, Any] = {"ranks": ranks.size, "threads": threads, "cnn": args.cnn, "image_size": size}
        row |= {"batch_size": args.batch_size, "step_s": step, "images_per_s": args.batch_size / step}
        if ranks.size > 1:
            del trainer
            trainer = make(Unsummed(ranks))
            without = seconds(ranks, lambda: trainer.step(own), args.steps)
            sums, nbytes = exchange(ranks, trainer)
            alone = seconds(ranks, sums, args.steps)
            row |= {"step_without_sums_s": without, "sums_s": alone, "sums_bytes": nbytes}
            row["hidden"] = max(0.0, min(1.0, 1 - (step - without) / alone))
        if ranks.rank == 0:
            print(json.dumps(row))


if __name__ == "__main__":
    main()
