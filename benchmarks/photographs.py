"""What a CNN that sees is worth on real photographs: captioners of Flickr8k without one, and with one in each state.

    python -m benchmarks.photographs --flickr8k DIR --images DIR --json benchmarks/results/photographs.json

A small VGG learns to classify the images of a folder tree (train/<class>/, val/<class>/, or train.tar and val.tar of these:
Tiny-ImageNet), then captioners learn Flickr8k: without any image, on a random frozen CNN, on the pre-trained one frozen, on
the same jointly, from the start and after it, then for CIDEr-D itself, and the merge model on its features. Every run is a
command of train.py and goes into the record with its losses, the scores of beam-3 captions of the dev images, and its minutes.
Finished runs are not repeated: --runs keeps them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from pycap import config as configuration
from pycap import metrics
from pycap.data import load_split
from pycap.data.disk import write_whole
from pycap.device import cpu_count

ROOT = Path(__file__).resolve().parents[1]
_SHOWN = 6  # images whose captions go into the record


@dataclass(frozen=True)
class System:
    """A run. options: of train.py; `{runs}` is the folder of all runs. also: scores to add."""

    name: str
    what: str
    options: str
    also: tuple[str, ...] = ()


_NIC = "--recipe flickr8k_small --epochs 20 --learning-rate 2e-3 --lr-schedule cosine --warmup-steps 200 --val-every 5"
_MORE = (
    "--recipe flickr8k_small --epochs 10 --learning-rate 5e-4 --lr-schedule cosine --val-every 5 --drop-prob-cnn 0 "
    "--init-from {runs}/pretrained-frozen"
)
_SEEN = "--vgg-weights {runs}/pretrain"
PRETRAIN = System("pretrain", "the CNN as a classifier", "--recipe pretrain_small --epochs 16")
CAPTIONERS = (
    System("blind", "no image: the language model alone", f"{_NIC} --blind --freeze-cnn"),
    System("random-frozen", "a random CNN, frozen", f"{_NIC} --freeze-cnn"),
    System("pretrained-frozen", "the pre-trained CNN, frozen", f"{_NIC} {_SEEN} --freeze-cnn"),
    System("pretrained-joint", "the pre-trained CNN, joint from the start", f"{_NIC} {_SEEN} --cnn-learning-rate 2e-4"),
    System("frozen-longer", "pre-trained and frozen, 10 epochs more", f"{_MORE} --freeze-cnn"),
    System("then-joint", "the same 10 epochs, joint", f"{_MORE} --cnn-learning-rate 1e-4"),
    System(
        "scst",
        "and self-critical training after it",
        "--stage scst --datasets flickr8k --init-from {runs}/then-joint --freeze-cnn --batch-size 50 --max-length 20 "
        "--learning-rate 3e-5 --epochs 5",
    ),
    System("merge", "the merge model on its features", f"--recipe merge_small {_SEEN}", ("bleu_keras",)),
)


def unpacked(images: Path, into: Path) -> Path:
    """The folder tree, unpacked from its tars where it is given as such."""
    tars = [images / f"{split}.tar" for split in ("train", "val")]
    if not all(tar.is_file() for tar in tars):
        return images
    into.mkdir(parents=True, exist_ok=True)
    for tar in tars:
        if not (into / tar.stem).is_dir():
            with tarfile.open(tar) as archive, tempfile.TemporaryDirectory(dir=into) as part:
                archive.extractall(part, filter="data")
                (Path(part) / tar.stem).rename(into / tar.stem)
    return into


def train(system: System, runs: Path, data: Path, threads: int) -> None:
    """The run, unless it is finished; one that was interrupted is continued."""
    folder = runs / system.name
    if minutes(folder) is not None:
        return
    options = ["--resume", str(folder)]
    if not (folder / "last" / "state.json").is_file():
        options = [*system.options.format(runs=runs).split(), "--data", str(data), "--out-dir", str(folder)]
    begin = time.perf_counter()
    command = [sys.executable, "train.py", *options, "--threads", str(threads)]
    subprocess.run(command, check=True, cwd=ROOT)
    write_whole(folder / "minutes.txt", f"{(time.perf_counter() - begin) / 60:.2f}\n")


def minutes(folder: Path) -> float | None:
    """How long the run took, from its last start on; None where it is not finished."""
    note = folder / "minutes.txt"
    return float(note.read_text(encoding="utf-8")) if note.is_file() else None


def effort(folder: Path) -> dict[str, Any]:
    """What the run took: its minutes, on so many threads."""
    return {"minutes": minutes(folder), "threads": configuration.load(folder / "config.yaml").threads or cpu_count()}


def losses(folder: Path) -> list[dict[str, Any]]:
    """The validations in the run's log."""
    rows = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [{k: v for k, v in row.items() if k not in ("kind", "step")} for row in rows if row["kind"] == "val"]


def captions(folder: Path) -> dict[str, str]:
    """What the run's best checkpoint said of the held-out images, by id."""
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return {str(row["image_id"]): row["caption"] for row in map(json.loads, lines)}


def record(system: System, folder: Path, references: dict[str, list[str]]) -> dict[str, Any]:
    """A captioner's row."""
    said = captions(folder)
    also = [*system.also, *(() if metrics.meteor_missing() else ("METEOR",))]
    scores = metrics.score(said, references, also=also)
    validations, judge = losses(folder), configuration.load(folder / "config.yaml").save_best_on
    best = min(validations, key=lambda row: row[judge] if judge == "val_loss" else -row[judge])
    return {
        "name": system.name,
        "what": system.what,
        "options": system.options.format(runs="RUNS"),
        **effort(folder),
        "val_loss": best["val_loss"],
        "scores": {**scores, "distinct": metrics.distinct_ratio(said.values())},
        "validations": validations,
        "captions": {image: said[image] for image in sorted(said)[:_SHOWN]},
    }


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The captioners side by side, as Markdown."""
    names = ("BLEU-1", "BLEU-4", "CIDEr", "METEOR")
    lines = [f"| captioner | dev loss | {' | '.join(names)} | distinct | minutes |", "|---" * 8 + "|"]
    for row in rows:
        scores = " | ".join(f"{row['scores'][name]:.4f}" if name in row["scores"] else "" for name in names)
        distinct = f"{100 * row['scores']['distinct']:.1f} %"
        lines.append(f"| {row['what']} | {row['val_loss']:.4f} | {scores} | {distinct} | {row['minutes']:.0f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not trained yet, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__.splitlines()[0])
    parser.add_argument("--flickr8k", type=Path, required=True, metavar="DIR", help="Flickr8k")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="train/<class>/ and val/<class>/")
    parser.add_argument("--runs", type=Path, default=Path("runs/photographs"), metavar="DIR", help="the runs' folders")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in CAPTIONERS], help="of the captioners, these")
    parser.add_argument("--threads", type=int, default=0)
    own = parser.parse_args(argv)
    runs, threads = own.runs.absolute(), own.threads or cpu_count()
    runs.mkdir(parents=True, exist_ok=True)
    train(PRETRAIN, runs, unpacked(own.images, runs / "images").absolute(), threads)
    examples, _ = load_split("flickr8k", own.flickr8k, "val")
    references = {str(example.image_id): list(example.captions) for example in examples}
    rows = []
    for system in CAPTIONERS:
        if own.only and system.name not in own.only:
            continue
        train(system, runs, own.flickr8k.absolute(), threads)
        rows.append(record(system, runs / system.name, references))
    result = {
        "command": "python -m benchmarks.photographs --flickr8k DIR --images DIR --json FILE",
        "commit": machine.commit(),
        "hardware": machine.cpu_name(),
        "versions": machine.versions(("numpy", "pillow", "nltk", "pycocoevalcap")),
        "pretrain": {
            "options": PRETRAIN.options,
            **effort(runs / PRETRAIN.name),
            "validations": losses(runs / PRETRAIN.name),
        },
        "captioners": rows,
    }
    write_whole(own.json, json.dumps(result, indent=1) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
