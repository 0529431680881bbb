"""Losses of joint training steps on a GPU beside the same steps in float32 on the CPU: same seed, same data, within 1 %.

    python -m benchmarks.trajectory --device cuda --precision bf16 --steps 50 --json trajectory.jsonl
    python -m benchmarks.trajectory --expected losses.json          # written where it is missing, read where it is there

The model is small (vgg_small6 at 64x64, joint from the first step, dropout on: masks depend on the seed alone), so that the
CPU's part takes seconds; the data is the drawn demo set. Nothing here needs YAML or jsonargparse.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks import joint_work, machine
from benchmarks.results import Row, Writer
from pycap import backends, device
from pycap.captioner import build_model
from pycap.config import TrainConfig
from pycap.data import demo
from pycap.data.loader import Batch
from pycap.device import cpu_count, current
from pycap.training import sources
from pycap.training.trainer import Trainer

BOUND = 0.01
DTYPES = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16"}


def configuration(batch: int, seed: int) -> TrainConfig:
    """The small joint run."""
    return TrainConfig(
        cnn="vgg_small6", image_size=64, resize=72, fc_size=256, rnn_size=128, input_encoding_size=128,
        batch_size=batch, word_count_threshold=1, max_length=16, flip=False, learning_rate=1e-3, cnn_learning_rate=3e-4,
        grad_clip=5.0, grad_clip_mode="norm", drop_prob_lm=0.3, drop_prob_cnn=0.3, seed=seed, store="none",
    ).validate()  # fmt: skip


def batches(config: TrainConfig, steps: int, folder: Path) -> tuple[list[Batch], int, int]:
    """(The run's batches, words of the vocabulary, steps an epoch)."""
    config = replace(
        config, data=demo.generate(folder / "demo", train=8 * config.batch_size, val=1, size=config.resize_to)
    )
    source, config = sources.find(config, print)
    vocab, spec = sources.vocabulary(source, config), sources.preprocess_spec(config)
    loader = sources.loaders(source, vocab, spec, config, folder).train
    epochs = range(-(-steps // len(loader)))
    return list(islice((batch for epoch in epochs for batch in loader.epoch(epoch)), steps)), len(vocab), len(loader)


def train(
    config: TrainConfig, made: Sequence[Batch], words: int, per_epoch: int, resident: bool | None = None
) -> list[float]:
    """The losses of one step a batch, on the current device. resident: as for Trainer."""
    model, spec = build_model(config, words), sources.preprocess_spec(config)
    trainer = Trainer(model, config, spec, per_epoch, resident=resident)
    losses: list[float] = []
    for epoch in range(-(-len(made) // per_epoch)):
        trainer.begin_epoch(epoch)
        losses += joint_work.run_steps(trainer, made[epoch * per_epoch : (epoch + 1) * per_epoch])
    return losses


def distance(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative distance between losses of the same step; NaN where one is no number."""
    ours, theirs = np.array(losses), np.array(expected)
    return float(np.max(np.abs(ours - theirs) / theirs))


def _expected(path: Path | None, config: TrainConfig, made: Sequence[Batch], words: int, per_epoch: int) -> list[float]:
    """The CPU's losses: the file's where it has as many of the same run, else computed, and written where it is named."""
    about = {"batch": config.batch_size, "seed": config.seed, "words": words}
    if path is not None and path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["about"] != about or len(stored["losses"]) < len(made):
            raise SystemExit(
                f"{path}: holds {len(stored['losses'])} losses of {stored['about']}, asked for {about}; remove it"
            )
        return stored["losses"][: len(made)]
    backends.select("cpu", "auto")
    backends.set_threads(cpu_count())
    losses = train(replace(config, precision="fp32"), made, words, per_epoch)
    if path is not None:
        path.write_text(json.dumps({"about": about, "losses": losses}) + "\n", encoding="utf-8")
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    """Train on both and compare; 1 where a loss is off by more than 1 %."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trajectory", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a rehearsal of the device's steps"
    )
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="bf16", choices=tuple(DTYPES))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--expected", type=Path, metavar="FILE", help="the CPU's losses as JSON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows of results")
    own = parser.parse_args(argv)
    if own.steps < 1 or own.batch_size < 1:
        parser.error("--steps and --batch-size are 1 or more")
    reason = device.obstacle() if own.device == "cuda" else ""
    if reason:
        print(f"no GPU that pycap can use: {reason}; --device cpu rehearses", file=sys.stderr)
        return 1
    config = configuration(own.batch_size, own.seed)
    with tempfile.TemporaryDirectory(prefix="pycap-trajectory-") as folder:
        made, words, per_epoch = batches(config, own.steps, Path(folder))
        begin = time.perf_counter()
        expected = _expected(own.expected, config, made, words, per_epoch)
        print(f"CPU, float32: {len(made)} steps, {time.perf_counter() - begin:.1f} s", flush=True)
        backends.select(own.device, own.backend)
        begin = time.perf_counter()
        losses = train(replace(config, precision=own.precision), made, words, per_epoch, resident=True)
        print(f"{current()}, {own.precision}: {time.perf_counter() - begin:.1f} s", flush=True)
    far = distance(losses, expected)
    for step in sorted({0, 1, 4, 9, *range(9, len(made), 10), len(made) - 1} & set(range(len(made)))):
        print(
            f"step {step + 1:3}: {losses[step]:.5f} beside {expected[step]:.5f}, {losses[step] / expected[step] - 1:+.2e}"
        )
    print(f"largest distance {far:.2e}, allowed {BOUND}; the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
    if own.json:
        writer = Writer(own.json)
        row: Row = {
            "op": "trajectory", "case": f"{config.cnn}-{config.image_size}px-{config.batch_size}x{config.seq_per_img}",
            "mode": f"{own.steps} steps", "dtype": DTYPES[own.precision], "backend": current(), "peer": "pycap cpu float32",
            "err": far, "commit": machine.commit(), "note": " ".join(f"{loss:.5f}" for loss in losses),
        }  # fmt: skip
        writer.add(row)
        writer.close()
    return int(not far <= BOUND)


if __name__ == "__main__":
    sys.exit(main())
