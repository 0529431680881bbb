"""`--check-gradients`: the backward pass of a run's own model, batch, options and kernels, held against differences of its loss
before the first step.

Along a direction d the loss's slope is <g, d>. Half of d is random, and so sees what backward leaves out; half is the gradient
itself, each element times a random number in (0, 2), so that an error of one element is not lost among a million others. Each
tensor's part of d is as long as the tensor, so that a step h changes all weights by the same part of their size. Each tensor
has a direction of its own too: among others an error of 1 % in a small gradient would not be seen.

The slope is (L(h) - L(-h)) / 2h over a ladder of steps. Its error is estimated without looking at g: rounding, from the noise
of the loss (differences of ever higher order along tiny steps; Moré & Wild 2011, "Estimating computational noise") over h;
what a finite step adds, from how far the slopes of smaller steps differ; and kinks of ReLU and max-pooling, from the bend
(L(h) + L(-h) - 2 L(0)) / h, which a smooth loss halves with h and a kink does not. (A unit whose input is exactly 0, as where
dropout took all that it sees, has its kink at the weights themselves: backward takes one side there, differences the middle.)
The step with the least error is taken; a direction on which none is good enough is left for another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pycap.autograd import Tensor, no_grad
from pycap.backends import weights_changed
from pycap.device import assign, current, to_host
from pycap.distributed import Ranks
from pycap.training.diagnosis import borrowed_gradients
from pycap.training.trainer import Attempt, Trainer

STEPS = tuple(2.0**-k for k in range(4, 17))  # of the size of the weights
RESOLVED = 0.01  # a slope is of use where it may be off by at most this part of it
NOISES, CHANGES = 4.0, 2.0  # backward may be apart by so many times the rounding, and what smaller steps change
NEAREST = (
    2e-3  # of the slope, which is never called wrong: backward's own rounding, and kinks nearer than the smallest step
)
TF32 = 10.0  # times that, and times RESOLVED, where a GPU's products have 11 bits in place of 24
DRAWS = 3  # directions tried for one that can be resolved
HOPELESS = 2.0  # times what would be resolved: no other direction is tried then
NOISE_STEP, NOISE_POINTS = 2.0**-20, 7
_PIECES = 8  # of a batch, whose losses are added in float64: less rounding than in one of float32
_NEAR = 6  # steps that are looked at around the one that served before


class WrongGradient(ArithmeticError):
    """The backward pass disagrees with differences of the loss; the text names the parameters."""


@dataclass(frozen=True)
class Slope:
    """By differences at a step, and by backward. allowed: how far they may be apart. resolved: whether that is little enough to
    tell anything."""

    differences: float
    backward: float
    step: float
    allowed: float
    resolved: bool

    @property
    def scale(self) -> float:
        return max(abs(self.differences), abs(self.backward), 1e-300)

    @property
    def apart(self) -> float:
        """Relative to the slope."""
        return abs(self.differences - self.backward) / self.scale

    @property
    def wrong(self) -> bool:
        return self.resolved and abs(self.differences - self.backward) > self.allowed


class GradientCheck:
    """Of one attempt at a step. Weights, gradients, the optimiser and all that is random are afterwards as they were."""

    def __init__(self, trainer: Trainer, attempt: Attempt, ranks: Ranks) -> None:
        self._trainer, self._attempt, self._ranks = trainer, attempt, ranks
        self._looser = TF32 if trainer.config.precision == "tf32" and current() == "cuda" else 1.0
        learning = trainer.model.learning(attempt.objective in ("words", "classes"))
        parameters = trainer.model.named_parameters()
        self._tensors = {name: parameters[name] for name in learning}
        self._weights = {name: to_host(tensor.data).copy() for name, tensor in self._tensors.items()}
        self._gradients: dict[str, np.ndarray] = {}
        self.noise = self._middle = 0.0
        self._near = STEPS
        self.loss = math.nan

    def run(self, directions: int, say: Callable[[str], None], between: Callable[[], None] = lambda: None) -> None:
        """So many directions over all parameters and over each group, and one over each tensor; says a table. between: called
        before each direction, with all weights as they were. Raises WrongGradient, which names the tensors that disagree along
        two directions each, or the groups where no tensor does."""
        groups = {
            group.name: [name for name in group.params if name in self._tensors]
            for group in self._trainer.optimizer.groups
        }
        try:
            self._prepare()
            say(
                f"gradient check ({self._attempt.objective}, loss {self.loss:.6f} \u00b1 {self.noise:.0e}): slopes of the loss "
                "along random directions, by differences and by backward"
            )
            wrong: dict[str, float] = {}
            blurred: list[str] = []
            wholes = {"all": list(self._tensors)} if sum(map(bool, groups.values())) > 1 else {}
            parts = [(name, own, directions) for name, own in (wholes | groups).items() if own]
            width = max(map(len, [*self._tensors, *groups]))
            for place, (name, own, count) in enumerate(parts + [(name, [name], 1) for name in self._tensors]):
                found = []
                for number in range(count):
                    between()
                    found.append(self._direction(own, (place, number)))
                if any(slope.wrong for slope in found):  # a kink is not met twice
                    found.append(self._direction(own, (place, count), whole=True))
                    if found[-1].wrong:
                        wrong[name] = found[-1].apart
                for slope in found:
                    say(_row(name.ljust(width), slope))
                blurred += [] if any(slope.resolved for slope in found) else [name]
            if blurred:
                say(
                    f"not to be told to {100 * RESOLVED * self._looser:g} %, for rounding and kinks: {', '.join(blurred)}"
                )
        finally:
            self._restore(self._tensors)
        if wrong:
            named = {name: apart for name, apart in wrong.items() if name in self._tensors} or wrong
            told = ", ".join(f"{name} by {100 * apart:.3g} %" for name, apart in named.items())
            raise WrongGradient(
                f"check_gradients: the backward pass disagrees with differences of the loss: {told}. Nothing was trained. "
                "Another --backend computes in another way: if it agrees, the kernels are at fault (pycap doctor names them)"
            )

    def _prepare(self) -> None:
        """Loss, gradients and noise at the weights as they are."""
        with borrowed_gradients(self._trainer):
            loss = 0.0
            for forward in self._passes():
                result = forward()
                loss += result.item()
                result.backward()
            held = {
                name: to_host(tensor.grad).astype(np.float64) if tensor.fresh else np.zeros(tensor.shape)
                for name, tensor in self._tensors.items()
            }
        self.loss = float(self._ranks.total(np.array([loss]))[0])
        if not math.isfinite(self.loss):
            raise WrongGradient(
                f"check-gradients: the loss of the first batch is {self.loss}: there is nothing to compare"
            )
        self._gradients = {name: self._ranks.total(gradient) for name, gradient in held.items()}
        direction = self._draw(list(self._tensors), (99, 0))
        values = [self._loss_at(direction, (k - NOISE_POINTS // 2) * NOISE_STEP) for k in range(NOISE_POINTS)]
        self._middle = values[NOISE_POINTS // 2]
        self._restore(direction)
        quantum = abs(self.loss) * float(np.finfo(np.float32).eps) / 4 / math.sqrt(_PIECES)
        self.noise = max(_noise(values), quantum)

    def _passes(self, most: int = 0) -> list[Callable[[], Tensor]]:
        return self._trainer.passes(self._attempt, most) if len(self._attempt.batch) else []

    def _draw(self, names: list[str], number: tuple[int, int]) -> dict[str, np.ndarray]:
        """A direction over these parameters; the same on all ranks."""
        rng = np.random.default_rng([self._trainer.config.seed, 0xF1D, *number])
        direction = {}
        for name in names:
            gradient, weights = self._gradients[name], self._weights[name]
            size = max(float(np.linalg.norm(weights)), 0.01 * math.sqrt(weights.size))
            blind = rng.standard_normal(weights.shape)
            seen = gradient * rng.uniform(0, 2, weights.shape)
            blind /= max(float(np.linalg.norm(blind)), 1e-300)
            length = float(np.linalg.norm(seen))
            direction[name] = size * (blind + (seen / length if length > 0 else 0.0)) / math.sqrt(2)
        return direction

    def _direction(self, names: list[str], number: tuple[int, int], whole: bool = False) -> Slope:
        """Along the first direction that can be resolved; the best of some where none can. whole: with all steps, not only
        those around the one that served before."""
        found: list[Slope] = []
        for draw in range(DRAWS):
            direction = self._draw(names, (number[0], number[1] * DRAWS + draw))
            found.append(self._slope(direction, STEPS if whole else self._near))
            if not (found[-1].resolved or whole or draw or self._near == STEPS):
                found.append(self._slope(direction, STEPS))
            if found[-1].resolved:
                first = max(min(STEPS.index(found[-1].step) - 1, len(STEPS) - _NEAR), 0)
                self._near = STEPS[first : first + _NEAR]
                return found[-1]
            hopeless = found[-1].allowed > HOPELESS * RESOLVED * self._looser * found[-1].scale
            if hopeless and any(self._gradients[name].any() for name in names):  # a gradient of 0 may be one left out
                break
        return min(found, key=lambda slope: slope.allowed / slope.scale)

    def _slope(self, direction: Mapping[str, np.ndarray], steps: tuple[float, ...]) -> Slope:
        backward = sum(float(np.vdot(self._gradients[name], own)) for name, own in direction.items())
        sides = [(self._loss_at(direction, h), self._loss_at(direction, -h)) for h in steps]
        self._restore(direction)
        error, slope, step = min(errors(sides, self._middle, steps, self.noise))
        scale = max(abs(slope), abs(backward))
        allowed = error + NEAREST * self._looser * scale
        return Slope(slope, backward, step, allowed, allowed <= RESOLVED * self._looser * scale)

    def _loss_at(self, direction: Mapping[str, np.ndarray], step: float) -> float:
        """The loss at the weights plus step times the direction, with dropout's masks as they are; over all ranks."""
        for name, own in direction.items():
            assign(self._tensors[name].data, (self._weights[name] + step * own).astype(self._weights[name].dtype))
        weights_changed()
        loss = 0.0
        with no_grad():
            for forward in self._passes(max(len(self._attempt.batch) // _PIECES, 1)):
                loss += forward().item()
        return float(self._ranks.total(np.array([loss]))[0])

    def _restore(self, names: Iterable[str]) -> None:
        for name in names:
            assign(self._tensors[name].data, self._weights[name])
        weights_changed()


def errors(
    sides: Sequence[tuple[float, float]], middle: float, steps: Sequence[float], noise: float
) -> Iterator[tuple[float, float, float]]:
    """(allowed error, slope, step) of each central difference but the last two. sides: the loss at each step and at minus it;
    middle: at none; steps: each half of the one before.

    The error: rounding; how far the slope is from those of the next two steps, and from all smaller ones, as far as their own
    rounding does not explain that; and what does not halve with the step in the bend: a kink's jump from slope to slope, half
    of which is between the middle and either side.
    """
    slopes = [(above - below) / (2 * step) for (above, below), step in zip(sides, steps, strict=True)]
    bends = [(above + below - 2 * middle) / step for (above, below), step in zip(sides, steps, strict=True)]
    jumps = [abs(2 * smaller - larger) for larger, smaller in pairwise(bends)]
    rounding = [noise / (math.sqrt(2) * step) for step in steps]
    for at in range(len(slopes) - 2):
        changes = [abs(slopes[at] - slopes[k]) - 2 * rounding[k] * (k > at + 2) for k in range(at + 1, len(slopes))]
        kinks = max(jumps[at], jumps[at + 1])  # the one is blind to a kink at a third of the step, the other is not
        yield CHANGES * max(changes) + NOISES * rounding[at] + kinks, slopes[at], steps[at]


def _noise(values: list[float]) -> float:
    """The standard deviation of the noise in equally spaced values of a function that is smooth besides."""
    differences = np.array(values)
    estimates = []
    for order in range(1, len(values)):
        differences = np.diff(differences)
        factor = math.factorial(order) ** 2 / math.factorial(2 * order)
        estimates.append(math.sqrt(factor * float(np.mean(differences**2))))
    return min(estimates[2:])


def _row(name: str, slope: Slope) -> str:
    verdict = "not to be told" if not slope.resolved else "DISAGREES" if slope.wrong else "agrees"
    return (
        f"  {name} {slope.differences:+.6e} {slope.backward:+.6e}  apart {100 * slope.apart:.3f} % of at most "
        f"{100 * slope.allowed / slope.scale:.2g} %  (step {slope.step:.0e})  {verdict}"
    )
