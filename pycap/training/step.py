"""A training step that stays on the device: numbers go up in one copy, launches are recorded, the loss comes back later.

Whatever differs from step to step (pixels, captions, dropout's seeds, learning rates) lies in arrays of the device that keep
their places, and nothing in a step waits for the device. So the launches of all steps of one `Shape` are one sequence, and on
a GPU one CUDA graph (`pycap.graphs`); what they write in between lies in an arena that is planned once (`pycap.arena`).

Several ranks make a step together, each with its share of the batch, and sum its loss and its gradients
(`pycap.distributed.device_reducer`). They agree on the shape of each step beforehand (`pycap.training.shapes`), so
that all meet each for the first time together, and record it together, as NCCL wants it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pycap import arena, memory, ops, optim
from pycap.autograd import Tensor
from pycap.backends import dry, kernels, rounded_weights, weights_changed, weights_version
from pycap.data.loader import Batch
from pycap.device import Mark, address, bfloat16, download, pinned_empty, to_device, upload
from pycap.distributed import ALONE, Ranks
from pycap.distributed.device_reducer import DeviceReducer
from pycap.distributed.nccl import Communicator
from pycap.graphs import Graphs
from pycap.models import targets
from pycap.models.captions import CaptionModel
from pycap.models.classifier import Classifier
from pycap.nn.layers import dropout_layers, dropout_seeds, place_dropout
from pycap.training import shapes
from pycap.training.shapes import Shape

_AHEAD = 3  # steps that the host may be ahead of the device


@dataclass(frozen=True)
class Outcome:
    """loss: nats a token, before the update. norms: of the gradients of each group, before clipping. failed: whether any of
    them is not finite, in this step or one before: nothing was changed then."""

    loss: float
    norms: dict[str, float]
    failed: bool


class UnderWay:
    """A step that the device was given."""

    def __init__(self, parts: list[optim.Part], values: dict[str, np.ndarray], wait: Callable[[], None]) -> None:
        """values: what `wait` waits for."""
        self.parts, self._values, self._wait = parts, values, wait
        self._outcome: Outcome | None = None

    def outcome(self) -> Outcome:
        """What came of it; waits until it is done."""
        if self._outcome is None:
            self._wait()
            groups = dict.fromkeys(part.group.name for part in self.parts)
            norms = {name: math.sqrt(square) for name, square in zip(groups, self._values["squares"], strict=False)}
            self._outcome = Outcome(float(self._values["loss"][0]), norms, bool(self._values["failed"][0]))
        return self._outcome


class Packed:
    """Arrays of the device that one copy fills from the host."""

    def __init__(self, fields: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        """fields: shape and dtype by name."""
        self._fields = memory.Fields(fields)
        self.whole = memory.zeros((self._fields.nbytes,), np.uint8)
        self.arrays = self._fields.views(self.whole)
        self._hosts = [pinned_empty((self._fields.nbytes,)) for _ in range(_AHEAD)]
        self._used = 0

    def next(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Memory of the host as large as the whole, and the arrays in it; in turn one of those that a few steps share."""
        host = self._hosts[self._used % _AHEAD]
        self._used += 1
        return host, self._fields.views(host)


class Step:
    """Steps of one model. At most three are on their way; `launch` waits for the oldest where there are more."""

    def __init__(
        self,
        model: CaptionModel | Classifier,
        optimizer: optim.Optimizer | optim.Combined,
        network_input: Callable[[Any, Any], ops.Pixels | Tensor],
        *,
        micro_batch: int,
        longest: int,
        half: bool,
        log: Callable[[str], None],
        ranks: Ranks = ALONE,
    ) -> None:
        """network_input: makes what the model takes of a pass's images, or features, and crops int32 [n,3]. micro_batch: images
        a pass (0: all). longest: T of the longest captions. half: whether products of the CNN are of bfloat16 weights. log:
        told why steps are not recorded, or not on the arena, where they are not. ranks: who make each step together; several
        are waited for, and need NCCL (`pycap.distributed.nccl.ExchangeError`)."""
        self.model, self.optimizer, self._network_input = model, optimizer, network_input
        self._micro, self._longest = micro_batch, longest
        self._ranks = ranks
        self._communicator = Communicator(ranks) if ranks.size > 1 else None
        self._reducer: DeviceReducer | None = None
        self.graphs = Graphs(log, "a step of {}".format, agree=lambda mine: all(ranks.each(mine)))
        self._log, self._half = log, half
        groups = len(optimizer.groups)
        self._report = Packed(
            {"loss": ((1,), np.float64), "squares": ((groups,), np.float64), "failed": ((1,), np.int32)}
        )
        self._factors = memory.zeros((groups,))
        self._inputs: dict[Shape, Packed] = {}
        self._images: dict[tuple[int, tuple[int, ...]], Any] = {}
        self._limits: dict[tuple[str, ...], Any] = {}
        self._under_way: deque[UnderWay] = deque()
        self._failed: list[UnderWay] = []
        self._places: dict[tuple[tuple[str, ...], ...], tuple[int, ...]] = {}
        self._arena = arena.Arena(0)
        self._layouts: dict[Shape, arena.Layout | None] = {}
        self.copies = self._half_weights() if half else {}
        self._version = -1

    @property
    def arena_bytes(self) -> int:
        """Of the memory that steps' arrays share; 0 where they come from the pool."""
        return self._arena.nbytes

    def _half_weights(self) -> dict[str, Any]:
        """By name, room for the weights that a product of bfloat16 takes."""
        return {name: memory.zeros(w.shape, bfloat16()) for name, w in self.model.image_weights().items()}

    # the host's part ------------------------------------------------------------------------------------------------

    def launch(self, batch: Batch, images: Any, seed: int, words_only: bool, factors: Any = None) -> UnderWay:
        """Give the device a step; of several ranks, each its share of the batch, which may be no image.

        images: the batch's, uint8 [B,R,R,3] or float32 [B,F], of the host or the device. seed: of dropout, 64 bits. factors:
        float32 [N]; with them the loss is the mean over captions of each one's loss times its factor, else the mean over
        tokens. The groups have their learning rates. Raises IndexError for a token outside the vocabulary.
        """
        while len(self._under_way) >= _AHEAD:
            oldest = self._under_way.popleft()
            if oldest.outcome().failed:
                self._failed.append(oldest)
        with self.graphs.on_stream():
            shape, parts, total = self._prepare(batch, words_only, factors)
            self._fill(shape, parts, batch, images, seed, factors, total)
            self._round_weights()
            self.graphs.run(shape, lambda: self._served(shape, parts))
            weights_changed()
            self._version = weights_version()
            host, values = self._report.next()
            download(host, self._report.whole)
            mark = Mark()
            wait = mark.wait if self._communicator is None else partial(self._communicator.wait, mark)
            self._under_way.append(UnderWay(parts, values, wait))
        return self._under_way[-1]

    def close(self) -> None:
        """Forget what was recorded, and leave the exchange with the other ranks, who do so too: no step may follow."""
        self.graphs.clear()
        if self._communicator is not None:
            self._communicator.close()

    def undo(self) -> int:
        """After a step that failed: take back the counts of the steps that changed nothing, and be ready for another one.
        Returns how many there were."""
        undone = self._failed + [step for step in self._under_way if step.outcome().failed]
        for step in undone:
            for part in step.parts:
                part.optimizer.advance(part, -1)
        self._failed.clear()
        self._under_way.clear()
        with self.graphs.on_stream():
            self._report.arrays["failed"].fill(0)
        return len(undone)

    def _prepare(self, batch: Batch, words_only: bool, factors: Any) -> tuple[Shape, list[optim.Part], int]:
        """The step that all ranks make of their shares, its updates, and what the sum of the losses is to be divided by."""
        tokens, images = batch.tokens, len(batch.images)
        vocabulary = self.model.vocabulary
        if tokens.size and not (0 <= int(tokens.min()) and int(tokens.max()) < vocabulary):
            raise IndexError(f"captions with ids {tokens.min()} to {tokens.max()}: the vocabulary has {vocabulary}")
        learning = self.model.learning(words_only)
        parts = self.optimizer.parts(frozenset(learning))
        self._place_gradients(learning)
        groups = {part.group.name: part.group for part in parts}
        if tuple(groups) not in self._limits:
            limits = [group.clip if group.clip_mode == "norm" else 0.0 for group in groups.values()]
            self._limits[tuple(groups)] = to_device(np.array(limits, np.float32))
        names = tuple(part.names for part in parts)
        moved = self._note_places(names, parts)
        told = self._ranks.each(shapes.offer(batch.tokens, images, self._micro, words_only, factors, moved))
        if any(other.moved for other in told):
            self.graphs.clear()
        shape = shapes.agreed(
            told, self._ranks.rank, self._micro, batch.images.shape[1:], self._longest, words_only, names
        )
        return shape, parts, sum(other.total for other in told)

    def _place_gradients(self, learning: list[str]) -> None:
        """Have a buffer for each gradient, outside of the steps' memory: of several ranks, in buckets that are exchanged."""
        parameters = self.model.named_parameters()
        tensors = [parameters[name] for name in learning]
        if self._communicator is not None and (self._reducer is None or self._reducer.tensors != tuple(tensors)):
            if self._reducer is not None:
                self._reducer.release()
            self._reducer = DeviceReducer(self._communicator, tensors, self._half)
        arena.prepare_gradients(tensors)

    def _fill(
        self, shape: Shape, parts: list[optim.Part], batch: Batch, images: Any, seed: int, factors: Any, total: int
    ) -> None:
        """Bring what the step reads to its places. total: what the sum of the losses of all ranks is divided by."""
        values: dict[str, Any] = {"crops": batch.crops, "seeds": dropout_seeds(self.model, seed)}
        values["rates"] = np.array([part.optimizer.advance(part) for part in parts], np.float32)
        for number, (part, size) in enumerate(zip(shape.passes(), shape.sizes, strict=True)):
            columns = slice(part.start * shape.captions, part.stop * shape.captions)
            tokens, count = batch.tokens[:, columns], part.stop - part.start
            own = None if factors is None else factors[columns]
            made = (
                targets.word_targets(count, tokens, size, total)
                if shape.words_only
                else targets.caption_targets(count, tokens, shape.length, size, total, own)
            )
            values |= {f"{name}.{number}": value for name, value in vars(made).items()}
        if shape not in self._inputs:
            self._inputs[shape] = Packed(shape.fields(len(values["seeds"])))
            self._images.setdefault((shape.images, shape.image), memory.zeros(batch.images.shape, shape.image_dtype))
            self._plan(shape, parts)
        host, places = self._inputs[shape].next()
        for name, place in places.items():
            place[...] = values[name]
        upload(self._inputs[shape].whole, host)
        held = self._images[shape.images, shape.image]
        if not shape.images:
            return
        if isinstance(images, np.ndarray):
            upload(held, images)
        else:
            held[...] = images

    def _round_weights(self) -> None:
        """Make the copies in bfloat16 again, where somebody else than a step has written to the weights."""
        if self.copies and self._version != weights_version():
            parameters = self.model.named_parameters()
            for name, copy in self.copies.items():
                kernels.cast(copy, parameters[name].data, 0.0)
            self._version = weights_version()

    def _note_places(self, names: tuple[tuple[str, ...], ...], parts: list[optim.Part]) -> bool:
        """Whether weights, gradients or the optimiser's state lie elsewhere than before: somebody has put other arrays there,
        and what was recorded is to be forgotten."""
        own = [t.data for t in self.model.named_parameters().values()]
        places = tuple(address(array) for array in (*own, *(a for part in parts for a in part.arrays())))
        moved = self._places.get(names, places) != places
        self._places = {names: places} if moved else self._places | {names: places}
        return moved

    # the device's part ----------------------------------------------------------------------------------------------

    def _work(
        self, shape: Shape, parts: list[optim.Part], inputs: Mapping[str, Any], images: Any, dry: bool = False
    ) -> None:
        """All launches of a step, and nothing that waits for one. dry: nothing is exchanged with other ranks."""
        for part in parts:
            for name in part.names:
                part.optimizer.tensors[name].fresh = False  # an attempt before this one may have come to nothing
        report, reducer, passes = self._report.arrays, self._reducer, shape.passes()
        loss: Tensor | None = None
        with self._rounded(), self._reducing(dry):
            for number, some in enumerate(passes):
                first, count = shape.before + some.start, some.stop - some.start
                place_dropout(self.model, inputs["seeds"], first, count, sum(shape.shares))
                kind = targets.WordTargets if shape.words_only else targets.CaptionTargets
                own = kind(**{name: inputs[f"{name}.{number}"] for name in kind.__dataclass_fields__})
                loss = self.model.weighted_loss(self._network_input(images[some], inputs["crops"][some]), own)
                kernels.total(report["loss"], loss.data.reshape(1), float(number > 0))
                if reducer is None or number + 1 < len(passes):
                    loss.backward(np.float32(1))
                    loss = None
            if reducer is not None:
                if loss is None and not dry:
                    report["loss"].fill(0)
                reducer.add(report["loss"])
                reducer.backward(loss, np.float32(1))
            del loss
        groups = list(dict.fromkeys(part.group.name for part in parts))
        for at, name in enumerate(groups):
            tensors = [part.optimizer.tensors[n] for part in parts if part.group.name == name for n in part.names]
            kernels.sum_squares_into(report["squares"][at : at + 1], [t.grad for t in tensors])
        count = len(groups)
        kernels.clip_factors(
            self._factors[:count],
            report["squares"][:count],
            self._limits[tuple(groups)],
            report["loss"],
            report["failed"],
            1.0,
        )
        for number, part in enumerate(parts):
            at = groups.index(part.group.name)
            part.optimizer.launch(part, inputs["rates"][number], self._factors[at : at + 1], self.copies)

    def _served(self, shape: Shape, parts: list[optim.Part]) -> None:
        """`_work` on the arena, or on the pool where there is no plan for it."""
        layout = self._layouts[shape]
        given = shape, parts, self._inputs[shape].arrays, self._images[shape.images, shape.image]
        if layout is None:
            self._work(*given)
            return
        try:
            with self._arena.serving(layout):
                self._work(*given)
        except arena.ArenaError as error:
            if self._reducer is not None and (self.graphs.capturing or self._reducer.exchanged):
                raise  # another attempt would exchange twice what the other ranks exchange once
            self._log(f"a step of {shape}: memory from the pool, not from the arena: {error}")
            self._layouts[shape] = None
            self._work(*given)

    def _plan(self, shape: Shape, parts: list[optim.Part]) -> None:
        """Find the places of what steps of this shape make, and have an arena that holds them, for the largest shape too."""
        if not dry.applies():
            self._layouts[shape] = None
            return
        largest = shape.largest(self._longest)
        if largest not in self._layouts:
            self._layouts[largest] = arena.plan(self._traced(largest, parts))
        whole = self._layouts[largest]
        if shape not in self._layouts:
            seen = self._traced(shape, parts)
            self._layouts[shape] = (whole and whole.for_smaller(seen)) or arena.plan(seen)
        needed = max(layout.nbytes for layout in self._layouts.values() if layout is not None)
        grows = needed > self._arena.nbytes
        if any(self._ranks.each(grows)):
            self.graphs.clear()  # they write to the old arena
        if grows:
            self._arena = arena.Arena(0)
            self._arena = arena.Arena(needed)

    def _traced(self, shape: Shape, parts: list[optim.Part]) -> arena.Trace:
        """What a step of this shape asks of the memory."""
        fields = shape.fields(len(dropout_layers(self.model)))
        inputs = {name: np.zeros(field_shape, dtype) for name, (field_shape, dtype) in fields.items()}
        images = np.zeros((shape.images, *shape.image), shape.image_dtype)
        with dry.dry_run(), arena.trace() as seen:
            self._work(shape, parts, inputs, images, dry=True)
        return seen

    def _reducing(self, dry: bool) -> AbstractContextManager[None]:
        if self._reducer is None:
            return nullcontext()
        return self._reducer.step(dry=dry, overlaps=self.graphs.capturing)

    @contextmanager
    def _rounded(self) -> Iterator[None]:
        parameters = self.model.named_parameters()
        with rounded_weights((parameters[name].data, copy) for name, copy in self.copies.items()):
            yield
