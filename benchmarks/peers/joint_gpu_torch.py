"""PyTorch's side of the comparison on a GPU: eager or compiled, in the fastest of its ways."""

from __future__ import annotations

import gc
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch

from benchmarks import joint_work, machine
from benchmarks.gpu_turns import measure_ceilings
from benchmarks.peers import torch_decode, torch_joint_cuda
from benchmarks.peers.joint_gpu_sides import SEARCH, STEPS_PER_EPOCH, Captions, Task, initial
from benchmarks.sides import Unavailable
from pycap.data.images import centre_crops
from pycap.data.loader import Batch
from pycap.data.vocab import END, PAD, START
from pycap.training import sources

_TRY_S = 0.3


class TorchSide:
    """PyTorch with pycap's weights, in the fastest of its ways."""

    def __init__(self, task: Task, compiled: bool) -> None:
        self.compiled = compiled
        self.task, self.config = task, task.config
        self.device = torch.device("cuda" if task.config.device == "cuda" else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(task.config.threads or 1)
        torch_joint_cuda.set_up(task.config.precision)
        torch._dynamo.config.recompile_limit = 64  # each mode is a compilation of the same code
        self.spec = sources.preprocess_spec(task.config)
        self.arrays = initial(task.config, task.words)
        self.batches = joint_work.batches(task.config, task.batches, task.words)
        # Sizes that change would be compiled again and again.
        self.length = task.config.max_length + 2 if compiled else 0
        self.rows = max(map(self._class, self.batches)) if compiled else 0
        self.feeds = [self._feed(batch) for batch in self.batches]
        self.model = torch_joint_cuda.build(task.config, task.words, self.arrays, self.device)
        self.notes: list[str] = []

    def _class(self, batch: Batch) -> int:
        """The number of targets, rounded up to one of 16 sizes."""
        most = (self.length - 1) * batch.tokens.shape[1]
        step = max(most // 16, 1)
        return min(-(-int(np.count_nonzero(batch.tokens[1:] != PAD)) // step) * step, most)

    def _feed(self, batch: Batch) -> torch_joint_cuda.Feed:
        rows = max(self.rows, self._class(batch)) if self.compiled else 0
        return torch_joint_cuda.Feed.of(batch, self.device, self.length, rows)

    def describe(self) -> dict[str, Any]:
        variant = "; ".join([str(self.trainer.way), *self.notes])
        return {"backend": f"torch {torch.__version__}", "variant": variant}

    def _make(self, way: Any) -> Any:
        trainer = torch_joint_cuda.CudaTrainer(self.model, self.config, self.spec, STEPS_PER_EPOCH, way, self.device)
        trainer.begin_epoch(0)
        return trainer

    def agree(self, steps: int) -> list[float]:
        """As PycapSide.agree; eager, for what is compiled is compared with dropout (`joint_gpu.check`)."""
        layers = [m for m in self.model.modules() if isinstance(m, torch.nn.Dropout)]
        before = [layer.p for layer in layers]
        for layer in layers:
            layer.p = 0.0
        self.trainer = self._make(torch_joint_cuda.Way())
        losses = self.train(0, steps)
        for layer, p in zip(layers, before, strict=True):
            layer.p = p
        self._restart()
        return losses

    def prepare(self) -> None:
        """Try the ways, keep the fastest, begin again, and make as many steps as PycapSide does."""
        best, failed = float("inf"), []
        for way in torch_joint_cuda.ways(self.compiled, self.config.precision, self.task.modes):
            try:
                self.trainer = self._make(way)
                seconds = self._time()
            except Exception as error:  # whatever a compiler raises: the other ways go on
                failed.append(
                    f"{way.mode or way}: {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:200]}"
                )
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
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        machine.forget_peak()
        self.train(0, 2 * len(self.feeds))

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
        torch_joint_cuda.load(self.model, self.arrays)
        for optimizer, *_ in self.trainer.groups:
            optimizer.state.clear()
        self.trainer.step_number = 0

    def train(self, first: int, count: int) -> list[float]:
        return self.train_on(self.feeds[(first + i) % len(self.feeds)] for i in range(count))

    def train_on(self, items: Iterable[Any]) -> list[float]:
        return torch.stack([self.trainer.step(feed) for feed in items]).tolist()

    def stream(self) -> Iterator[Any]:
        """Batches from JPEGs through pycap's loader, decoded into pinned memory."""

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda").numpy()

        loader = joint_work.jpeg_loader(self.config, self.task.words, allocate)
        under_way: deque[Any] = deque(maxlen=8)  # what is being copied must not be given to another batch
        for epoch in itertools.count():
            with closing(loader.epoch(epoch)) as batches:
                for batch in batches:
                    if len(batch) == self.config.batch_size:
                        under_way.append(self._feed(batch))
                        yield under_way[-1]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_mib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved() / 2**20
        return machine.peak_mib()

    def prepare_captions(self) -> None:
        if self.compiled:
            raise Unavailable("captions are searched by PyTorch eager")
        torch_joint_cuda.load(self.model, initial(self.config, self.task.words, vivid=True))
        self.model.eval()
        self.vocab = joint_work.vocabulary(self.task.words)
        statistics = (torch.tensor(self.spec.mean), 1 / torch.tensor(self.spec.std))
        self._mean, self._scale = (t.to(self.device) for t in statistics)
        crops = centre_crops(self.spec, len(self.batches[0].images)).astype(np.int64)
        self._crops = torch.from_numpy(crops).to(self.device)

    def caption(self, beam: int) -> Captions:
        with torch.inference_mode():
            images = self.feeds[0].images.to(self.device, non_blocking=True)
            pixels = torch_joint_cuda.crop_normalise(images, self._crops, self.spec.crop, self._mean, self._scale)
            vectors = torch_decode.encode(self.model, pixels, self.config.precision == "bf16")
            self._vectors = vectors
            how = {"beam_size": beam, "max_length": self.config.max_length, **SEARCH}
            words, scores = torch_decode.beam_search(self.model, vectors, **how)
            said, logprobs = words[:, 0].tolist(), scores[:, 0].tolist()
        return [(self.vocab.decode(ids), logprob) for ids, logprob in zip(said, logprobs, strict=True)]

    def score(self, captions: Sequence[str]) -> list[float]:
        """Log-probabilities that this side's model gives to captions of the images that it captioned last."""
        limit = self.config.max_length
        sentences = [[self.vocab.ids[word] for word in text.split()] for text in captions]
        ended = [ids if len(ids) == limit else [*ids, END] for ids in sentences]
        with torch.inference_mode():
            return torch_decode.score(self.model, self._vectors, ended, START, SEARCH["suppress"]).tolist()

    def ceilings(self, n: int, copied: int) -> dict[str, float]:
        """FLOP/s and bytes/s, as `benchmarks.gpu_turns.measure_ceilings`."""
        found = measure_ceilings(self.synchronize, n, copied)
        torch_joint_cuda.set_up(self.config.precision)  # they switch it
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return found
