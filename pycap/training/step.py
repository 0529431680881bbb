"""A training step that stays on the device: numbers go up in one copy, launches are recorded, the loss comes back later.

Whatever differs from step to step (pixels, captions, dropout's seeds, learning rates) lies in arrays of the device that keep
their places, and nothing in a step waits for the device. So the launches of all steps of one `Shape` are one sequence, and on
a GPU one CUDA graph (`pycap.graphs`); what they write in between lies in an arena that is planned once (`pycap.arena`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pycap import arena, memory, ops, optim
from pycap.autograd import Tensor
from pycap.backends import dry, kernels, rounded_weights, weights_changed, weights_version
from pycap.data.loader import Batch
from pycap.device import Mark, address, bfloat16, download, pinned_empty, to_device, upload
from pycap.graphs import Graphs
from pycap.models import targets
from pycap.models.captions import CaptionModel
from pycap.models.classifier import Classifier
from pycap.nn.layers import dropout_layers, dropout_seeds, place_dropout

_AHEAD = 3  # steps that the host may be ahead of the device
_CLASSES = 16  # sizes, between nothing and everything, to which the number of targets is rounded up


@dataclass(frozen=True)
class Shape:
    """What decides a step's launches. images, each an array of shape `image` (of uint8 pixels, or float32 features), worked off
    `micro` at a time; captions: of each image; length: T; sizes: K of each pass; parts: names of the parameters that each
    update takes."""

    images: int
    micro: int
    image: tuple[int, ...]
    captions: int
    length: int
    sizes: tuple[int, ...]
    words_only: bool
    parts: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        what = "words" if self.words_only else f"captions of {self.length} tokens"
        passes = f" in passes of {self.micro}" if self.micro < self.images else ""
        return f"{self.images} images{passes}, {self.captions} {what} each, {sum(self.sizes)} targets"

    def fields(self, layers: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of what such a step reads besides pixels and weights. layers: of dropout."""
        found: dict[str, tuple[tuple[int, ...], Any]] = {
            "crops": ((self.images, 3), np.int32),
            "seeds": ((layers, 2), np.uint32),
            "rates": ((len(self.parts), 3), np.float32),
        }
        for number, (part, size) in enumerate(zip(self.passes(), self.sizes, strict=True)):
            n = (part.stop - part.start) * self.captions
            own: dict[str, tuple[tuple[int, ...], Any]] = {"rows": ((size,), np.int32), "targets": ((size,), np.int32)}
            own["weights"] = (size,), np.float32
            if not self.words_only:
                own |= {"inputs": ((self.length - 1, n), np.int32), "image_of": ((n,), np.int32)}
                own |= {"runs": ((self.length, n), np.uint8), "places": (((self.length - 1) * n,), np.int32)}
            found |= {f"{name}.{number}": field for name, field in own.items()}
        return found

    @property
    def image_dtype(self) -> np.dtype:
        return np.dtype(np.float32 if len(self.image) == 1 else np.uint8)

    def passes(self) -> list[slice]:
        """The images of each pass."""
        return [slice(first, min(first + self.micro, self.images)) for first in range(0, self.images, self.micro)]


@dataclass(frozen=True)
class Outcome:
    """loss: nats a token, before the update. norms: of the gradients of each group, before clipping. failed: whether any of
    them is not finite, in this step or one before: nothing was changed then."""

    loss: float
    norms: dict[str, float]
    failed: bool


class UnderWay:
    """A step that the device was given."""

    def __init__(self, parts: list[optim.Part], values: dict[str, np.ndarray], mark: Mark) -> None:
        self.parts, self._values, self._mark = parts, values, mark
        self._outcome: Outcome | None = None

    def outcome(self) -> Outcome:
        """What came of it; waits until it is done."""
        if self._outcome is None:
            self._mark.wait()
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
    ) -> None:
        """network_input: makes what the model takes of a pass's images, or features, and crops int32 [n,3]. micro_batch: images
        a pass (0: all). longest: T of the longest captions. half: whether products of the CNN are of bfloat16 weights. log:
        told why steps are not recorded, or not on the arena, where they are not."""
        self.model, self.optimizer, self._network_input = model, optimizer, network_input
        self._micro, self._longest = micro_batch, longest
        self.graphs, self._log = Graphs(log, "a step of {}".format), log
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
        self._places: dict[Shape, tuple[int, ...]] = {}
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
        """Give the device a step.

        images: the batch's, uint8 [B,R,R,3] or float32 [B,F], of the host or the device. seed: of dropout, 64 bits. factors:
        float32 [N]; with them the loss is the mean over captions of each one's loss times its factor, else the mean over
        tokens. The groups have their learning rates. Raises IndexError for a token outside the vocabulary.
        """
        while len(self._under_way) >= _AHEAD:
            oldest = self._under_way.popleft()
            if oldest.outcome().failed:
                self._failed.append(oldest)
        with self.graphs.on_stream():
            shape, parts = self._prepare(batch, words_only)
            self._fill(shape, parts, batch, images, seed, factors)
            self._round_weights()
            self._forget_moved(shape, parts)
            self.graphs.run(shape, lambda: self._served(shape, parts))
            weights_changed()
            self._version = weights_version()
            host, values = self._report.next()
            download(host, self._report.whole)
            self._under_way.append(UnderWay(parts, values, Mark()))
        return self._under_way[-1]

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

    def _prepare(self, batch: Batch, words_only: bool) -> tuple[Shape, list[optim.Part]]:
        tokens, images = batch.tokens, len(batch.images)
        vocabulary = self.model.vocabulary
        if tokens.size and not (0 <= int(tokens.min()) and int(tokens.max()) < vocabulary):
            raise IndexError(f"captions with ids {tokens.min()} to {tokens.max()}: the vocabulary has {vocabulary}")
        learning = frozenset(self.model.learning(words_only))
        parts = self.optimizer.parts(learning)
        parameters = self.model.named_parameters()
        arena.prepare_gradients(parameters[name] for name in learning)
        groups = {part.group.name: part.group for part in parts}
        if tuple(groups) not in self._limits:
            limits = [group.clip if group.clip_mode == "norm" else 0.0 for group in groups.values()]
            self._limits[tuple(groups)] = to_device(np.array(limits, np.float32))
        captions, micro = tokens.shape[1] // images, min(self._micro or images, images)
        length = max(min(-(-tokens.shape[0] // 4) * 4, self._longest), tokens.shape[0])
        sizes = []
        for first in range(0, images, micro):
            columns = tokens[:, first * captions : (first + micro) * captions]
            most = (length - 1) * columns.shape[1]
            step = max(most // _CLASSES, 1)
            sizes.append(min(-(-targets.count(columns, words_only) // step) * step, most))
        names = tuple(part.names for part in parts)
        return Shape(images, micro, batch.images.shape[1:], captions, length, tuple(sizes), words_only, names), parts

    def _fill(self, shape: Shape, parts: list[optim.Part], batch: Batch, images: Any, seed: int, factors: Any) -> None:
        """Bring what the step reads to its places."""
        values: dict[str, Any] = {"crops": batch.crops, "seeds": dropout_seeds(self.model, seed)}
        values["rates"] = np.array([part.optimizer.advance(part) for part in parts], np.float32)
        total = targets.count(batch.tokens, shape.words_only) if factors is None else len(factors)
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

    def _forget_moved(self, shape: Shape, parts: list[optim.Part]) -> None:
        """Record anew where weights or the optimiser's state lie elsewhere than before: somebody has put other arrays there."""
        own = [t.data for t in self.model.named_parameters().values()]
        places = tuple(address(array) for array in (*own, *(a for part in parts for a in part.arrays())))
        if self._places.setdefault(shape, places) != places:
            self.graphs.clear()
            self._places = {shape: places}

    # the device's part ----------------------------------------------------------------------------------------------

    def _work(self, shape: Shape, parts: list[optim.Part], inputs: Mapping[str, Any], images: Any) -> None:
        """All launches of a step, and nothing that waits for one."""
        for part in parts:
            for name in part.names:
                part.optimizer.tensors[name].fresh = False  # an attempt before this one may have come to nothing
        report = self._report.arrays
        with self._rounded():
            for number, some in enumerate(shape.passes()):
                place_dropout(self.model, inputs["seeds"], some.start, some.stop - some.start, shape.images)
                kind = targets.WordTargets if shape.words_only else targets.CaptionTargets
                own = kind(**{name: inputs[f"{name}.{number}"] for name in kind.__dataclass_fields__})
                loss = self.model.weighted_loss(self._network_input(images[some], inputs["crops"][some]), own)
                kernels.total(report["loss"], loss.data.reshape(1), float(number > 0))
                loss.backward(np.float32(1))
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
            self._log(f"a step of {shape}: memory from the pool, not from the arena: {error}")
            self._layouts[shape] = None
            self._work(*given)

    def _plan(self, shape: Shape, parts: list[optim.Part]) -> None:
        """Find the places of what steps of this shape make, and have an arena that holds them, for the largest shape too."""
        if not dry.applies():
            self._layouts[shape] = None
            return
        largest = replace(
            shape,
            length=self._longest,
            sizes=tuple((self._longest - 1) * (p.stop - p.start) * shape.captions for p in shape.passes()),
        )
        if largest not in self._layouts:
            self._layouts[largest] = arena.plan(self._traced(largest, parts))
        whole = self._layouts[largest]
        if shape not in self._layouts:
            seen = self._traced(shape, parts)
            self._layouts[shape] = (whole and whole.for_smaller(seen)) or arena.plan(seen)
        needed = max(layout.nbytes for layout in self._layouts.values() if layout is not None)
        if needed > self._arena.nbytes:
            self.graphs.clear()  # they write to the old arena
            self._arena = arena.Arena(0)
            self._arena = arena.Arena(needed)

    def _traced(self, shape: Shape, parts: list[optim.Part]) -> arena.Trace:
        """What a step of this shape asks of the memory."""
        fields = shape.fields(len(dropout_layers(self.model)))
        inputs = {name: np.zeros(field_shape, dtype) for name, (field_shape, dtype) in fields.items()}
        images = np.zeros((shape.images, *shape.image), shape.image_dtype)
        with dry.dry_run(), arena.trace() as seen:
            self._work(shape, parts, inputs, images)
        return seen

    @contextmanager
    def _rounded(self) -> Iterator[None]:
        parameters = self.model.named_parameters()
        with rounded_weights((parameters[name].data, copy) for name, copy in self.copies.items()):
            yield
