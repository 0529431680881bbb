"""The sides of the comparison on a GPU: pycap, PyTorch eager and compiled, each as it works in a process of its own."""

from __future__ import annotations

import gc
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks import joint_work, machine
from benchmarks.sides import Unavailable
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec, centre_crops
from pycap.data.vocab import END, PAD, START, UNK

#: What captions are searched with, besides the width.
SEARCH: dict[str, Any] = {"start": START, "end": END, "suppress": (PAD, START, UNK)}
#: Multiplies the LSTM's and the projection's initial weights, so that what was said decides what follows.
VIVID = 3.0
_TRY_S = 0.3
_STEPS_PER_EPOCH = 1000

Captions = list[tuple[str, float]]


@dataclass(frozen=True)
class Task:
    """What all sides are told. batches: drawn ones, that steps take in turn. modes: of torch.compile."""

    config: TrainConfig
    words: int
    batches: int
    agree: int
    modes: tuple[str, ...]


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
        self.spec = _spec(task.config)
        self.batches = joint_work.batches(task.config, task.batches, task.words)

    def describe(self) -> dict[str, Any]:
        """backend: whose kernels the largest parts run on. variant: how."""
        from pycap import backends

        used = [backends.kernels.conv2d_forward, backends.kernels.lstm_forward]
        names = [".".join(f.__module__.split(".")[2:]) for f in used]
        return {
            "backend": "+".join(dict.fromkeys(name.split(".")[0] for name in names)),
            "variant": "launches ahead" if hasattr(self.trainer, "launch") else "waits for each step",
        }

    def _make(self, config: TrainConfig) -> Any:
        from pycap.captioner import build_model
        from pycap.training.trainer import Trainer

        trainer = Trainer(build_model(config, self.task.words), config, self.spec, _STEPS_PER_EPOCH)
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
        self._forget()

    def _forget(self) -> None:
        from pycap import memory

        gc.collect()
        memory.trim()
        machine.forget_peak()

    def train(self, first: int, count: int) -> list[float]:
        """Steps number `first` on, as train.py makes them: a step's result is read when the next one is under way."""
        chosen = [self.batches[(first + i) % len(self.batches)] for i in range(count)]
        return joint_work.run_steps(self.trainer, chosen)

    def synchronize(self) -> None:
        from pycap import device

        if device.current() == "cuda":
            device.module().cuda.runtime.deviceSynchronize()

    def peak_mib(self) -> float:
        """On a GPU, what the pool took from the device; else the process's peak."""
        from pycap import device

        if device.current() == "cuda":
            return device.module().get_default_memory_pool().total_bytes() / 2**20
        return machine.peak_mib()

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


def initial_on_host(config: TrainConfig, words: int) -> dict[str, np.ndarray]:
    """`initial`, vivid, on the host whatever the current device is."""
    from pycap import device

    with device.use("cpu"):
        return initial(config, words, vivid=True)


class TorchSide:
    """PyTorch with pycap's weights, in the fastest of its ways."""

    def __init__(self, task: Task, compiled: bool) -> None:
        import torch

        from benchmarks.peers import torch_joint_cuda

        self.torch, self.peer, self.compiled = torch, torch_joint_cuda, compiled
        self.task, self.config = task, task.config
        self.device = torch.device("cuda" if task.config.device == "cuda" else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(task.config.threads or 1)
        torch_joint_cuda.allow_tf32(task.config.precision)
        self.spec = _spec(task.config)
        self.arrays = initial(task.config, task.words)
        self.batches = joint_work.batches(task.config, task.batches, task.words)
        # Sizes that change would be compiled again and again.
        length = task.config.max_length + 2 if compiled else 0
        self.feeds = [torch_joint_cuda.Feed.of(batch, self.device, length) for batch in self.batches]
        self.model = torch_joint_cuda.build(task.config, task.words, self.arrays, self.device)
        self.notes: list[str] = []

    def describe(self) -> dict[str, Any]:
        variant = "; ".join([str(self.trainer.way), *self.notes])
        return {"backend": f"torch {self.torch.__version__}", "variant": variant}

    def _make(self, way: Any) -> Any:
        trainer = self.peer.CudaTrainer(self.model, self.config, self.spec, _STEPS_PER_EPOCH, way, self.device)
        trainer.begin_epoch(0)
        return trainer

    def agree(self, steps: int) -> list[float]:
        """As PycapSide.agree; eager, for what is compiled is compared with dropout (`joint_gpu.check`)."""
        layers = [m for m in self.model.modules() if isinstance(m, self.torch.nn.Dropout)]
        before = [layer.p for layer in layers]
        for layer in layers:
            layer.p = 0.0
        self.trainer = self._make(self.peer.Way())
        losses = self.train(0, steps)
        for layer, p in zip(layers, before, strict=True):
            layer.p = p
        self._restart()
        return losses

    def prepare(self) -> None:
        """Try the ways, keep the fastest, and begin again."""
        best, failed = float("inf"), []
        for way in self.peer.ways(self.compiled, self.config.precision, self.task.modes):
            try:
                self.trainer = self._make(way)
                seconds = self._time()
            except Exception as error:  # whatever a compiler raises: the other ways go on
                failed.append(f"{way.mode or way}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
                continue
            if seconds < best:
                best, chosen = seconds, self.trainer
        if best == float("inf"):
            raise Unavailable("; ".join(failed) or "torch.compile: no mode was asked for")
        self.notes = failed
        self.trainer = chosen
        del chosen
        self._restart()
        gc.collect()
        if self.device.type == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()
        machine.forget_peak()
        self.train(0, 2 * len(self.feeds))
        self._restart()

    def _time(self) -> float:
        """Seconds a step after a first round."""
        self.train(0, 2 * len(self.feeds))
        count, total = 0, 0.0
        while not count or (total < _TRY_S and count < 40):
            self.synchronize()
            begin = time.perf_counter()
            self.train(0, len(self.feeds))
            self.synchronize()
            total += time.perf_counter() - begin
            count += len(self.feeds)
        return total / count

    def _restart(self) -> None:
        """The initial weights, an optimiser that has seen nothing."""
        self.peer.load(self.model, self.arrays)
        for optimizer, *_ in self.trainer.groups:
            optimizer.state.clear()
        self.trainer.step_number = 0

    def train(self, first: int, count: int) -> list[float]:
        losses = [self.trainer.step(self.feeds[(first + i) % len(self.feeds)]) for i in range(count)]
        return self.torch.stack(losses).tolist()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def peak_mib(self) -> float:
        if self.device.type == "cuda":
            return self.torch.cuda.max_memory_reserved() / 2**20
        return machine.peak_mib()

    def prepare_captions(self) -> None:
        if self.compiled:
            raise Unavailable("captions are searched by PyTorch eager")
        self.peer.load(self.model, initial(self.config, self.task.words, vivid=True))
        self.model.eval()
        self.vocab = joint_work.vocabulary(self.task.words)
        statistics = (self.torch.tensor(self.spec.mean), 1 / self.torch.tensor(self.spec.std))
        self._mean, self._scale = (t.to(self.device) for t in statistics)
        crops = centre_crops(self.spec, len(self.batches[0].images)).astype(np.int64)
        self._crops = self.torch.from_numpy(crops).to(self.device)

    def caption(self, beam: int) -> Captions:
        from benchmarks.peers import torch_decode

        with self.torch.inference_mode():
            images = self.feeds[0].images.to(self.device, non_blocking=True)
            pixels = self.peer.crop_normalise(images, self._crops, self.spec.crop, self._mean, self._scale)
            vectors = torch_decode.encode(self.model, pixels, self.config.precision == "bf16")
            how = {"beam_size": beam, "max_length": self.config.max_length, **SEARCH}
            words, scores = torch_decode.beam_search(self.model, vectors, **how)
            said, logprobs = words[:, 0].tolist(), scores[:, 0].tolist()
        return [(self.vocab.decode(ids), logprob) for ids, logprob in zip(said, logprobs, strict=True)]

    def ceilings(self, n: int, copied: int) -> dict[str, float]:
        """FLOP/s and bytes/s, as `benchmarks.gpu_turns.measure_ceilings`."""
        from benchmarks.gpu_turns import measure_ceilings

        found = measure_ceilings(self.synchronize, n, copied)
        self.peer.allow_tf32(self.config.precision)  # they switch it
        if self.device.type == "cuda":
            self.torch.cuda.empty_cache()
        return found


def _spec(config: TrainConfig) -> PreprocessSpec:
    from pycap.training.sources import preprocess_spec

    return preprocess_spec(config)


SIDES: dict[str, Callable[[Task], Any]] = {
    "pycap": PycapSide,
    "torch eager": lambda task: TorchSide(task, False),
    "torch compile": lambda task: TorchSide(task, True),
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

    def prepare_captions(self) -> None:
        self.side.prepare_captions()

    def captions(self, beam: int, count: int) -> dict[str, Any]:
        """Caption the batch `count` times: seconds a batch, and what was said."""
        self.side.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            said = self.side.caption(beam)
        return {"seconds": (time.perf_counter() - begin) / count, "said": said}

    def ceilings(self, n: int, copied: int) -> dict[str, float]:
        return self.side.ceilings(n, copied)


def serve(connection: Connection, name: str, task: Task) -> None:
    """The child's loop: answers (method, arguments) until None comes or the parent is gone. Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = None
    while True:
        try:
            if worker is None:
                worker = _Worker(name, task)
                connection.send(("ok", worker.info))
            message = connection.recv()
            if message is None:
                return
            method, arguments = message
            connection.send(("ok", getattr(worker, method)(*arguments)))
        except EOFError:
            return
        except Unavailable as reason:
            connection.send(("unavailable", str(reason)))
        except Exception:
            connection.send(("error", traceback.format_exc()))
        if worker is None:
            return
