"""What ranks do in tests of steps that several GPUs make together: parts for `tests.processes`, on the stand-in for CuPy."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any
from unittest import mock

import numpy as np

import pycap
from pycap import arena, backends, device, memory
from pycap.autograd import Tensor
from pycap.config import TrainConfig
from pycap.data.loader import Batch
from pycap.distributed import Ranks
from pycap.distributed.device_reducer import DeviceReducer
from pycap.distributed.nccl import Communicator, ExchangeError
from pycap.graphs import Graphs
from pycap.training import plan
from pycap.training.step import Step
from pycap.training.trainer import Diverged, Trainer
from tests import cupy_nccl, cupy_standin, cupy_streams
from tests.train import test_step as one

#: Bytes of a bucket: a few in all, of which some hold several parameters.
BUCKET = 4000


@contextlib.contextmanager
def gpu(order: cupy_streams.Order = "late") -> Iterator[Any]:
    """A stand-in for this rank's GPU, and when the exchanges' stream does its work."""
    module = cupy_standin.make()
    given = {"cupy": module, "cupy.cuda.nccl": cupy_nccl}
    driver = mock.patch.object(device, "missing_driver", lambda: "")
    scratch = mock.patch.object(memory, "_scratch", {})
    with (
        mock.patch.dict(sys.modules, given),
        driver,
        cupy_streams.in_order(order),
        scratch,
        backends.use("reference", "cuda"),
    ):
        yield module


def cut(whole: Batch, rank: int, size: int) -> Batch:
    """A rank's share of a batch."""
    images = len(whole.images)
    return between(whole, images * rank // size, images * (rank + 1) // size)


def between(whole: Batch, first: int, last: int) -> Batch:
    """Its images from `first` to before `last`, and their captions, as a batch of them alone has them."""
    captions = whole.tokens.shape[1] // len(whole.images)
    tokens = whole.tokens[:, first * captions : last * captions]
    longest = int((tokens != 0).sum(0).max(initial=1))
    return Batch(
        images=whole.images[first:last],
        crops=whole.crops[first:last],
        tokens=np.ascontiguousarray(tokens[:longest]),
        image_ids=whole.image_ids[first:last],
        file_names=whole.file_names[first:last],
        examples=whole.examples[first:last],
        epoch=whole.epoch,
        index=whole.index,
    )


@contextlib.contextmanager
def trainer(ranks: Ranks, log: Callable[[str], None], *, recorded: bool = True, **options: Any) -> Iterator[Trainer]:
    """One whose steps all ranks make, in small buckets, with new memory full of NaN."""
    reducer = mock.patch("pycap.training.step.DeviceReducer", partial(DeviceReducer, bucket_bytes=BUCKET))
    limit = mock.patch("pycap.training.step.Graphs", Graphs if recorded else partial(Graphs, limit=0))
    with reducer, limit, memory.poisoned():
        made = one.trainer(True, log, ranks=ranks, **options)
        yield made
        one.device_step(made).close()


def report(made: Trainer, losses: Sequence[float], said: list[str]) -> dict[str, Any]:
    step = one.device_step(made)
    return {"losses": losses, "weights": one.weights(made), "graphs": len(step.graphs), "said": said}


def steps(
    ranks: Ranks,
    options: dict[str, Any],
    sizes: list[tuple[int, int]],
    order: cupy_streams.Order = "late",
    recorded: bool = True,
    epochs: tuple[int, ...] = (0,),
) -> dict[str, Any]:
    """Steps on batches of so many images with captions of so many steps, three times in each epoch."""
    said: list[str] = []
    with gpu(order), trainer(ranks, said.append, recorded=recorded, **options) as made:
        found = losses(made, sizes, epochs, lambda batch: cut(batch, ranks.rank, ranks.size))
        return report(made, found, said) | {"arena": one.device_step(made).arena_bytes}


def losses(
    made: Trainer,
    sizes: list[tuple[int, int]],
    epochs: tuple[int, ...] = (0,),
    share: Callable[[Batch], Batch] = lambda whole: whole,
) -> list[float]:
    found = []
    for epoch in epochs:
        made.begin_epoch(epoch)
        for _ in range(3):
            found += [made.step(share(one.batch(seed, *size))).loss for seed, size in enumerate(sizes)]
    return found


def run(ranks: Ranks, config: TrainConfig, narrow: bool) -> None:
    """A whole run. narrow: into the memory of rank 1's GPU only one image a pass fits."""
    fit = plan.fit

    def fitted(*given: Any) -> plan.MemoryPlan:
        return replace(fit(*given), micro_batch=1) if narrow and ranks.rank else fit(*given)

    with gpu(), mock.patch("pycap.distributed._current", ranks), mock.patch.object(plan, "fit", fitted):
        pycap.train(config)


# Where one rank is not as the others ----------------------------------------------------------------------------------


def one_cannot_record(ranks: Ranks, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Rank 1 fails in the middle of each capture."""
    said: list[str] = []
    with gpu(), trainer(ranks, said.append) as made:
        dropout = backends.kernels.dropout

        @wraps(dropout)  # of a backend that can be run dry
        def failing(*arguments: Any) -> None:
            if ranks.rank == 1 and made._device_step is not None and made._device_step.graphs.capturing:
                raise RuntimeError("not in a capture")
            dropout(*arguments)

        with mock.patch.dict(backends.kernels.__dict__, {"dropout": failing}):
            found = losses(made, sizes, share=lambda batch: cut(batch, ranks.rank, ranks.size))
        return report(made, found, said)


def one_keeps_to_no_plan(ranks: Ranks, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Rank 1 finds in the middle of its steps that it was planned for another one."""
    said: list[str] = []
    plan = arena.plan

    def wrong(seen: arena.Trace) -> arena.Layout:
        seen.requests = seen.requests[: -len(seen.requests) // 3]
        return plan(seen)

    with gpu(), trainer(ranks, said.append) as made:
        with mock.patch("pycap.arena.plan", wrong if ranks.rank else plan):
            found = losses(made, sizes, share=lambda batch: cut(batch, ranks.rank, ranks.size))
        return report(made, found, said)


def one_moves_an_array(ranks: Ranks, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """After each round rank 1 puts the same values elsewhere."""
    said: list[str] = []
    with gpu() as cupy, trainer(ranks, said.append) as made:
        found = []
        for _ in range(3):
            found += losses(made, sizes, share=lambda batch: cut(batch, ranks.rank, ranks.size))
            if ranks.rank == 1:
                tensor = next(iter(made.model.named_parameters().values()))
                tensor.data = cupy.array(tensor.data)
        return report(made, found, said)


def one_diverges(ranks: Ranks) -> tuple[str, bool, float]:
    """What is said of a step for which rank 1 has an infinite weight; whether others changed; the next step's loss."""
    with gpu(), trainer(ranks, print) as made:
        share = cut(one.batch(0), ranks.rank, ranks.size)
        made.step(share)
        before = one.weights(made)
        tensor = made.model.named_parameters()["projection.bias"]
        held = tensor.data.get()
        if ranks.rank == 1:
            tensor.data[...] = np.inf
        try:
            made.step(share)
        except Diverged as error:
            said = str(error)
        tensor.data.set(held)
        same = one.weights(made) == before
        return said, same, made.step(share).loss


# The parts by themselves ----------------------------------------------------------------------------------------------


def order_of_work(ranks: Ranks) -> dict[str, list[str]]:
    """What a step launches and exchanges, in its order: one launched by itself, one recorded, one dry."""
    found: dict[str, list[str]] = {"launched": [], "recorded": [], "dry": []}
    with gpu(), trainer(ranks, print) as made:
        share = cut(one.batch(0), ranks.rank, ranks.size)
        told: list[str] = []
        weight, summed, traced = backends.kernels.conv2d_backward_weight, Communicator.sum, Step._traced

        def spy(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
            return wraps(work)(lambda *arguments, **how: told.append(name) or work(*arguments, **how))

        def dry(*arguments: Any) -> Any:
            before = len(told)
            seen = traced(*arguments)
            found["dry"] += ["traced", *told[before:]]
            del told[before:]
            return seen

        spies = {"conv2d_backward_weight": spy("gradient", weight)}
        sums = mock.patch.object(Communicator, "sum", lambda self, array: (told.append("sum"), summed(self, array)))
        with mock.patch.dict(backends.kernels.__dict__, spies), sums, mock.patch.object(Step, "_traced", dry):
            for name in ("launched", "recorded"):
                made.step(share)
                found[name], told[:] = list(told), []
            made.step(share)
            assert not told  # a replay runs no Python
    return found


def reduced(ranks: Ranks, half: bool, sizes: list[int], overlaps: bool) -> list[np.ndarray]:
    """Gradients that differ from rank to rank, summed. What they are rounded to stays until all are."""
    made: list[weakref.ref[Any]] = []
    empty, summed = memory.empty, Communicator.sum

    def noted(*arguments: Any) -> Any:
        array = empty(*arguments)
        made.append(weakref.ref(array))
        return array

    def watched(self: Communicator, array: Any) -> None:
        assert all(alive() is not None for alive in made)
        summed(self, array)

    with gpu(), mock.patch.object(memory, "empty", noted), mock.patch.object(Communicator, "sum", watched):
        communicator = Communicator(ranks)
        tensors = [Tensor(memory.zeros((size,)), requires_grad=True) for size in sizes]
        reducer = DeviceReducer(communicator, tensors, half, bucket_bytes=BUCKET)
        with reducer.step(overlaps=overlaps):
            for number, tensor in enumerate(tensors):
                tensor.grad.set(gradient(ranks.rank, number, tensor.data.size))
                tensor.fresh = True
            reducer.backward(None)
        found = [tensor.grad.get() for tensor in tensors]
        del reducer
        communicator.close()
        return found


def gradient(rank: int, number: int, size: int) -> np.ndarray:
    return np.random.default_rng([rank, number]).standard_normal(size).astype(np.float32)


def without_nccl(ranks: Ranks) -> str:
    """What is said where rank 1 lacks NCCL."""
    with gpu(), mock.patch.object(cupy_nccl, "available", ranks.rank != 1):
        try:
            Communicator(ranks)
        except ExchangeError as error:
            return str(error)
    return ""


def deserted(ranks: Ranks) -> str:
    """What is said on rank 0 of a step that rank 1 does not make."""
    with gpu() as cupy:
        communicator = Communicator(ranks)
        if ranks.rank == 1:
            communicator._own.abort()
            return ""
        array = memory.zeros((5,))
        with cupy.cuda.Stream(non_blocking=True):
            communicator.sum(array)
            mark = device.Mark()
            try:
                communicator.wait(mark)
            except ExchangeError as error:
                return str(error)
    return ""
