"""A training run on real photographs in one command: the CNN learns words, then the LSTM learns, then both jointly.

    python -m benchmarks.pack_flickr --data DIR --size 160 --out flickr8k.zip
    python -m benchmarks.real_run --data flickr8k.zip --out real_run.json

Every option of train.py works; the phases are --pretrain-words, --finetune-cnn-after and what is left of --epochs. The file
is written anew after each epoch: losses, scores, seconds, images a second, and how long the input was waited for; at the end
minutes by phase, and scores of captions by the weights of the least validation loss. Nothing here needs YAML or jsonargparse;
without nltk, captions are kept instead of scores, for benchmarks.score_run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import joint_work, machine
from benchmarks.nvml import Meter
from pycap import backends, metrics
from pycap import config as configuration
from pycap.captioner import Captioner, build_model
from pycap.config import ConfigError, TrainConfig
from pycap.data import DataError
from pycap.data.disk import write_whole
from pycap.device import DeviceError, cpu_count, current, to_host
from pycap.training import sources
from pycap.training.feed import Feed
from pycap.training.trainer import Diverged, Trainer

#: Over joint_work.COCO: recipes/flickr8k.yaml at 160x160, for minutes on a large GPU. VGG16 without normalisation layers
#: does not bear the 1e-3 that the small CNNs learn words with.
FLICKR8K: dict[str, Any] = {
    "stage": "flickr8k",
    "image_size": 160,
    "resize": 0,
    "max_length": 20,
    "pretrain_words": 30,
    "pretrain_learning_rate": 2e-4,
    "epochs": 40,
    "finetune_cnn_after": 10,
    "lr_schedule": "cosine",
    "warmup_steps": 100,
    "val_images_use": -1,
    "save_checkpoint_every": 0,
    "store": "none",
    "beam_size": 3,
}
PHASES = ("words", "frozen", "joint")


class RealRun:
    """One run; `record` is what the file holds."""

    def __init__(self, config: TrainConfig, name: str, out: Path, run: Path, minutes: float) -> None:
        """name: of the data, for the record. run: a folder for what the loaders note."""
        source, config = sources.find(config, print)
        self.config, self.out, self.limit_s = config, out, 60 * minutes
        vocab, self.spec = sources.vocabulary(source, config), sources.preprocess_spec(config)
        self.loaders = sources.loaders(source, vocab, self.spec, config, run)
        self.feed = Feed(self.loaders.train)
        self.model = build_model(config, len(vocab))
        self.trainer = Trainer(self.model, config, self.spec, len(self.loaders.train))
        self.captioner = Captioner(self.model, vocab, self.spec, config)
        self.best: tuple[float, dict[str, np.ndarray]] | None = None
        self.record: dict[str, Any] = {
            "config": {**configuration.to_dict(config), "data": name},
            "images": {"train": len(source.train), "val": len(source.val), "unusable": len(source.problems)},
            "words": len(vocab),
            "parameters": self.model.parameter_count(),
            "device": current(),
            "hardware": Meter().name() if current() == "cuda" else machine.cpu_name(),
            "commit": machine.commit(),
            "versions": machine.versions(("numpy", "cupy-cuda13x", "triton", "ml_dtypes")),
            "epochs": [],
            "minutes": dict.fromkeys(PHASES, 0.0),
            "ended": "",
        }

    def go(self) -> str:
        """All epochs, or as many as there is time for; returns how it ended, as the record has it."""
        begin = time.perf_counter()
        total = self.config.pretrain_words + self.config.epochs
        ended = "all epochs"
        for epoch in range(total):
            if epoch and time.perf_counter() - begin > self.limit_s:
                ended = f"the time was over after {epoch} of {total} epochs"
                break
            try:
                self._epoch(epoch, last=epoch == total - 1)
            except Diverged as error:
                ended = f"diverged: {error}"
                break
            self._write()
        if self.best is not None:
            self._caption()
        self.record["ended"] = ended
        self._write()
        return ended

    def _epoch(self, epoch: int, last: bool) -> None:
        begin = time.perf_counter()
        joint = self.trainer.begin_epoch(epoch)
        phase = "words" if self.trainer.objective == "words" else "joint" if joint else "frozen"
        losses = joint_work.run_steps(self.trainer, self.feed.epoch(epoch))
        seconds = time.perf_counter() - begin
        row: dict[str, Any] = {
            "epoch": epoch + 1, "phase": phase, "train_loss": float(np.mean(losses)), "seconds": seconds,
            "images_per_s": self.record["images"]["train"] / seconds, "input_wait_pct": 100 * self.feed.stall().share,
        }  # fmt: skip
        if phase != "words":
            captioning = epoch + 1 - self.config.pretrain_words
            row["val_loss"] = self.trainer.loss(self.loaders.val.epoch(0))
            self.trainer.schedule.observe(row["val_loss"])
            if self.best is None or row["val_loss"] < self.best[0]:
                self.best = row["val_loss"], {n: to_host(a).copy() for n, a in self.model.state_arrays().items()}
            if captioning % self.config.val_every == 0 or last:
                row |= self._judge(1)
                if "scores" in row:
                    del row["captions"]
        self.record["minutes"][phase] += (time.perf_counter() - begin) / 60
        self.record["epochs"].append(row)
        shown = {key: value for key, value in row.items() if key != "captions"}
        print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()), flush=True)

    def _judge(self, beam: int) -> dict[str, Any]:
        """Captions of the held-out images, and their scores or why there are none: nltk, which scores them, may be missing."""
        said: dict[str, str] = {}
        references: dict[str, list[str]] = {}
        for batch in self.loaders.val.epoch(0):
            captions = self.captioner.caption_batch(
                batch.images, batch.crops, beam_size=beam, length_penalty=self.config.length_penalty
            )
            for example, beams in zip(batch.examples, captions, strict=True):
                said[str(example.image_id)] = beams[0][0]
                references[str(example.image_id)] = list(example.captions)
        self.captioner.weights.clear()
        try:
            return {"captions": said, "scores": scored(said, references)}
        except ImportError as error:
            return {"captions": said, "unscored": f"{error}: python -m benchmarks.score_run scores them"}

    def _caption(self) -> None:
        assert self.best is not None
        loss, arrays = self.best
        self.model.load_arrays(arrays)
        begin = time.perf_counter()
        judged = self._judge(self.config.beam_size)
        seconds = time.perf_counter() - begin
        self.record["best"] = {
            "val_loss": loss, "beam": self.config.beam_size, "captions_per_s": len(judged["captions"]) / seconds, **judged,
        }  # fmt: skip
        said = judged.get("scores", judged.get("unscored"))
        print(f"best: validation loss {loss:.4f}, beam {self.config.beam_size}: {said}", flush=True)

    def _write(self) -> None:
        write_whole(self.out, json.dumps(self.record, indent=1) + "\n")


def scored(said: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Every metric that pycap has. ImportError where a package that one needs is missing."""
    return {**metrics.score(said, references), "distinct": metrics.distinct_ratio(said.values())}


def unpacked(data: Path, place: Path) -> Path:
    """A folder as it is; a zip's contents in `place`. DataError for anything else."""
    if data.is_dir():
        return data
    if not zipfile.is_zipfile(data):
        raise DataError(f"{data}: neither a folder nor a zip; python -m benchmarks.pack_flickr makes one")
    with zipfile.ZipFile(data) as archive:
        archive.extractall(place)
    return place


def phases(record: dict[str, Any]) -> Iterable[str]:
    """A line for each phase."""
    for phase in PHASES:
        rows = [row for row in record["epochs"] if row["phase"] == phase]
        if rows:
            said = f"{phase:7} {len(rows):3} epochs, {record['minutes'][phase]:.2f} minutes"
            for key in ("train_loss", "val_loss"):
                if key in rows[0]:
                    said += f", {key} {rows[0][key]:.4f} -> {rows[-1][key]:.4f}"
            yield said


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line describes; 1 where the data cannot be used, or the run diverged."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_run", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="begin no epoch after so long (default: %(default)s)"
    )
    joint_work.add_options(parser)
    own = parser.parse_args(argv)
    try:
        config = joint_work.make_config(own, **FLICKR8K)
        if config.data is None:
            parser.error("--data names the folder, or the zip of benchmarks.pack_flickr")
        backends.select(config.device, config.backend)
        backends.set_threads(config.threads or cpu_count())
        with tempfile.TemporaryDirectory(prefix="pycap-real-run-") as place:
            own.out.parent.mkdir(parents=True, exist_ok=True)
            name, data = config.data.name, unpacked(config.data, Path(place) / "data")
            run = RealRun(replace(config, data=data), name, own.out, Path(place), own.minutes)
            try:
                ended = run.go()
            finally:
                run.loaders.close()
    except (ConfigError, DataError, DeviceError, backends.BackendError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join([*phases(run.record), f"ended: {ended}; {own.out}"]))
    return int(ended.startswith("diverged"))


if __name__ == "__main__":
    sys.exit(main())
