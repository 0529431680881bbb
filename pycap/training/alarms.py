"""Warnings about a run that goes on: gradients that explode or vanish, a loss that jumps, ReLUs that are dead, captions that
are all the same. Each says what is seen, what is usual, the likely cause and what to try.

What is said depends on the steps alone, not on time, and `state` goes into checkpoints: a run that is continued says what it
would have said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from pycap.config import TrainConfig
from pycap.training.relus import Relus
from pycap.training.trainer import StepResult
from pycap.training.variety import Variety

RECENT = 100  # steps that say what is usual
WARM_UP = 50  # steps of a phase in which nothing is usual yet
EXPLODES = 20.0  # times the median of the recent norms
JUMPS = 2.0  # times the median of the recent losses, and
JUMPS_SPREAD = 10.0  # times their usual distance from it
WORSE = 10.0  # times the first loss of a phase, while nothing is usual yet
VANISHES = 1e-12  # of the largest norm of the other groups
VANISHED_FOR = 20  # steps without a break
QUIET = 100  # steps after an alarm in which it is not repeated
DEAD = 0.5  # of a convolution's channels
DEAD_CONNECTED = (
    0.9  # of a fully connected layer's: where all is well 0.4 to 0.65 of fc6 are dead (docs/reliability.md)
)
DEAD_AGAIN = 0.1  # more of them, since it was said last
FEW = 20  # images, of which nothing is said
SAME = 0.1  # captions that differ, of all captions
ALIKE = 0.5  # images with one caption
VARIED = 0.5  # people's captions that differ, of one an image: below that the data is not varied itself
BLIND = 1e-3  # how much fc7 differs between images, relative to its size
CLIP = "--grad-clip 5 --grad-clip-mode norm"
FIRST_STEPS = 1000  # of captioning, in which captions that are alike are usual


@dataclass(frozen=True)
class Alarm:
    """A warning. kind: what for. step: which is seen last. figures: by name. text: for a person."""

    kind: str
    step: int
    figures: dict[str, Any]
    text: str


class Alarms:
    """Told of each step and of each validation, in their order."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._recent: deque[StepResult] = deque(maxlen=RECENT)
        self._phase = ""
        self._begun = 0
        self._first = 0.0
        self._vanished: dict[str, int] = {}
        self._said: dict[str, int] = {}
        self._dead: dict[str, float] = {}
        self._best_variety = 0.0
        self._captioning_steps = 0

    @property
    def recent(self) -> list[StepResult]:
        """The last steps, as they were told."""
        return list(self._recent)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; plain JSON values."""
        recent = [asdict(result) for result in self._recent]
        return {"recent": recent, **{name: getattr(self, f"_{name}") for name in _KEPT}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._recent = deque((StepResult(**row) for row in state["recent"]), RECENT)
        for name in _KEPT:
            setattr(self, f"_{name}", state[name])

    # steps ----------------------------------------------------------------------------------------------------------

    def step(self, result: StepResult, phase: str) -> list[Alarm]:
        """phase: what learns now; with another one, what is usual begins anew."""
        if phase != self._phase:
            self._phase, self._begun, self._first = phase, 0, result.loss
            self._recent.clear()
            self._vanished.clear()
        self._begun += 1
        self._captioning_steps += phase.startswith(("captions", "scst"))
        found = []
        if self._begun > max(WARM_UP, self._config.warmup_steps if self._begun == result.step else 0):
            found = [*self._exploding(result), *self._jumping(result, phase)]
        elif result.loss > WORSE * max(self._first, 1.0) and not phase.startswith("scst"):
            found = [self._jump(result, f"is {result.loss:.3g}, and began at {self._first:.3g}", self._first)]
        found += self._vanishing(result, phase)
        self._recent.append(result)
        return [alarm for alarm in found if self._is_new(alarm)]

    def _is_new(self, alarm: Alarm) -> bool:
        key = f"{alarm.kind} {alarm.figures.get('group', '')}"
        if alarm.step - self._said.get(key, -QUIET) < QUIET:
            return False
        self._said[key] = alarm.step
        return True

    def _exploding(self, result: StepResult) -> list[Alarm]:
        found = []
        for group, norm in result.norms.items():
            usual = median(other.norms.get(group, 0.0) for other in self._recent)
            if not 0 < EXPLODES * usual < norm:
                continue
            clip = self._config.grad_clip
            if group == "cnn" and self._config.cnn_grad_clip is not None:
                clip = self._config.cnn_grad_clip
            clipped = f"--grad-clip {clip:g} limits what it does" if clip else f"nothing limits it: {CLIP}"
            rate = self._rate(group)
            found.append(
                Alarm(
                    "exploding gradient",
                    result.step,
                    {"group": group, "norm": norm, "usual": usual},
                    f"step {result.step}: the gradient of {group} explodes: norm {norm:.3g}, usually {usual:.3g}; {clipped}. "
                    f"A learning rate that is too high ({rate}) makes this, or a strange batch; if it comes again, lower it",
                )
            )
        return found

    def _jumping(self, result: StepResult, phase: str) -> list[Alarm]:
        if phase.startswith("scst"):  # its loss is weighed by advantages, of either sign
            return []
        losses = [other.loss for other in self._recent]
        usual = median(losses)
        spread = 1.4826 * median(abs(loss - usual) for loss in losses)
        if result.loss <= max(JUMPS * usual, usual + JUMPS_SPREAD * spread):
            return []
        return [self._jump(result, f"jumps to {result.loss:.3g}, usually {usual:.3g}", usual)]

    def _jump(self, result: StepResult, seen: str, usual: float) -> Alarm:
        return Alarm(
            "jumping loss",
            result.step,
            {"loss": result.loss, "usual": usual},
            f"step {result.step}: the loss {seen}: an update was too large. Lower {self._rate('lm')}, or set {CLIP}",
        )

    def _vanishing(self, result: StepResult, phase: str) -> list[Alarm]:
        found = []
        for group, norm in result.norms.items():
            others = max((n for name, n in result.norms.items() if name != group), default=0.0)
            gone = norm == 0 or norm < VANISHES * others
            self._vanished[group] = self._vanished.get(group, 0) + 1 if gone else 0
            if self._vanished[group] < VANISHED_FOR:
                continue
            if phase.startswith("scst"):
                why = "the captions that it draws are worth what its greedy ones are; it has nothing to learn from them"
            else:
                why = (
                    "it learns nothing: its ReLUs are dead (see the validation's figures), or its weights are 0. "
                    f"Start anew with a lower learning rate ({self._rate(group)}) or other weights"
                )
            found.append(
                Alarm(
                    "vanishing gradient",
                    result.step,
                    {"group": group, "norm": norm, "steps": self._vanished[group]},
                    f"step {result.step}: the gradient of {group} has been {norm:.3g} for {self._vanished[group]} steps: {why}",
                )
            )
        return found

    def _rate(self, group: str) -> str:
        config = self._config
        if self._phase.startswith("words"):
            return f"--pretrain-learning-rate {config.pretrain_learning_rate:g}"
        if group == "cnn" and config.cnn_learning_rate is not None:
            return f"--cnn-learning-rate {config.cnn_learning_rate:g}"
        return f"--learning-rate {config.learning_rate:g}"

    # validations ----------------------------------------------------------------------------------------------------

    def validation(self, step: int, relus: Relus | None, variety: Variety | None) -> list[Alarm]:
        """relus: of some of the held-out images; variety: of all their captions."""
        found = [] if relus is None or relus.images < FEW else self._dying(step, relus)
        if variety is not None and not self._config.blind and variety.captions >= FEW:
            found += self._collapsing(step, variety, relus)
        return found

    def _dying(self, step: int, relus: Relus) -> list[Alarm]:
        found = []
        for layer, (dead, channels) in relus.dead.items():
            share = dead / channels
            limit = DEAD if layer.rpartition(".")[2].startswith("conv") else DEAD_CONNECTED
            if share <= limit or share < self._dead.get(layer, 0.0) + DEAD_AGAIN:
                continue
            self._dead[layer] = share
            all_of = "all" if dead == channels else f"{dead:,} of {channels:,}"
            worse = ": nothing of the image passes, and nothing below it learns" if dead == channels else ""
            group = "cnn" if layer.startswith("cnn.") else "lm"
            found.append(
                Alarm(
                    "dead ReLUs",
                    step,
                    {"layer": layer, "dead": dead, "channels": channels, "images": relus.images},
                    f"{all_of} channels of {layer} are 0 at every place of {relus.images} held-out images{worse}. "
                    f"They learn nothing any more. Steps that were too large make this ({self._rate(group)}), and weights that "
                    "do not fit the images' mean and deviation; lower the rate and start from an earlier checkpoint",
                )
            )
        return found

    def _collapsing(self, step: int, variety: Variety, relus: Relus | None) -> list[Alarm]:
        low = variety.distinct < SAME or variety.most_common > ALIKE
        before, self._best_variety = self._best_variety, max(self._best_variety, variety.distinct)
        fell = before >= 2 * SAME and variety.distinct < before / 2
        if not low or variety.people < VARIED or not (fell or self._captioning_steps >= FIRST_STEPS):
            return []
        if relus is not None and relus.spread is not None and relus.spread < BLIND:
            why = (
                f"the CNN gives every image the same vector (fc7 differs by {100 * relus.spread:.2g} % of its size), so words "
                "cannot depend on it: start from weights that see (--vgg-weights, --pretrain-words), with a lower CNN rate"
            )
        elif fell:
            why = f"they were {100 * before:.0f} % before: the learning rate ({self._rate('lm')}) is too high now; lower it"
        else:
            why = (
                "the CNN tells images apart, but the language model does not heed it: more epochs, a lower --learning-rate, "
                "or a CNN that has learned to see first (--pretrain-words, --vgg-weights)"
            )
        return [
            Alarm(
                "collapsed captions",
                step,
                {**asdict(variety), "spread": None if relus is None else relus.spread},
                f"only {variety.different} different captions for {variety.captions} images, "
                f"{100 * variety.most_common:.0f} % of them \u201c{variety.example}\u201d (people's differ in "
                f"{100 * variety.people:.0f} %): {why}",
            )
        ]


_KEPT = ("phase", "begun", "first", "vanished", "said", "dead", "best_variety", "captioning_steps")
