"""The sides of the comparison on a GPU: pycap, PyTorch eager and compiled, each as it works in a process of its own."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks import joint_work, machine
from benchmarks.sides import Unavailable
from benchmarks.worker import answer
from pycap import device
from pycap.config import TrainConfig
from pycap.data.images import centre_crops
from pycap.data.vocab import END, PAD, START, UNK
from pycap.training import sources

#: What captions are searched with, besides the width.
SEARCH: dict[str, Any] = {"start": START, "end": END, "suppress": (PAD, START, UNK)}
#: Multiplies the LSTM's and the projection's initial weights, so that what was said decides what follows.
VIVID = 3.0
_UNCOUNTED = 4  # steps
STEPS_PER_EPOCH = 1000  # what schedules count in; the rate is constant

Captions = list[tuple[str, float]]


@dataclass(frozen=True)
class Task:
    """What all sides are told. batches: drawn ones, that steps take in turn. modes: of torch.compile."""

    config: TrainConfig
    words: int
    batches: int
    agree: int
    modes: tuple[str, ...]
    rehearse: bool = False


def initial(config: TrainConfig, words: int, vivid: bool = False) -> dict[str, np.ndarray]:
    """The weights that every side starts from."""
    from pycap.captioner import build_model

    arrays = build_model(config, words).state_arrays()
    if vivid:
        scaled = [name for name in arrays if name.startswith(("lstm.weight", "projection.weight"))]
        arrays |= {name: arrays[name] * np.float32(VIVID) for name in scaled}
    return arrays


class PycapSide:
    """pycap, through the classes that train.py uses."""

    def __init__(self, task: Task) -> None:
        from pycap import backends

        backends.select(task.config.device, task.config.backend)
        backends.set_threads(task.config.threads or 1)
        self.task, self.config = task, task.config
        self._free, self._taken = _free_bytes(), 0
        self.said: list[str] = []  # by the trainer: why steps are not recorded, or not on the arena
        self.spec = sources.preprocess_spec(task.config)
        self.batches = joint_work.batches(task.config, task.batches, task.words, device.pinned_empty)

    def describe(self) -> dict[str, Any]:
        """backend: whose kernels the largest parts run on. said: what a person should know of that. flops: of a step."""
        from pycap import backends

        used = [backends.kernels.conv2d_forward, backends.kernels.lstm_forward]
        names = [".".join(f.__module__.split(".")[2:]) for f in used]
        return {
            "backend": "+".join(dict.fromkeys(name.split(".")[0] for name in names)),
            "variant": f"{self.trainer.ahead} step{'s' * (self.trainer.ahead != 1)} ahead",
            "said": list(dict.fromkeys(self.said)),
            "flops": joint_work.step_flops(self.config, self.batches, self.task.words),
        }

    def _make(self, config: TrainConfig) -> Any:
        from pycap.captioner import build_model
        from pycap.training.trainer import Trainer

        model = build_model(config, self.task.words)
        how = {"resident": True if self.task.rehearse else None, "log": self.said.append}
        trainer = Trainer(model, config, self.spec, STEPS_PER_EPOCH, **how)
        trainer.begin_epoch(0)
        return trainer

    def agree(self, steps: int) -> list[float]:
        """Losses of the first steps without dropout, on weights that are thrown away."""
        self.trainer = self._make(replace(self.config, drop_prob_lm=0.0, drop_prob_cnn=0.0))
        losses = self.train(0, steps)
        del self.trainer
        self._forget()
        return losses

    def prepare(self) -> None:
        """The trainer that is timed, with each batch seen once or more."""
        self.trainer = self._make(self.config)
        self.train(0, 2 * len(self.batches))
        self._taken = self._free - _free_bytes()  # no other side has begun yet
        self._forget()

    def _forget(self) -> None:
        from pycap import memory

        gc.collect()
        memory.trim()
        machine.forget_peak()

    def train(self, first: int, count: int) -> list[float]:
        """Steps number `first` on, of the drawn batches."""
        return self.train_on(self.batches[(first + i) % len(self.batches)] for i in range(count))

    def train_on(self, items: Iterable[Any]) -> list[float]:
        return joint_work.run_steps(self.trainer, items)

    def stream(self) -> Iterator[Any]:
        """Batches from JPEGs, through the feed that train.py uses."""
        from pycap.training.feed import Feed

        feed = Feed(joint_work.jpeg_loader(self.config, self.task.words, device.pinned_empty))
        for epoch in itertools.count():
            with closing(feed.epoch(epoch)) as items:
                yield from (item for item in items if len(item.batch) == self.config.batch_size)

    def synchronize(self) -> None:
        if device.current() == "cuda":
            device.module().cuda.runtime.deviceSynchronize()

    def peak_mib(self) -> float:
        """On a GPU, what the warm-up took from it: pools, arena, graphs, kernels; else the process's peak."""
        return self._taken / 2**20 if device.current() == "cuda" else machine.peak_mib()

    def prepare_captions(self) -> None:
        from pycap.captioner import Captioner

        self.trainer.model.load_arrays(initial_on_host(self.config, self.task.words))
        vocab = joint_work.vocabulary(self.task.words)
        self.captioner = Captioner(self.trainer.model, vocab, self.spec, self.config)

    def caption(self, beam: int) -> Captions:
        """The best caption of each image of the first batch, and its log-probability."""
        images = self.batches[0].images
        found = self.captioner.caption_batch(images, centre_crops(self.spec, len(images)), beam_size=beam)
        return [beams[0] for beams in found]

    def ceilings(self, n: int, copied: int) -> dict[str, float]:
        raise Unavailable("the ceilings are measured by PyTorch")


def _free_bytes() -> int:
    """Of the GPU's memory; 0 on the CPU."""
    return device.module().cuda.runtime.memGetInfo()[0] if device.current() == "cuda" else 0


def initial_on_host(config: TrainConfig, words: int) -> dict[str, np.ndarray]:
    """`initial`, vivid, on the host whatever the current device is."""
    with device.use("cpu"):
        return initial(config, words, vivid=True)


def _torch(task: Task, compiled: bool) -> Any:
    from benchmarks.peers.joint_gpu_torch import TorchSide

    return TorchSide(task, compiled)


SIDES: dict[str, Callable[[Task], Any]] = {
    "pycap": PycapSide,
    "torch eager": lambda task: _torch(task, False),
    "torch compile": lambda task: _torch(task, True),
}


class _Worker:
    """Serves one side: prepares it, then trains and captions as the parent asks."""

    def __init__(self, name: str, task: Task) -> None:
        self.side = SIDES[name](task)
        agreed = self.side.agree(task.agree) if name != "torch compile" else []
        self.side.prepare()
        self.info = {**self.side.describe(), "agreed": agreed}

    def segment(self, first: int, count: int) -> dict[str, Any]:
        """`count` steps from an idle device to an idle device: seconds a step, and the losses."""
        self.side.synchronize()
        begin = time.perf_counter()
        losses = self.side.train(first, count)
        self.side.synchronize()
        return {"seconds": (time.perf_counter() - begin) / count, "losses": losses, "peak_mib": self.side.peak_mib()}

    def pipeline(self, count: int) -> dict[str, Any]:
        """`segment` from JPEGs, with the first steps not counted: the decoding threads begin with them."""
        with closing(self.side.stream()) as items:
            self.side.train_on(itertools.islice(items, _UNCOUNTED))
            self.side.synchronize()
            begin = time.perf_counter()
            losses = self.side.train_on(itertools.islice(items, count))
            self.side.synchronize()
            return {"seconds": (time.perf_counter() - begin) / count, "losses": losses}

    def prepare_captions(self) -> None:
        self.side.prepare_captions()

    def captions(self, beam: int, count: int) -> dict[str, Any]:
        """Caption the batch `count` times: seconds a batch, and what was said."""
        self.side.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            said = self.side.caption(beam)
        return {"seconds": (time.perf_counter() - begin) / count, "said": said}

    def score(self, captions: list[str]) -> list[float]:
        return self.side.score(captions)

    def ceilings(self, n: int, copied: int) -> dict[str, float]:
        return self.side.ceilings(n, copied)


def serve(connection: Connection, name: str, task: Task) -> None:
    """The child's loop for a side."""

    def make() -> tuple[_Worker, Any]:
        worker = _Worker(name, task)
        return worker, worker.info

    answer(connection, name, make)
