"""Gradients summed over the ranks while backward goes on: in buckets, each on its way as soon as all in it is done.

The gradients live side by side in the buckets' flat memory, so that nothing is copied. Buckets are filled in the reverse order
of the model's definition, which is about the one in which backward writes gradients (Li et al. 2020, "PyTorch Distributed:
Experiences on Accelerating Data Parallel Training"), and are started in their order whatever comes first: every rank makes the
same exchanges, also one that has nothing to add.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.distributed import Ranks, Summing

#: A bucket is closed once it holds this much: enough that an exchange's fixed cost is little of it.
BUCKET_BYTES = 25 << 20

_ALIGN = 16  # numbers: gradients begin at multiples of 64 bytes


class Bucket:
    """Gradients that are summed in one exchange. flat: float32 [n] of the current device, in which the tensors' `grad` lie,
    with zeros between them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """tensors: whose `grad` is here from now on; what it held is lost."""
        self.tensors = tuple(tensors)
        sizes = [-(-tensor.data.size // _ALIGN) * _ALIGN for tensor in tensors]
        self.flat = memory.zeros((sum(sizes),))
        begin = 0
        for tensor, size in zip(tensors, sizes, strict=True):
            tensor.grad = self.flat[begin : begin + tensor.data.size].reshape(tensor.shape)
            tensor.fresh, tensor.rows = False, None
            begin += size


class Reducer(ABC):
    """Sums the gradients of a set of parameters over all ranks. A subclass says how one bucket is summed:

    * ``_start(bucket)`` is called within backward when the bucket's gradients are written, as far as the current stream goes.
      It has `bucket.flat` replaced by its sum over ranks, and returns while that is under way: the host's `start_sum`, or
      on a GPU another stream that waits for the current one up to here. Calls come in the same order on all ranks, and after
      the last of them nothing else of a step is exchanged before
    * ``_finish()``, which returns when the sums of all buckets may be read: on the host now, on a GPU by what the current
      stream is given from here on. Neither may wait for the device, so that a CUDA graph can capture both.
    """

    def __init__(self, tensors: Sequence[Tensor], bucket_bytes: int = BUCKET_BYTES) -> None:
        """tensors: every parameter that gets a gradient of some rank's loss, float32, in the order of the model's definition:
        the same on all ranks. Their `grad` moves into the buckets, outside of any arena."""
        self.tensors = tuple(tensors)
        self.buckets: list[Bucket] = []
        held: list[Tensor] = []
        for tensor in reversed(self.tensors):
            held.append(tensor)
            if sum(t.data.nbytes for t in held) >= bucket_bytes or tensor is self.tensors[0]:
                self.buckets.append(Bucket(held))
                held = []
        self._left: Counter[int] = Counter()
        self._started = 0

    def backward(self, loss: Tensor | None, seed: Any = None) -> None:
        """`loss.backward(seed)`; afterwards every gradient is `fresh`, and the sum over the ranks of what it was there.

        Each rank calls this once a step, for its last pass: gradients that are fresh already are added to, as ever. loss: None
        where this rank has no image of the batch, whose gradients are zero then.
        """
        self._started = 0
        self._left = Counter() if loss is None or loss.node is None else uses(loss.node)
        self._start_done()
        if loss is not None:
            loss.backward(seed, self._after)
        self._finish()
        for tensor in self.tensors:
            tensor.rows = None  # other ranks used other rows of the table of words

    def release(self) -> None:
        """Let go of the gradients' memory: they have none until somebody gives them some."""
        for tensor in self.tensors:
            tensor.grad = None
        self.buckets.clear()

    def _after(self, parents: tuple[Any, ...]) -> None:
        for parent in parents:
            if self._left.get(id(parent)):
                self._left[id(parent)] -= 1
        self._start_done()

    def _start_done(self) -> None:
        """Start the next buckets, as far as nobody will write to them any more."""
        while self._started < len(self.buckets):
            bucket = self.buckets[self._started]
            if any(self._left[id(tensor)] for tensor in bucket.tensors):
                return
            for tensor in bucket.tensors:
                if not tensor.fresh:  # not in this rank's graph
                    tensor.grad.fill(0)
                    tensor.fresh = True
            self._start(bucket)
            self._started += 1

    @abstractmethod
    def _start(self, bucket: Bucket) -> None:
        """Begin to sum `bucket.flat` over the ranks."""

    @abstractmethod
    def _finish(self) -> None:
        """Have what follows see the sums."""


class HostReducer(Reducer):
    """For gradients in the host's memory."""

    def __init__(self, ranks: Ranks, tensors: Sequence[Tensor], bucket_bytes: int = BUCKET_BYTES) -> None:
        super().__init__(tensors, bucket_bytes)
        self._ranks = ranks
        self._under_way: list[Summing] = []

    def _start(self, bucket: Bucket) -> None:
        self._under_way.append(self._ranks.start_sum(bucket.flat))

    def _finish(self) -> None:
        while self._under_way:
            self._under_way.pop(0).wait()


def uses(root: Function) -> Counter[int]:
    """How many times backward from `root` writes each leaf's gradient, by the leaf's `id`."""
    found: Counter[int] = Counter()
    seen, waiting = {root.id}, [root]
    while waiting:
        node = waiting.pop()
        for parent, need in zip(node.parents, node.needs, strict=True):
            if need and parent.node is None:
                found[id(parent)] += 1
            elif need and parent.node.id not in seen:
                seen.add(parent.node.id)
                waiting.append(parent.node)
    return found
