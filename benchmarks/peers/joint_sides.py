"""The two sides of torch_joint, pycap and PyTorch, each as it works in a process of its own."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import machine
from pycap import memory
from pycap.config import TrainConfig
from pycap.data.loader import Batch, Loader
from pycap.training import sources


@dataclass(frozen=True)
class Options:
    """What this benchmark adds to train.py's options; `best` stands for whatever is faster on this machine."""

    steps: int
    segments: int
    warmup: int
    dev_loss: bool
    memory_format: str
    peer_optimizer: str
    peer_loss: str
    json: Path | None


class PycapSide:
    """pycap, through the classes that train.py uses."""

    def __init__(self, config: TrainConfig, options: Options) -> None:
        from pycap import backends

        backends.select("cpu" if config.device == "auto" else config.device, config.backend)
        backends.set_threads(config.threads)
        self.config = config

    def choose(self, make: Any, batches: list[Batch]) -> None:
        """Nothing to choose."""

    def describe(self) -> dict[str, Any]:
        from pycap import backends

        used = [backends.kernels.conv2d_forward, backends.kernels.lstm_forward]
        return {"backend": "+".join(dict.fromkeys(f.__module__.rpartition(".")[2] for f in used)), "variant": ""}

    def trainer(self, spec: Any, vocabulary: int, steps: int) -> Any:
        from pycap.captioner import build_model
        from pycap.training.trainer import Trainer

        return Trainer(build_model(self.config, vocabulary), self.config, spec, steps)

    def step(self, trainer: Any, batch: Batch) -> float:
        return trainer.step(batch).loss


class TorchSide:
    """PyTorch, with pycap's initial weights."""

    def __init__(self, config: TrainConfig, options: Options) -> None:
        import torch

        from benchmarks.peers.torch_nic import Variant

        torch.set_num_threads(config.threads)
        self.config, self.options = config, options
        self.variant = Variant(
            options.memory_format != "contiguous",
            options.peer_optimizer != "foreach",
            options.peer_loss != "ignore_index",
        )

    def choose(self, make: Any, batches: list[Batch]) -> None:
        """Settle what is `best`, one choice after another: whatever has the fastest step of at least three, or of 3 s."""
        for field, asked in (
            ("channels_last", self.options.memory_format),
            ("fused", self.options.peer_optimizer),
            ("compact", self.options.peer_loss),
        ):
            if asked != "best":
                continue
            times = {}
            for value in (True, False):
                self.variant = replace(self.variant, **{field: value})
                trainer = make()
                trainer.begin_epoch(0)
                steps: list[float] = []
                while len(steps) < 3 or (sum(steps) < 3 and len(steps) < 20):
                    start = time.perf_counter()
                    self.step(trainer, batches[len(steps) % len(batches)])
                    steps.append(time.perf_counter() - start)
                times[value] = min(steps)
            self.variant = replace(self.variant, **{field: times[True] <= times[False]})

    def describe(self) -> dict[str, Any]:
        import torch

        return {"backend": f"torch {torch.__version__}", "variant": str(self.variant)}

    def trainer(self, spec: Any, vocabulary: int, steps: int) -> Any:
        from benchmarks.peers import torch_nic
        from pycap.captioner import build_model

        model = torch_nic.build(self.config, vocabulary)
        torch_nic.load_arrays(model, build_model(self.config, vocabulary).state_arrays())
        return torch_nic.PeerTrainer(model, self.config, spec, steps, self.variant)

    def step(self, trainer: Any, batch: Batch) -> float:
        return trainer.step(batch)


class _Worker:
    """Serves one side: prepares it, then trains segments and evaluates as the parent asks."""

    def __init__(self, name: str, config: TrainConfig, options: Options, folder: Path) -> None:
        self.side = {"pycap": PycapSide, "torch": TorchSide}[name](config, options)
        source, config = sources.find(config, lambda text: None)
        vocab, spec = sources.vocabulary(source, config), sources.preprocess_spec(config)
        self.loaders = sources.loaders(source, vocab, spec, config, folder)
        steps = len(self.loaders.train)

        def make() -> Any:
            return self.side.trainer(spec, len(vocab), steps)

        batches = [batch for batch, _ in zip(self.loaders.train.epoch(0), range(2), strict=False)]
        self.side.choose(make, batches)
        if options.warmup:
            trainer = make()
            trainer.begin_epoch(0)
            for i in range(options.warmup):
                self.side.step(trainer, batches[i % len(batches)])
            del trainer
        memory.trim()
        machine.forget_peak()
        self.trainer = make()
        self.info = {**self.side.describe(), "images": len(source.train), "steps": steps, "words": len(vocab)}

    def segment(self, first: int, count: int) -> dict[str, Any]:
        """Train on batches first..first+count, counted from the run's beginning over its epochs."""
        seconds, losses = [], []
        batches = _stream(self.loaders.train, self.trainer, first)
        begin = time.perf_counter()
        try:
            for _ in range(count):
                start = time.perf_counter()
                losses.append(self.side.step(self.trainer, next(batches)))
                seconds.append(time.perf_counter() - start)
            total = time.perf_counter() - begin
        finally:
            batches.close()  # type: ignore[attr-defined]
        return {"seconds": seconds, "total": total, "losses": losses, "peak_mib": machine.peak_mib()}

    def dev_loss(self) -> float:
        loss = self.trainer.loss(self.loaders.val.epoch(0))
        self.trainer.schedule.observe(loss)
        return loss


def _stream(loader: Loader, trainer: Any, first: int) -> Iterator[Batch]:
    """Batches from number `first` on, epoch after epoch; the trainer is told of each epoch."""
    epoch, start = divmod(first, len(loader))
    while True:
        trainer.begin_epoch(epoch)
        batches = loader.epoch(epoch, start)
        try:
            yield from batches
        finally:
            batches.close()  # type: ignore[attr-defined]
        epoch, start = epoch + 1, 0


def serve(connection: Connection, name: str, config: TrainConfig, options: Options) -> None:
    """The child process: answers (method, arguments) until None comes or the parent is gone."""
    try:
        with tempfile.TemporaryDirectory(prefix="pycap-bench-") as folder:
            worker = _Worker(name, config, options, Path(folder))
            connection.send(("ok", worker.info))
            while (message := connection.recv()) is not None:
                method, arguments = message
                connection.send(("ok", getattr(worker, method)(*arguments)))
            worker.loaders.close()
    except (EOFError, KeyboardInterrupt):
        return
    except Exception:
        connection.send(("error", traceback.format_exc()))
