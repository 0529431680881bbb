"""One training step and the validation loss: model, parameter groups, schedule, micro-batches, freezing.

On the CPU a step is done when `launch` returns; on a GPU it is under way then (`pycap.training.step`), and two more may follow
before the first one's loss is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from pycap import ops, optim
from pycap.autograd import Tensor, no_grad
from pycap.backends import set_float32_products
from pycap.captioner import network_input
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.device import activation_dtype, current, float32_products, to_device
from pycap.distributed import Ranks
from pycap.distributed import current as current_ranks
from pycap.distributed.reducer import HostReducer
from pycap.models import targets
from pycap.models.captions import CaptionModel
from pycap.models.classifier import Classifier
from pycap.nn.layers import place_dropout
from pycap.schedules import make_schedule
from pycap.training.relus import Watch
from pycap.training.scst import Critic, Reward
from pycap.training.shares import Share, share
from pycap.training.step import Step

Objective = Literal["words", "captions", "scst", "classes"]
_WORDS_ONLY = ("words", "classes")  # a class is a word


class Diverged(FloatingPointError):
    """The loss or a gradient is not a finite number; the weights are those from before the step.

    attempt: what the step was to be made of, of this rank, for who looks for the reason; None where no step failed."""

    attempt: Attempt | None = None


@dataclass(frozen=True)
class Attempt:
    """What one step is made of, on this rank. number: the step's, from 1. images: the batch's, on the host or the device.
    seed: of dropout. factors: float32 [N], by which the captions' losses are weighed, or None. own: what this rank has of the
    step. objective: what is learned. figures: see `StepResult`."""

    number: int
    batch: Batch
    images: Any
    seed: int
    factors: Any
    own: Share
    objective: Objective
    figures: dict[str, float]


@dataclass(frozen=True)
class StepResult:
    """step: its number, from 1. loss: nats a token, before the update; of "scst", nats a caption, weighed by its advantage.
    norms: gradient norm of each group, before clipping. lr: of the language model, or the classifier's head. figures: what else
    there is to tell, by name."""

    step: int
    loss: float
    tokens: int
    images: int
    norms: dict[str, float]
    lr: float
    figures: dict[str, float] = field(default_factory=dict)


class Pending:
    """A step that was launched."""

    def __init__(self, settle: Callable[[], StepResult]) -> None:
        self._settle = settle

    def result(self) -> StepResult:
        """What came of it; waits until it is done. Raises Diverged, with the files of the batch, where the loss or a gradient
        was not finite: neither this step nor any that was launched after it has changed anything then."""
        return self._settle()


class Trainer:
    """Trains `model` as `config` says. `step_number` counts the updates made; `steps_per_epoch` scales the schedules.
    `objective`: what the next step learns, "words" (the CNN alone guesses them), "captions", "scst" (of its own), "classes"."""

    def __init__(
        self,
        model: CaptionModel | Classifier,
        config: TrainConfig,
        spec: PreprocessSpec,
        steps_per_epoch: int,
        *,
        resident: bool | None = None,
        reward: Reward | None = None,
        log: Callable[[str], None] = print,
        ranks: Ranks | None = None,
    ) -> None:
        """resident: whether steps stay on the device, one under way while the next is prepared (None: on a GPU). log: told what
        a person should know of that. reward: for self-critical training, whose steps are all waited for. ranks: processes that
        take part in each step, with a share of its batch each (None: those of this job)."""
        self.model, self.config, self.spec = model, config, spec
        self._ranks = current_ranks() if ranks is None else ranks
        self._reducer: HostReducer | None = None
        self._reduced: list[str] = []
        self._resident, self._log = current() == "cuda" if resident is None else resident, log
        self._device_step: Step | None = None
        self._critic = None if reward is None else Critic(model, reward, config, self._ranks)
        self._dtype, self._products = activation_dtype(config.precision), float32_products(config.precision)
        self.step_number = 0
        self._learns: Objective = "classes" if config.classifies else "scst" if reward else "captions"
        self.objective: Objective = self._learns
        self._word_steps = config.pretrain_words * steps_per_epoch
        self.optimizer = _optimizer(model, config)
        total = config.epochs * steps_per_epoch
        limit = config.max_steps - self._word_steps if config.max_steps else total
        self.schedule = make_schedule(
            config.lr_schedule,
            total_steps=max(min(total, limit), 1),
            warmup_steps=config.warmup_steps,
            min_lr=config.min_learning_rate,
            decay_start=config.lr_decay_start * steps_per_epoch,
            decay_every=config.lr_decay_every * steps_per_epoch,
            decay_rate=config.lr_decay_rate,
            patience=config.plateau_patience,
        )

    @property
    def _words_only(self) -> bool:
        return self.objective in _WORDS_ONLY

    @property
    def ahead(self) -> int:
        """How many steps should be under way besides the one that is launched."""
        return 1 if self._resident else 0

    def begin_epoch(self, epoch: int) -> bool:
        """Freeze the CNN or let it learn, as the config has it for this epoch; returns whether it learns.

        epoch: from 0. The first `config.pretrain_words` of them train the CNN to guess words; the others count from there.
        """
        self.objective = "words" if epoch < self.config.pretrain_words else self._learns
        captioning_epoch = epoch - self.config.pretrain_words
        joint = self.objective == "words" or (
            not self.config.freeze_cnn and captioning_epoch >= self.config.finetune_cnn_after
        )
        self.model.train(True)
        self.model.cnn.freeze(not joint)
        self.model.cnn.train(joint)  # a frozen CNN gives the same features every time: no dropout in it
        return joint

    def step(self, batch: Batch) -> StepResult:
        """Update the weights on one batch, whole or in micro-batches of the same gradient, and wait for it.

        Raises Diverged, with the files of the batch, where the loss or a gradient is not finite: nothing has changed then.
        """
        pending = self.launch(batch)
        if pending is None:
            raise ValueError(f"step: batch {batch.index + 1} of epoch {batch.epoch + 1} has no image")
        return pending.result()

    def launch(self, batch: Batch, images: Any = None) -> Pending | None:
        """`step`, without waiting for the device. images: the batch's, where they lie on the device already.

        Of several ranks each gives its share of the batch; None where none of them has an image: that is no step. At most
        three steps are under way: the call waits for the oldest where there are more.
        """
        attempt = self.prepare(batch, images)
        if attempt is None:
            return None
        batch, own, number = attempt.batch, attempt.own, attempt.number
        rate, figures = self.optimizer.groups[-1].lr, attempt.figures
        if not self._resident:
            made = replace(self._update(attempt, rate), figures=figures)
            self.step_number += 1
            return Pending(lambda: made)
        if self._device_step is None:
            self._device_step = self._make_device_step()
        device_step = self._device_step
        under_way = device_step.launch(batch, attempt.images, attempt.seed, self._words_only, attempt.factors)
        self.step_number += 1

        def settle() -> StepResult:
            outcome = under_way.outcome()
            if outcome.failed:
                self.step_number -= device_step.undo()
                bad = [name for name, norm in outcome.norms.items() if not math.isfinite(norm)]
                what = (
                    f"the gradient of {' and of '.join(bad)} holds NaN or infinity" if bad else "a step before failed"
                )
                raise self._diverged(f"the loss is {outcome.loss}; {what}", attempt)
            return StepResult(number, outcome.loss, own.tokens, own.images, outcome.norms, rate, figures)

        if self._critic is not None:  # the next step draws from the weights that this one makes
            made = settle()
            return Pending(lambda: made)
        return Pending(settle)

    def prepare(self, batch: Batch, images: Any = None) -> Attempt | None:
        """What the next step makes of a batch, or None where no rank has an image of it; for self-critical training captions
        are drawn here. Sets the learning rates and the products' precision, and changes nothing else: the same call gives the
        same again."""
        own = share(self._ranks, len(batch), targets.count(batch.tokens, self._words_only))
        if not own.images:
            return None
        set_float32_products(self._products)
        self._set_learning_rates()
        seed = int(np.random.SeedSequence([self.config.seed, 0xD20, self.step_number]).generate_state(1, np.uint64)[0])
        if images is None:
            images = batch.images
        factors, figures = None, dict[str, float]()
        if self._critic is not None:
            drawn = self._critic.draw(
                batch, lambda part: self._input(images[part], batch.crops[part]), self.step_number, own.first
            )
            batch, factors, figures = drawn.batch, drawn.advantages, drawn.figures
            own = share(self._ranks, len(batch), targets.count(batch.tokens, words_only=False))
        return Attempt(self.step_number + 1, batch, images, seed, factors, own, self.objective, figures)

    def passes(self, attempt: Attempt, most: int = 0) -> list[Callable[[], Tensor]]:
        """The passes of a step, in order: each gives its part of the loss of the step, with its graph, as the CPU makes it.

        most: images a pass; 0: as the config says. The parts add up to the loss, whatever it is.
        """
        count = len(attempt.batch)
        size = most or self.config.micro_batch or max(count, 1)
        return [partial(self._pass, attempt, slice(at, min(at + size, count))) for at in range(0, count, size)]

    def _pass(self, attempt: Attempt, part: slice) -> Tensor:
        batch, own = attempt.batch, attempt.own
        per_image = batch.tokens.shape[1] // len(batch)
        columns = slice(part.start * per_image, part.stop * per_image)
        place_dropout(self.model, attempt.seed, own.first + part.start, part.stop - part.start, own.images)
        given, captions = self._input(batch.images[part], batch.crops[part]), batch.tokens[:, columns]
        if attempt.factors is not None:
            return self._weighted(given, captions, attempt.factors[columns], own.images * self.config.seq_per_img)
        objective = self.model.word_loss if attempt.objective in _WORDS_ONLY else self.model.loss
        return objective(given, captions, normalizer=own.tokens)

    def _update(self, attempt: Attempt, rate: float) -> StepResult:
        """One step, done when it returns. rate: what it tells as its learning rate."""
        self._prepare_sums()
        loss, result = 0.0, None
        for forward in self.passes(attempt):
            if result is not None and math.isfinite(loss):
                result.backward()
            result = None  # the graph, where backward did not use it up
            result = forward()
            loss += result.item()
        loss = float(self._ranks.total(np.array([loss]))[0])  # all ranks go on, or none
        if not math.isfinite(loss):
            self._forget_gradients()
            raise self._diverged(f"the loss is {loss}", attempt)
        if self._reducer is not None:
            self._reducer.backward(result)
        elif result is not None:
            result.backward()
        try:
            norms = self.optimizer.step()
        except optim.NonFiniteGradient as error:
            self._forget_gradients()
            raise self._diverged(str(error), attempt) from error
        return StepResult(attempt.number, loss, attempt.own.tokens, attempt.own.images, norms, rate)

    def _prepare_sums(self) -> None:
        """Have a reducer for the gradients of the next step, where there are ranks to sum them over."""
        learning = self.model.learning(self._words_only)
        if self._ranks.size > 1 and learning != self._reduced:
            if self._reducer is not None:
                self._reducer.release()
            parameters = self.model.named_parameters()
            self._reducer = HostReducer(self._ranks, [parameters[name] for name in learning])
            self._reduced = learning

    def _diverged(self, what: str, attempt: Attempt) -> Diverged:
        """The error, on every rank, with the files of the whole batch."""
        batch = attempt.batch
        names = [name for own in self._ranks.each(batch.file_names) for name in own]
        told = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        error = Diverged(
            f"step {attempt.number} (epoch {batch.epoch + 1}, batch {batch.index + 1}): {what}; "
            f"images of this batch: {told}"
        )
        error.attempt = attempt
        return error

    def _weighted(self, given: ops.Pixels | Tensor, tokens: Any, factors: Any, total: int) -> Tensor:
        """The sum of the captions' losses, each times its factor, over `total`."""
        size = targets.count(tokens, words_only=False)
        wanted = targets.caption_targets(given.shape[0], tokens, len(tokens), size, total, factors)
        return self.model.weighted_loss(given, targets.CaptionTargets(*map(to_device, vars(wanted).values())))

    def _make_device_step(self) -> Step:
        return Step(
            self.model,
            self.optimizer,
            self._input,
            micro_batch=self.config.micro_batch,
            longest=self.config.max_length + 2,
            half=self.config.precision == "bf16",
            log=self._log,
            ranks=self._ranks,
        )

    def close(self) -> None:
        """Leave what the ranks exchange gradients by, as all of them do: no step may follow."""
        if self._device_step is not None:
            self._device_step.close()

    def _set_learning_rates(self) -> None:
        if self.objective == "words":
            for group in self.optimizer.groups:
                group.lr = self.config.pretrain_learning_rate
        else:
            self.optimizer.set_lr(self.schedule, max(self.step_number - self._word_steps, 0))

    def loss(self, batches: Iterable[Batch], watch: Watch | None = None) -> float:
        """Mean cross-entropy a token in nats over all captions of `batches`, and of those of the other ranks, without dropout
        (END counts). watch: sees what the layers put out of the first ones."""
        set_float32_products(self._products)
        total, count = 0.0, 0
        with no_grad(), self.model.evaluating():
            for batch in batches:
                tokens = targets.count(batch.tokens, words_only=False)
                with watch.batch(len(batch)) if watch else nullcontext():
                    loss = self.model.loss(self._input(batch.images, batch.crops), batch.tokens)
                total += loss.item() * tokens
                count += tokens
        total, count = self._ranks.total(np.array([total, count]))
        return float(total / max(count, 1))

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights and the optimiser's arrays; plain JSON values."""
        return {"step": self.step_number, "schedule": self.schedule.state()}

    def load_state(self, state: dict[str, Any], optimizer_arrays: dict[str, Any]) -> None:
        self.step_number = int(state["step"])
        self.schedule.load_state(state["schedule"])
        self.optimizer.load_state_arrays(optimizer_arrays)

    def _input(self, images: Any, crops: Any) -> ops.Pixels | Tensor:
        """What the model takes of images, or features, and their crops int32 [n,3]."""
        return network_input(images, crops, self.spec, self._dtype)

    def _forget_gradients(self) -> None:
        for parameter in self.model.named_parameters().values():
            parameter.fresh = False


def _optimizer(model: CaptionModel | Classifier, config: TrainConfig) -> optim.Optimizer | optim.Combined:
    """One update rule over the groups `cnn` and `lm` (a classifier's: `head`), or two where the CNN has its own."""
    parameters = model.named_parameters()
    cnn = {n: t for n, t in parameters.items() if n.startswith("cnn.")}
    rest = {n: t for n, t in parameters.items() if n not in cnn}

    def either(own: Any, shared: Any) -> Any:
        return shared if own is None else own

    groups = [
        optim.ParamGroup(
            "cnn",
            cnn,
            either(config.cnn_learning_rate, config.learning_rate),
            either(config.cnn_weight_decay, config.weight_decay),
            either(config.cnn_grad_clip, config.grad_clip),
            config.grad_clip_mode,
        ),
        optim.ParamGroup(
            "head" if config.classifies else "lm",
            rest,
            config.learning_rate,
            config.weight_decay,
            config.grad_clip,
            config.grad_clip_mode,
        ),
    ]
    rule = either(config.cnn_optimizer, config.optimizer)
    if rule == config.optimizer:
        return _rule(rule, groups, config)
    return optim.Combined([_rule(rule, groups[:1], config), _rule(config.optimizer, groups[1:], config)])


def _rule(name: str, groups: list[optim.ParamGroup], config: TrainConfig) -> optim.Optimizer:
    if name == "adam":
        return optim.Adam(groups, config.beta1, config.beta2, config.epsilon)
    if name == "rmsprop":
        return optim.RMSprop(groups, config.alpha, config.epsilon)
    return optim.SGD(groups, config.momentum)
