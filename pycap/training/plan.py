"""What a configuration needs of a GPU's memory, before it starts, and the micro-batch that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pycap import arena, backends, device, ops, optim
from pycap.autograd import Tensor, no_grad
from pycap.backends.dry import ARCH, MULTIPROCESSORS, dry_run
from pycap.backends.weights import rounded_weights
from pycap.captioner import build_classifier, build_model, network_input
from pycap.config import ConfigError, TrainConfig
from pycap.distributed.device_reducer import DeviceReducer
from pycap.models import targets
from pycap.nn.layers import place_dropout
from pycap.training.sources import preprocess_spec

#: What is left free beside a plan: CUDA modules, graphs, and rounding of CuPy's pool.
MARGIN = 768 << 20

#: What NCCL keeps for itself on each of several GPUs: an estimate, of a node of eight on NVLink.
EXCHANGE = 1 << 30

_BUFFERS = 3  # of inputs: two that a feed fills in turn, and one that steps read
_WORD = 3  # any id but the padding's
_RULES: dict[str, type[optim.Optimizer]] = {"adam": optim.Adam, "rmsprop": optim.RMSprop, "sgd": optim.SGD}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by what they are for. micro_batch: images a pass, of batch_size a step of this rank.

    activations: the arena of a training step (`pycap.arena`), all that forward stores and backward makes, gradients rounded for
    the exchange with other GPUs among it. validation: what the loss of held-out images takes beside it, from the pool. copies:
    weights in bfloat16. exchange: what NCCL takes.
    """

    batch_size: int
    micro_batch: int
    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    workspace: int
    validation: int
    inputs: int
    exchange: int

    @property
    def parts(self) -> dict[str, int]:
        """The bytes by name, in the order of the fields."""
        return {name: value for name, value in asdict(self).items() if name not in ("batch_size", "micro_batch")}

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def passes(self) -> int:
        """Forward and backward passes a step."""
        return math.ceil(self.batch_size / self.micro_batch)

    def summary(self) -> str:
        """One line: "needs 5.4 GiB on the GPU: weights 0.6, ..."."""
        told = ", ".join(f"{name} {value / 2**30:.1f}" for name, value in self.parts.items() if value >= 2**30 // 20)
        split = "" if self.passes == 1 else f"; micro-batch {self.micro_batch}, {self.passes} passes a step"
        return f"needs {self.total / 2**30:.1f} GiB on the GPU{': ' if told else ''}{told}{split}"


def plan(config: TrainConfig, vocabulary: int, ranks: int = 1) -> MemoryPlan:
    """What the largest step of a run needs: every caption of `max_length` words, and all learning that ever will.

    vocabulary: how many ids. ranks: GPUs that share each batch; the plan is one's. Found by running the step dry, for the GPU
    that was selected, or an H100 where none was: in well under a second, and next to no memory.
    """
    planner = _Planner(config, vocabulary, ranks)
    return planner.plan(planner.most)


def fit(config: TrainConfig, vocabulary: int, available: int, ranks: int = 1) -> MemoryPlan:
    """The plan with the largest micro-batch, at most the one asked for, that takes no more than `available` bytes.

    The fewest passes a step, that is, of equal size or nearly. Raises ConfigError, with what each part needs and what would
    help, where a micro-batch of 1 does not fit.
    """
    planner = _Planner(config, vocabulary, ranks)
    images = planner.config.batch_size
    largest = planner.plan(planner.most)
    if largest.total <= available:
        return largest
    smallest = planner.plan(1)
    if smallest.total > available:
        raise ConfigError(
            f"batch_size: the run does not fit into {available / 2**30:.1f} GiB: even with one image a pass it "
            f"{smallest.summary()}; {_remedies(config)}"
        )
    too_few, enough, found = largest.passes, images, smallest
    while enough - too_few > 1:
        passes = (too_few + enough) // 2
        tried = planner.plan(math.ceil(images / passes))
        if tried.total <= available:
            enough, found = passes, tried
        else:
            too_few = passes
    return found


def available_bytes() -> int:
    """What a run may take of the current GPU now: what is free there and in CuPy's pool, less `MARGIN`."""
    cupy = device.module()
    free, _ = cupy.cuda.runtime.memGetInfo()
    return max(int(free) + int(cupy.get_default_memory_pool().free_bytes()) - MARGIN, 0)


def _remedies(config: TrainConfig) -> str:
    ways = ["a GPU with more memory"]
    if config.precision != "bf16":
        ways.append("--precision bf16")
    if not config.freeze_cnn:
        ways.append("--freeze-cnn")
    if config.image_size > 128:
        ways.append("a smaller --image-size")
    if config.optimizer == "adam":
        ways.append("--optimizer sgd")
    return f"what would help: {', '.join(ways)}"


def saved_bytes(config: TrainConfig, vocabulary: int) -> tuple[int, int]:
    """What a checkpoint of a run holds: bytes of the weights, and of the optimiser's arrays. vocabulary: how many ids."""
    planner = _Planner(config, vocabulary, 1)
    return planner.weights, planner.optimizer


class _Planner:
    """Plans of one configuration with several micro-batches. The model's arrays have no pages behind them. config: of one
    rank's share of the batch."""

    def __init__(self, config: TrainConfig, vocabulary: int, ranks: int) -> None:
        self.config = config = replace(config, batch_size=math.ceil(config.batch_size / ranks))
        self._ranks = ranks
        self._dtype = device.activation_dtype(config.precision)
        self._arch = None if device.current() == "cuda" else ARCH
        with self._dry():
            build = build_classifier if config.classifies else build_model
            self._model = build(config, vocabulary, draw=False)
            self._model.cnn.freeze(config.freeze_cnn)
            arena.prepare_gradients(self._model.named_parameters().values())
            halved = self._model.image_weights().values() if config.precision == "bf16" else ()
            self._copies = [(array, np.empty(array.shape, device.bfloat16())) for array in halved]

    @property
    def most(self) -> int:
        """The largest number of images a pass."""
        return min(self.config.micro_batch or self.config.batch_size, self.config.batch_size)

    def plan(self, micro_batch: int) -> MemoryPlan:
        config = self.config
        steps = [self._trained(micro_batch, words_only=config.classifies)]
        if config.pretrain_words:
            steps.append(self._trained(micro_batch, words_only=True))
        validated = self._validated(micro_batch)
        return MemoryPlan(
            batch_size=config.batch_size,
            micro_batch=micro_batch,
            weights=self.weights,
            gradients=_bytes(tensor.data for tensor in self._learning().values()),
            optimizer=self.optimizer,
            copies=_bytes(copy for _, copy in self._copies),
            activations=max(arena.plan(seen).nbytes for seen in steps),
            workspace=max(seen.workspace_nbytes for seen in (*steps, validated)),
            validation=validated.peak,
            inputs=_BUFFERS * self._input_bytes(),
            exchange=EXCHANGE if self._ranks > 1 else 0,
        )

    @property
    def weights(self) -> int:
        """Bytes of all parameters."""
        return _bytes(tensor.data for tensor in self._model.named_parameters().values())

    @property
    def optimizer(self) -> int:
        """Bytes of what the update rules keep of the parameters that ever learn."""
        return _bytes(tensor.data for name, tensor in self._learning().items() for _ in self._slots(name))

    def _learning(self) -> dict[str, Tensor]:
        config, parameters = self.config, self._model.named_parameters()
        objectives = (config.classifies, True) if config.pretrain_words else (config.classifies,)
        return {name: parameters[name] for words in objectives for name in self._model.learning(words)}

    def _slots(self, name: str) -> tuple[str, ...]:
        """What the update rule of a parameter keeps."""
        own = self.config.cnn_optimizer if name.startswith("cnn.") else None
        return _RULES[own or self.config.optimizer].slots

    def _input_bytes(self) -> int:
        """Pixels or features, and of each word its id as an input and as a target, its row, its place, its weight and whether
        it counts."""
        config = self.config
        words = config.batch_size * config.seq_per_img * (config.max_length + 2)
        image = config.resize_to**2 * 3 if config.features == "none" else config.fc_size * 4
        return config.batch_size * image + words * (5 * 4 + 1)

    def _trained(self, images: int, words_only: bool) -> arena.Trace:
        """One pass of a step, as `pycap.training.step` has it; of several GPUs the last, which exchanges gradients."""
        config, tokens = self.config, self._tokens(images)
        size = (len(tokens) - 1) * tokens.shape[1]
        with self._dry():
            self._model.train(True)
            self._model.cnn.train(not config.freeze_cnn)
            place_dropout(self._model, 0, 0, images, images)
            backward = self._backward(words_only)
            with rounded_weights(self._copies), arena.trace() as seen:
                if words_only:
                    wanted: Any = targets.word_targets(images, tokens, size, size)
                else:
                    wanted = targets.caption_targets(images, tokens, len(tokens), size, size)
                backward(self._model.weighted_loss(self._input(images), wanted), np.float32(1))
            for tensor in self._model.named_parameters().values():
                tensor.fresh = False
        return seen

    def _backward(self, words_only: bool) -> Callable[[Tensor, Any], None]:
        if self._ranks == 1:
            return Tensor.backward
        parameters = self._model.named_parameters()
        learning = [parameters[name] for name in self._model.learning(words_only)]
        return DeviceReducer(None, learning, half=self.config.precision == "bf16").backward

    def _validated(self, images: int) -> arena.Trace:
        forms = backends.constant_weights(backends.WeightCache())
        with self._dry(), arena.trace() as seen, no_grad(), self._model.evaluating(), forms:
            self._model.loss(self._input(images), self._tokens(images))
        return seen

    def _tokens(self, images: int) -> np.ndarray:
        """Captions of which each is of `max_length` words."""
        return np.full((self.config.max_length + 2, images * self.config.seq_per_img), _WORD, np.int32)

    def _input(self, images: int) -> ops.Pixels | Tensor:
        spec = preprocess_spec(self.config)
        if self.config.features == "none":
            raw = np.empty((images, spec.resize, spec.resize, 3), np.uint8)
        else:
            raw = np.empty((images, self.config.fc_size), np.float32)
        return network_input(raw, np.zeros((images, 3), np.int32), spec, self._dtype)

    @contextmanager
    def _dry(self) -> Iterator[None]:
        products = backends.float32_products()
        backends.set_float32_products(device.float32_products(self.config.precision))
        try:
            with dry_run(self._arch, MULTIPROCESSORS):
                yield
        finally:
            backends.set_float32_products(products)


def _bytes(arrays: Iterable[Any]) -> int:
    return sum(array.nbytes for array in arrays)
