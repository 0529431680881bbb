"""pycap beside PyTorch: the same joint captioner, data and steps, in turns; seconds a step, memory, and loss on held-out data.

    python -m benchmarks.peers.torch_joint --recipe flickr8k_small --data DIR --epochs 1
    python -m benchmarks.peers.torch_joint --recipe flickr8k_small --data DIR --epochs 12 --dev-loss
    python -m benchmarks.peers.torch_joint --stage coco --data DIR --cnn vgg16 --batch-size 4 --steps 2 --segments 3
    python -m benchmarks.peers.torch_joint --device cuda          # joint_gpu.py: other options, see its --help

Every option of train.py works; without --data it runs on the drawn demo set. Each side lives in a process of its own (two
OpenMP run times in one process slow each other down) and works while the other waits. Both read the same batches through
pycap's loader and start from the same weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.peers.joint_sides import Options, serve
from benchmarks.worker import Remote, SideError
from pycap import __version__
from pycap.config import TrainConfig, parse_args
from pycap.data import DataError
from pycap.device import cpu_count
from pycap.training import sources

SIDES = ("pycap", "torch")


@dataclass
class Side:
    """One side's measurements. seconds: of each step, waiting for its batch included; segments: of each turn as a whole."""

    info: dict[str, Any]
    seconds: list[float]
    segments: list[float]
    losses: list[float]
    dev: list[float]
    peak_mib: float = 0.0


# The comparison -------------------------------------------------------------------------------------------------------


def measure(config: TrainConfig, options: Options, epochs: int | None) -> dict[str, Side]:
    """Run both sides in turns, either one first by turns: epochs, or `options.segments` times `options.steps` steps."""
    remotes: dict[str, Remote] = {}
    sides: dict[str, Side] = {}
    try:
        for name in SIDES:  # one after the other: each warms up and chooses on a quiet machine
            remotes[name] = Remote(name, serve, name, config, options)
            sides[name] = Side(remotes[name].receive(), [], [], [], [])
            info = sides[name].info
            print(f"{name:6} {info['backend']}{'; ' + info['variant'] if info['variant'] else ''}", flush=True)
        count = options.steps or sides["pycap"].info["steps"]
        turns = options.segments if options.steps else epochs or 1
        for turn in range(turns):
            for name in SIDES if turn % 2 == 0 else SIDES[::-1]:
                result = remotes[name].call("segment", turn * count, count)
                side = sides[name]
                side.seconds += result["seconds"]
                side.segments.append(result["total"])
                side.losses += result["losses"]
                side.peak_mib = result["peak_mib"]
                if options.dev_loss:
                    side.dev.append(remotes[name].call("dev_loss"))
            _print_turn(turn, sides, count)
    finally:
        for remote in remotes.values():
            remote.close()
    return sides


def _print_turn(turn: int, sides: dict[str, Side], count: int) -> None:
    parts = []
    for name, side in sides.items():
        dev = f", dev loss {side.dev[-1]:.4f}" if side.dev else ""
        loss = float(np.mean(side.losses[-count:]))
        parts.append(f"{name} {side.segments[-1]:.2f} s, train loss {loss:.4f}{dev}")
    print(f"turn {turn + 1} ({count} steps): {';  '.join(parts)}", flush=True)


def row(sides: dict[str, Side], config: TrainConfig) -> dict[str, Any]:
    """The result as one row with the keys of all of pycap's benchmarks, and some of its own."""
    ours, peer = sides["pycap"], sides["torch"]
    low, middle, high = np.quantile(ours.seconds, [0.2, 0.5, 0.8])
    peer_low, peer_middle, peer_high = np.quantile(peer.seconds, [0.2, 0.5, 0.8])
    return {
        "op": "joint",
        "case": f"{config.stage}-{config.cnn}-{config.image_size}px-{config.batch_size}x{config.seq_per_img}",
        "mode": "step",
        "dtype": "float32",
        "backend": ours.info["backend"],
        "peer": peer.info["backend"],
        "median_s": float(middle),
        "q20_s": float(low),
        "q80_s": float(high),
        "peer_median_s": float(peer_middle),
        "ratio": float(peer_middle / middle),
        "gflops": None,
        "gbps": None,
        "ceiling_pct": None,
        "err": None,
        "commit": machine.commit(),
        "hardware": f"{machine.cpu_name()}, {config.threads} threads",
        "versions": {"pycap": __version__, "python": platform.python_version(), "numpy": np.__version__},
        "peer_q20_s": float(peer_low),
        "peer_q80_s": float(peer_high),
        "peer_variant": peer.info["variant"],
        "steps": len(ours.seconds),
        "turn_s": ours.segments,
        "peer_turn_s": peer.segments,
        "peak_mib": ours.peak_mib,
        "peer_peak_mib": peer.peak_mib,
        "dev_loss": ours.dev,
        "peer_dev_loss": peer.dev,
        "threads": config.threads,
    }


def report(result: dict[str, Any]) -> None:
    """The row for a person."""
    print(f"\n{result['case']}: {result['steps']} steps a side, {result['hardware']}")
    print(f"{'':18} {'pycap':>10} {'torch':>10}")
    lines = [
        ("seconds a step", "median_s", "peer_median_s", "{:10.4f}"),
        ("  20 %", "q20_s", "peer_q20_s", "{:10.4f}"),
        ("  80 %", "q80_s", "peer_q80_s", "{:10.4f}"),
        ("peak memory, MiB", "peak_mib", "peer_peak_mib", "{:10.0f}"),
    ]
    for label, ours, peer, form in lines:
        print(f"{label:18} {form.format(result[ours])} {form.format(result[peer])}")
    whole, peer_whole = float(np.median(result["turn_s"])), float(np.median(result["peer_turn_s"]))
    print(f"{'a turn, seconds':18} {whole:10.2f} {peer_whole:10.2f}")
    for epoch, (ours, peer) in enumerate(zip(result["dev_loss"], result["peer_dev_loss"], strict=True), 1):
        print(f"{f'dev loss, turn {epoch}':18} {ours:10.4f} {peer:10.4f}  {ours - peer:+.4f}")
    print(f"ratio torch / pycap: {result['ratio']:.3f} a step, {peer_whole / whole:.3f} a turn")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"{versions}, {result['peer']} ({result['peer_variant']}); commit {result['commit'] or 'unknown'}")


def _parse(argv: Sequence[str]) -> tuple[Options, int | None, TrainConfig]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.torch_joint",
        description="Time pycap's joint training beside the same model in PyTorch. Options of train.py are taken too.",
        allow_abbrev=False,
    )
    parser.add_argument("--epochs", type=int, help="turns of a whole epoch each (default 1, unless --steps is given)")
    parser.add_argument("--steps", type=int, default=0, help="instead of epochs: steps a turn")
    parser.add_argument("--segments", type=int, default=5, help="with --steps: turns a side (default 5)")
    parser.add_argument(
        "--warmup", type=int, default=3, help="untimed steps of each side, on weights thrown away (default 3)"
    )
    parser.add_argument("--dev-loss", action="store_true", help="evaluate both sides after each turn")
    parser.add_argument("--memory-format", choices=("best", "channels_last", "contiguous"), default="best")
    parser.add_argument("--peer-optimizer", choices=("best", "fused", "foreach"), default="best")
    parser.add_argument("--peer-loss", choices=("best", "compact", "ignore_index"), default="best")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the result as a line of JSON")
    own, rest = parser.parse_known_args(argv)
    for name in ("epochs", "steps", "segments", "warmup"):
        value = getattr(own, name)
        if value is not None and value < (1 if name in ("epochs", "segments") else 0):
            parser.error(f"--{name} {value} is too small")
    if own.epochs and own.steps:
        parser.error("--epochs and --steps are two ways to say how long a turn is; give one")
    epochs = own.epochs
    if epochs:
        rest = [*rest, "--epochs", str(epochs)]  # learning-rate schedules depend on it
    settings = {name: value for name, value in vars(own).items() if name != "epochs"}
    return Options(**settings), epochs, parse_args(rest, prog=parser.prog)


def _on_gpu(argv: Sequence[str]) -> bool:
    """Whether `joint_gpu` does it: on a GPU, or the rehearsal of that."""
    asked = [b for a, b in pairwise(argv) if a == "--device"]
    return "--rehearse" in argv or "--device=cuda" in argv or "cuda" in asked


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison that the command line describes; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if _on_gpu(argv):
        from benchmarks.peers import joint_gpu

        return joint_gpu.main(argv)
    options, epochs, config = _parse(argv)
    if importlib.util.find_spec("torch") is None:
        print("PyTorch, the peer, is not installed; make bench installs it, or: pip install torch", file=sys.stderr)
        return 1
    config.threads = config.threads or cpu_count()
    try:
        source, config = sources.find(config, print)
    except DataError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    config = replace(config, data=source.folders[0])
    os.environ["OMP_NUM_THREADS"] = str(config.threads)  # for the children, before their libraries load
    try:
        result = row(measure(config, options, epochs), config)
    except SideError as error:
        print(f"{error}\na smaller --batch-size or --micro-batch needs less memory", file=sys.stderr)
        return 1
    report(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
