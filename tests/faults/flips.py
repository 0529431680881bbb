"""Damage to a trained checkpoint, piece by piece: is it detected when the checkpoint is loaded, and are file and tensor named?

    python -m tests.faults.flips --flips 1000 --seed 0

trains the tiny run of the tests on a demo set, changes one byte of `last/` at a time (half of them anywhere in the folder, so
mostly in tensors; half in a file that is drawn first, so that small files have their share), then cuts off, lengthens and
exchanges files, and writes what came of it to benchmarks/results/flips.json. Status 1 where anything went unnoticed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import pycap
from benchmarks import machine
from pycap import checkpoint
from pycap.data import demo
from pycap.data.disk import write_whole
from pycap.data.vocab import Vocabulary
from tests.train.runs import tiny

OUT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "flips.json"


def tensors(path: Path) -> list[tuple[int, int, str]]:
    """(first byte, byte after the last, name) of each tensor of a safetensors file, in its order; of others none."""
    if path.suffix != ".safetensors":
        return []
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    del header["__metadata__"]
    return sorted((start + e["data_offsets"][0], start + e["data_offsets"][1], name) for name, e in header.items())


def refusal(folder: Path) -> str | None:
    """What a run that goes on from the folder is told; None where it is read."""
    try:
        checkpoint.load(folder, optimizer=True)
    except checkpoint.CheckpointError as error:
        return str(error)
    return None


def named(text: str | None, path: Path) -> bool:
    return text is not None and text.startswith(f"{path}: ")


def flips(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """One byte at a time, by another value: what was detected and named, by file, and the first few of what was not."""
    rng = np.random.default_rng(seed)
    names = sorted(path.name for path in folder.iterdir())
    whole = {name: (folder / name).read_bytes() for name in names}
    places = {name: tensors(folder / name) for name in names}
    sizes = np.array([len(whole[name]) for name in names])
    told: dict[str, Counter[str]] = {name: Counter() for name in names}
    missed = []
    for number in range(count):
        name = names[rng.choice(len(names), p=sizes / sizes.sum() if number % 2 else None)]
        at, change = int(rng.integers(len(whole[name]))), int(rng.integers(1, 256))
        content = bytearray(whole[name])
        content[at] ^= change
        (folder / name).write_bytes(content)
        text = refusal(folder)
        (folder / name).write_bytes(whole[name])
        hit = [tensor for begin, end, tensor in places[name] if begin <= at < end]
        right = re.findall(r"tensor (\S+) is damaged", text or "") == hit
        told[name].update(
            flips=1,
            detected=text is not None,
            file_named=named(text, folder / name),
            in_a_tensor=bool(hit),
            tensor_named=bool(hit) and right,
        )
        if not named(text, folder / name) or not right:
            missed.append({"file": name, "at": at, "xor": change, "hit": hit, "told": text})
    return {
        "bytes": dict(zip(names, sizes.tolist(), strict=True)),
        "files": {name: dict(told[name]) for name in names},
        "all": dict(sum((told[name] for name in names), Counter())),
        "missed": missed[:10],
    }


def others(folder: Path, foreign: Path, seed: int) -> Iterator[tuple[str, Path, bytes]]:
    """(kind, file, its contents instead): files cut off at any byte, longer ones, those of another save, tensors exchanged."""
    rng = np.random.default_rng(seed)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for length in rng.integers(0, len(content), 20).tolist():
            yield "cut off", path, content[:length]
        for length in rng.integers(1, 1000, 5).tolist():
            yield "lengthened by zeros", path, content + bytes(length)
            yield "lengthened by noise", path, content + rng.bytes(length)
            yield "begun by noise", path, rng.bytes(length) + content
        yield "of another save", path, (foreign / path.name).read_bytes()
        by_size: dict[int, list[tuple[int, int, str]]] = {}
        for place in tensors(path):
            by_size.setdefault(place[1] - place[0], []).append(place)
        for alike in by_size.values():
            for (a, b, _), (c, d, _) in pairwise(alike):
                if content[a:b] != content[c:d]:
                    yield (
                        "tensors exchanged",
                        path,
                        content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:],
                    )


def damage(folder: Path, foreign: Path, seed: int) -> dict[str, Any]:
    """Of each kind of damage: how often it was made, detected, and its file named."""
    told: dict[str, Counter[str]] = {}
    missed = []
    for kind, path, content in list(others(folder, foreign, seed)):
        whole = path.read_bytes()
        path.write_bytes(content)
        text = refusal(folder)
        path.write_bytes(whole)
        # A list of another save names the first file that is not of it.
        right = named(text, path) or (kind == "of another save" and path.name == checkpoint.SUMS and text is not None)
        told.setdefault(kind, Counter()).update(made=1, detected=text is not None, file_named=right)
        if not right:
            missed.append({"kind": kind, "file": path.name, "bytes": len(content), "told": text})
    return {"kinds": {kind: dict(counts) for kind, counts in told.items()}, "missed": missed[:10]}


def trained(work: Path) -> Path:
    """The folder of a run of an epoch."""
    return pycap.train(tiny(demo.generate(work / "set", train=24, val=10, size=64), work / "run", epochs=1)).folder


def measure(run: Path, count: int, seed: int) -> dict[str, Any]:
    """All of it, on copies of a run's last checkpoint."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        folder, foreign = Path(work, "last"), Path(work, "foreign")
        shutil.copytree(run / "last", folder)
        saved = checkpoint.load(folder, optimizer=True)
        # The same arrays; of another run, so that no file is the same.
        checkpoint.save(
            foreign, model=saved.model, optimizer=saved.optimizer, state=saved.state, preprocess=saved.preprocess,
            vocab=Vocabulary([*saved.vocab.words[4:], "other"]), config=replace(saved.config, seed=saved.config.seed + 1),
        )  # fmt: skip
        found = {"flips": flips(folder, count, seed), "damage": damage(folder, foreign, seed)}
        if (text := refusal(folder)) is not None:
            raise RuntimeError(f"the checkpoint is not as it was: {text}")
    return found | {"seconds": round(time.perf_counter() - begun, 1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    own = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        found = measure(trained(Path(work)), own.flips, own.seed)
    record = {
        "command": f"python -m tests.faults.flips --flips {own.flips} --seed {own.seed}",
        "commit": machine.commit(),
        "cpu": machine.cpu_name(),
        "versions": machine.versions(("numpy",)),
        **found,
    }
    write_whole(own.out, json.dumps(record, indent=1) + "\n")
    flipped, kinds = found["flips"]["all"], found["damage"]["kinds"]
    print(
        f"{flipped['flips']} flips: {flipped['detected']} detected, {flipped['file_named']} with their file named; of "
        f"{flipped['in_a_tensor']} in a tensor {flipped['tensor_named']} with its name"
    )
    for kind, counts in kinds.items():
        print(f"{kind}: {counts['made']}, {counts['detected']} detected, {counts['file_named']} with their file named")
    print(f"{found['seconds']} s; {own.out}")
    return bool(found["flips"]["missed"] or found["damage"]["missed"])


if __name__ == "__main__":
    sys.exit(main())
