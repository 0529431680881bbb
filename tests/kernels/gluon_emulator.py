"""Runs Gluon kernels for Hopper on the CPU: the Python source of the kernel, with NumPy behind `gl`, TMA, mbarrier and wgmma.

Only what `kernels/conv2d_hopper.py` uses is there. A program's partitions are threads of which one runs at a time; at each
operation that another partition can notice, the next one is drawn at random. What is asynchronous on the GPU happens as late
as it may, or at once, as the draw says: a TMA load between its issue and the moment when nothing else can run, a product
of wgmma (the reads of its operands, too) and a TMA store between their issue and the wait for them. So a buffer that is
given back too early, or read too early, shows as wrong numbers, for shared memory begins as NaN. When all partitions
wait, `Deadlock` says who waits for what. Layouts are not modelled: shared memory holds blocks in order of their indices.
"""

from __future__ import annotations

import linecache
import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SWIZZLE_PERIOD = 1024  # bytes after which the 128-byte swizzle repeats: where wgmma's operands may begin


class EmulatorError(RuntimeError):
    """The kernel did what a GPU forbids or leaves undefined."""


class Deadlock(EmulatorError):
    """Every partition waits."""


class _Stopped(BaseException):
    """Unwinds a partition after another one failed."""


class Block(np.ndarray):
    """A tensor in registers."""

    type = SimpleNamespace(layout=None)

    def to(self, dtype: np.dtype) -> Block:
        return self.astype(dtype)

    def permute(self, *order: Any) -> Block:
        return self.transpose(*order)

    def split(self) -> tuple[Block, Block]:
        return self[..., 0], self[..., 1]


def _block(values: Any) -> Block:
    return np.asarray(values).view(Block)


class Pointer:
    """Elements of a global array by their place in it."""

    def __init__(self, array: np.ndarray, place: Any = 0) -> None:
        self.array, self.place = array, place

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.array, self.place + offset)

    def _chosen(self, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        place, mask = np.broadcast_arrays(self.place, mask)
        if np.any(mask & ((place < 0) | (place >= self.array.size))):
            raise EmulatorError(f"an access outside an array of {self.array.size} elements")
        return place, mask

    def load(self, mask: Any, other: Any) -> Block:
        place, mask = self._chosen(mask)
        return _block(np.where(mask, self.array.reshape(-1)[np.where(mask, place, 0)], other).astype(self.array.dtype))

    def store(self, values: Block, mask: Any) -> None:
        place, mask = self._chosen(mask)
        self.array.reshape(-1)[place[mask]] = np.broadcast_to(values, mask.shape)[mask]


class TensorMap:
    """What a TMA descriptor describes: an array (any view whose last dimension is contiguous) and the shape of a block."""

    def __init__(self, array: np.ndarray, block: list[int]) -> None:
        if array.strides[-1] != array.itemsize or any(stride % 16 for stride in array.strides[:-1]):
            raise EmulatorError(f"strides {array.strides} are not multiples of 16 bytes before a contiguous dimension")
        if max(block[:-1]) > 256 or block[-1] * array.itemsize % 16:
            raise EmulatorError(f"block {block}: at most 256 along a dimension, and rows of a multiple of 16 bytes")
        self.array, self.dtype, self.layout = array, array.dtype, None
        self.block_type = SimpleNamespace(shape=block, nbytes=math.prod(block) * array.itemsize)

    def _overlap(self, origin: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where a block at `origin` lies in the array, and the same part within the block."""
        there, here = [], []
        for first, length, size in zip(origin, self.block_type.shape, self.array.shape, strict=True):
            start = min(max(first, 0), size)
            stop = max(min(first + length, size), start)
            there.append(slice(start, stop))
            here.append(slice(start - first, stop - first) if stop > start else slice(0, 0))
        return tuple(there), tuple(here)

    def read(self, origin: list[int]) -> np.ndarray:
        """A block; zeros where it lies outside."""
        there, here = self._overlap(origin)
        block = np.zeros(self.block_type.shape, self.dtype)
        block[here] = self.array[there]
        return block

    def write(self, origin: list[int], block: np.ndarray) -> None:
        """The part of a block that lies inside."""
        there, here = self._overlap(origin)
        self.array[there] = block[here]


class Shared:
    """A view of shared memory: `view` of the allocation `whole`, beginning at its element `first`."""

    def __init__(self, program: Program, whole: np.ndarray, view: np.ndarray, first: int = 0) -> None:
        self.program, self.whole, self.view, self.first = program, whole, view, first
        self.shape, self.dtype = list(view.shape), view.dtype

    def _part(self, view: np.ndarray, first: int) -> Shared:
        return Shared(self.program, self.whole, view, self.first + first)

    def index(self, i: int) -> Shared:
        return self.slice(i, 1).reshape(self.shape[1:])

    def slice(self, start: int, length: int) -> Shared:
        if not 0 <= start <= start + length <= self.shape[0]:
            raise EmulatorError(f"rows {start} to {start + length} of shared memory of shape {self.shape}")
        return self._part(self.view[start : start + length], start * self.view[0].size)

    def reshape(self, shape: list[int]) -> Shared:
        return self._part(self.view.reshape(shape), 0)

    def permute(self, order: tuple[int, ...]) -> Shared:
        return self._part(self.view.transpose(order), 0)

    def load(self, layout: None) -> Block:
        self.program.turn()
        return _block(self.view.copy())

    def store(self, values: Block) -> None:
        self.program.turn()
        if values.dtype != self.dtype or list(values.shape) != self.shape:
            raise EmulatorError(f"{values.dtype}{values.shape} stored in shared {self.dtype}{self.shape}")
        self.view[...] = values
        self.program.running.unfenced.add((id(self.whole), self.first))

    def asynchronously(self) -> np.ndarray:
        """What TMA or wgmma is given to read: ordinary stores need a fence before it sees them."""
        if any((id(self.whole), self.first) in partition.unfenced for partition in self.program.partitions):
            raise EmulatorError("read asynchronously without fence_async_shared() since it was stored")
        return self.view


def reinterpret(memory: Shared, dtype: np.dtype, shape: list[int], layout: None) -> Shared:
    """The bytes from where `memory` begins, as another shape."""
    flat, size = memory.whole.reshape(-1), math.prod(shape)
    if memory.first + size > flat.size or dtype != memory.dtype:
        raise EmulatorError(f"{dtype}{shape} reaches beyond shared memory of {flat.size} elements")
    return Shared(memory.program, memory.whole, flat[memory.first :][:size].reshape(shape), memory.first)


class Barrier:
    """An mbarrier: a phase ends when all arrivals and all expected bytes have come."""

    def __init__(self) -> None:
        self.parity, self.count, self.missing, self.bytes = 0, 0, 0, 0

    def init(self, count: int) -> None:
        self.count = self.missing = count

    def signal(self, arrivals: int, incoming: int) -> None:
        self.missing -= arrivals
        self.bytes += incoming
        if self.missing < 0:
            raise EmulatorError(f"more than {self.count} arrivals at a barrier in one phase")
        if self.missing == self.bytes == 0:
            self.parity ^= 1
            self.missing = self.count

    def __str__(self) -> str:
        return f"phase {self.parity}: {self.missing} of {self.count} arrivals and {self.bytes} bytes missing"


class Barriers:
    """An array of mbarriers."""

    def __init__(self, count: int) -> None:
        self.barriers = [Barrier() for _ in range(count)]

    def index(self, i: int) -> Barrier:
        return self.barriers[i]


class Accumulator:
    """Sums that a product of wgmma will have written after the wait for it."""

    def __init__(self, a: Shared, b: Shared, sums: Block | Accumulator) -> None:
        self.a, self.b, self.sums, self.value = a.asynchronously(), b.asynchronously(), sums, None
        for operand in (a, b):
            if operand.first * operand.view.itemsize % SWIZZLE_PERIOD:
                raise EmulatorError(f"an operand begins at byte {operand.first * operand.view.itemsize}: not swizzled")

    def __getattr__(self, name: str) -> Any:
        raise EmulatorError(f"{name!r} of sums whose product has not been waited for")

    def multiply(self) -> None:
        sums = self.sums.value if isinstance(self.sums, Accumulator) else self.sums
        self.value = sums + _block(self.a.astype(np.float32) @ self.b.astype(np.float32))


class Partition(threading.Thread):
    """One function of a warp-specialised program, with its asynchronous products and stores under way."""

    def __init__(self, program: Program, name: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        super().__init__(name=name, daemon=True)
        self.program, self.function, self.args = program, function, args
        self.go = threading.Semaphore(0)
        self.waiting, self.ready, self.done = "", lambda: True, False
        self.products: list[Accumulator] = []
        self.stores: list[Callable[[], None]] = []
        self.unfenced: set[tuple[int, int]] = set()

    def run(self) -> None:
        try:
            self.go.acquire()
            self.program.check()
            with np.errstate(invalid="ignore"):  # what was never written is NaN
                self.function(*self.args)
            if self.products or self.stores:
                raise EmulatorError(f"{self.name} ended before its products or stores")
        except _Stopped:
            return
        except BaseException as error:
            self.program.stop(error)
            return
        self.done = True
        self.program.advance()


class Program:
    """One program of the grid; `turn` gives way to another partition, or to a TMA load under way."""

    def __init__(self, place: tuple[int, ...], grid: tuple[int, ...], rng: np.random.Generator) -> None:
        self.place, self.grid, self.rng = place, grid, rng
        self.partitions: list[Partition] = []
        self.running: Partition | Any = SimpleNamespace(unfenced=set())
        self.loads: list[Callable[[], None]] = []
        self.early: list[Callable[[], None]] = []  # of these loads, those that may come before everything else waits
        self.failure: BaseException | None = None
        self.finished = threading.Event()

    def at_once(self) -> bool:
        return self.rng.random() < 0.5

    def turn(self, ready: Callable[[], bool] = lambda: True, waiting: str = "") -> None:
        me = self.running
        me.ready, me.waiting = ready, waiting
        self.advance()
        me.go.acquire()
        self.check()

    def check(self) -> None:
        if self.failure:
            raise _Stopped

    def advance(self) -> None:
        while True:
            able = [partition for partition in self.partitions if not partition.done and partition.ready()]
            due = self.loads if not able else self.early if self.at_once() else []
            if due:
                load = due[self.rng.integers(len(due))]
                self.loads.remove(load)
                if load in self.early:
                    self.early.remove(load)
                load()
            elif able:
                self.running = able[self.rng.integers(len(able))]
                return self.running.go.release()
            else:
                left = [partition for partition in self.partitions if not partition.done]
                waits = "\n".join(f"  {partition.name} waits at {partition.waiting}" for partition in left)
                return self.stop(Deadlock(f"program {self.place}:\n{waits}") if left else None)

    def stop(self, failure: BaseException | None) -> None:
        self.failure = failure
        self.finished.set()
        for partition in self.partitions:
            partition.go.release()

    def specialise(self, functions: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        self.partitions = [
            Partition(self, f"{function.__name__} {i}", function, args) for i, (function, args) in enumerate(functions)
        ]
        for partition in self.partitions:
            partition.start()
        self.advance()
        self.finished.wait()
        for partition in self.partitions:
            partition.join()
        if self.failure:
            raise self.failure


def _language(program: Program) -> dict[str, Any]:
    """What a kernel's globals are for one program."""

    def allocate(dtype: np.dtype, shape: list[int], layout: Any) -> Shared | Barriers:
        if layout == "mbarrier":
            return Barriers(shape[0])
        whole = np.full(shape, 255 if dtype == np.uint8 else np.nan, dtype)
        return Shared(program, whole, whole)

    def wait(barrier: Barrier, phase: int) -> None:
        frame = sys._getframe(1)
        path, line = frame.f_code.co_filename, frame.f_lineno
        place = f"{Path(path).name}:{line} {linecache.getline(path, line).strip()}"
        program.turn(lambda: barrier.parity != phase, f"{place} ({barrier})")

    def arrive(barrier: Barrier, count: int, pred: bool = True) -> None:
        program.turn()
        if pred:
            barrier.signal(count, 0)

    def tma_load(source: TensorMap, origin: list[int], barrier: Barrier, target: Shared) -> None:
        if target.shape != source.block_type.shape:
            raise EmulatorError(f"a block {source.block_type.shape} loaded into {target.shape}")

        def complete() -> None:
            target.view[...] = source.read(origin)
            barrier.signal(0, -source.block_type.nbytes)

        program.loads.append(complete)
        if program.at_once():
            program.early.append(complete)
        program.turn()

    def tma_store(target: TensorMap, origin: list[int], source: Shared) -> None:
        if source.shape != target.block_type.shape:
            raise EmulatorError(f"{source.shape} stored as a block {target.block_type.shape}")
        view = source.asynchronously()
        program.running.stores.append(lambda: target.write(origin, view))
        if program.at_once():
            store_wait(0)
        program.turn()

    def store_wait(pendings: int) -> None:
        stores = program.running.stores
        while len(stores) > pendings:
            stores.pop(0)()

    def mma(a: Shared, b: Shared, sums: Block | Accumulator, is_async: bool) -> Accumulator:
        program.running.products.append(result := Accumulator(a, b, sums))
        if program.at_once():
            mma_wait(0, ())
        program.turn()
        return result

    def mma_wait(pendings: int, deps: tuple[Accumulator, ...]) -> Any:
        products = program.running.products
        while len(products) > pendings:
            products.pop(0).multiply()
        results = tuple(sums if pendings else sums.value for sums in deps)
        return results[0] if len(results) == 1 else results

    gl = SimpleNamespace(
        **{name: np.dtype(name) for name in ("float16", "float32", "int32", "int64", "uint8")},
        bfloat16=BFLOAT16,
        program_id=lambda axis: program.place[axis],
        num_programs=lambda axis: program.grid[axis],
        cdiv=lambda a, b: -(-a // b),
        static_range=range,
        cast=lambda value, dtype: value,
        zeros=lambda shape, dtype, layout: _block(np.zeros(shape, dtype)),
        arange=lambda first, last, layout: _block(np.arange(first, last)),
        where=lambda condition, a, b: _block(np.where(condition, a, b)),
        sum=lambda tensor, axis: _block(tensor.sum(axis, tensor.dtype)),
        load=lambda pointer, mask=True, other=0: pointer.load(mask, other),
        store=lambda pointer, values, mask=True: pointer.store(values, mask),
        SliceLayout=lambda dim, parent: None,
        BlockedLayout=lambda *described: None,
        NVMMADistributedLayout=lambda **described: None,
        allocate_shared_memory=allocate,
        warp_specialize=lambda functions, warps, registers: program.specialise(functions),
    )
    return {
        "gl": gl,
        "mbarrier": SimpleNamespace(
            MBarrierLayout=lambda: "mbarrier",
            init=lambda barrier, count: barrier.init(count),
            expect=lambda barrier, size: barrier.signal(1, size),
            wait=wait,
            arrive=arrive,
        ),
        "tma": SimpleNamespace(store_wait=store_wait),
        "tma_load": tma_load,
        "tma_store": tma_store,
        "reinterpret": reinterpret,
        "fence_async_shared": lambda: program.running.unfenced.clear(),
        "warpgroup_mma": mma,
        "warpgroup_mma_wait": mma_wait,
    }


def _is_kernel(value: Any) -> bool:
    """Whether a global is a function that Gluon compiles, at run time or for its constants."""
    return isinstance(getattr(value, "fn", None), FunctionType)


def emulate(module: ModuleType, kernel: str, grid: tuple[int, ...], args: dict[str, Any], seed: int = 0) -> None:
    """Run `kernel` of `module` on `args` (TensorMaps, arrays for pointers, numbers, None) over `grid`, in random order."""
    rng = np.random.default_rng(seed)
    args = {name: Pointer(value) if isinstance(value, np.ndarray) else value for name, value in args.items()}
    sources: dict[str, Any] = {}
    for function in filter(_is_kernel, vars(module).values()):
        sources |= function.fn.__globals__
    for place in rng.permutation(list(np.ndindex(*grid))):
        names = {name: getattr(value, "value", value) for name, value in sources.items()}
        names |= {
            name: FunctionType(value.fn.__code__, names, name) for name, value in sources.items() if _is_kernel(value)
        }
        names |= _language(Program(tuple(map(int, place)), grid, rng))
        names[kernel](**args)
