"""A training run from beginning to end: epochs, validation, checkpoints, resuming, signals."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from pycap import __version__, backends, checkpoint, metrics
from pycap import config as configuration
from pycap.config import ConfigError, TrainConfig
from pycap.data.loader import Batch
from pycap.device import cpu_count, current, to_host
from pycap.models.classifier import Classifier
from pycap.training import features, scst, sources, start
from pycap.training import folder as run_folder
from pycap.training import plan as memory_plan
from pycap.training.captioning import Captioning
from pycap.training.classification import Classification
from pycap.training.feed import TOLERATED, Fed, Feed, Stall
from pycap.training.folder import Log, Sample
from pycap.training.progress import Display
from pycap.training.trainer import Diverged, Pending, StepResult, Trainer


class Stopped(Exception):
    """Ctrl-C or SIGTERM, after everything was saved. `signal_number` says which."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


@dataclass(frozen=True)
class RunResult:
    """folder: the run's. scores: of the last validation (`val_loss`, `BLEU-1` ...). true_ratio: the part of the held-out
    captions that are true, where the truth is known (the demo set)."""

    folder: Path
    steps: int
    scores: dict[str, float]
    true_ratio: float | None


@dataclass
class Position:
    """Where the run is: `batch` is the next one of `epoch` (from 0); at the epoch's end, validation is what comes next.

    best: of the score that decides (less is better: other scores than the loss are negated). stale: validations since then.
    """

    epoch: int = 0
    batch: int = 0
    best: float | None = None
    stale: int = 0


def run(config: TrainConfig) -> RunResult:
    """Train as `config` says, in its run folder. Raises the errors of its parts, and Stopped after Ctrl-C or SIGTERM."""
    config.validate()
    if config.save_best_on == "METEOR" and (missing := metrics.meteor_missing()):
        raise ConfigError(f"save_best_on: METEOR cannot be computed here: {missing}")
    if config.stage == scst.STAGE:
        scst.check(config)
    backends.select(config.device, config.backend)
    backends.set_threads(config.threads or cpu_count())
    return _Run(config).go()


class _Run:
    def __init__(self, config: TrainConfig) -> None:
        self.say: Callable[[str], None] = print
        begun = start.find(config, lambda text: print(text, flush=True))
        config, self.source, self.vocab, self.spec = begun.config, begun.source, begun.vocab, begun.spec
        resumed = begun.resumed
        self.config, self.folder, self.data = config, config.run_dir, begun.source.digest()
        on_gpu = current() == "cuda"
        self.memory = memory_plan.fit(config, len(self.vocab), memory_plan.available_bytes()) if on_gpu else None
        self.model = begun.model(lambda text: self.say(text))
        inside = config.features == "auto"  # in the run's folder, which a wrong file must not have made
        store = None if inside else features.open_store(config, self.model.cnn, self.spec)
        if not resumed and (aside := run_folder.make_room(self.folder)):
            self.say(f"{self.folder} held an earlier run; it is now {aside} (continue it with --resume {aside})")
        fitting = self.memory.micro_batch if self.memory else config.micro_batch
        store = features.open_store(config, self.model.cnn, self.spec) if inside else store
        self.loaders = sources.loaders(self.source, self.vocab, self.spec, config, self.folder, fitting, store)
        self.feed = Feed(self.loaders.train)
        # Passes change gradients by their rounding only, so the run's own config does not say how many fitted here.
        passes = replace(config, micro_batch=fitting) if fitting else config
        self.trainer = Trainer(
            self.model,
            passes,
            self.spec,
            len(self.loaders.train),
            reward=scst.Reward(self.source.train, self.vocab) if config.stage == scst.STAGE else None,
            log=lambda text: self.say(text),
        )
        self.position, self.scores = Position(), dict[str, float]()
        if resumed:
            self._continue(resumed)
        self.log = Log(self.folder / "log.jsonl", self.trainer.step_number if resumed else None)
        if not resumed:
            self._note_source()
        configuration.save(config, self.folder / "config.yaml")
        self.task = (
            Classification(self.model, self.vocab, self.spec, config, self.source)
            if isinstance(self.model, Classifier)
            else Captioning(self.model, self.trainer, self.vocab, self.spec, config, self.source)
        )
        self.signal: int | None = None
        self.phase = ""

    def _continue(self, resumed: checkpoint.Checkpoint) -> None:
        if resumed.optimizer is None:
            raise ConfigError(
                f"resume: {resumed.folder} was saved without the optimiser's state; take its weights with --init-from"
            )
        self.trainer.load_state(resumed.state["trainer"], resumed.optimizer)
        self.position, self.scores = Position(**resumed.state["position"]), dict(resumed.state["scores"])

    def _note_source(self) -> None:
        """What a new run's folder says of its data."""
        run_folder.append_lines(self.folder / "skipped.jsonl", self.source.problems)
        for remark in self.source.remarks:
            self.log.write(kind="remark", step=0, text=remark)
        self.vocab.save(self.folder / "vocab.json")

    # the loop -----------------------------------------------------------------------------------------------------

    def go(self) -> RunResult:
        self._announce()
        config, position, steps = self.config, self.position, len(self.loaders.train)
        epochs = config.pretrain_words + config.epochs
        total = epochs * steps
        total = min(total, config.max_steps) if config.max_steps else total
        try:
            with self._signals(), Display(total, self.trainer.step_number) as self.display:
                self.say = self.display.say  # above the bar, while there is one
                self._extract_features()
                if config.stage == scst.STAGE and position.best is None:
                    self._validate(-1)  # where it starts from
                while position.epoch < epochs and not self._at_limit() and not self._is_stale():
                    if position.batch < steps:
                        self._train_epoch()
                    if position.batch >= steps:
                        self._end_epoch()
                if position.batch:  # max_steps ended the run inside an epoch
                    self._validate(position.epoch)
                    self._save("last")
                ending = self.task.end(self.folder, self._held_out)
                self._write_samples(ending.samples)
            for line in ending.lines:
                self.say(line)
        finally:
            self.log.close()
            self.loaders.close()
        return RunResult(self.folder, self.trainer.step_number, self.scores, ending.true_ratio)

    def _extract_features(self) -> None:
        """Have all features that the run's images lack made, where it trains on features."""
        config, store = self.config, self.loaders.train.features
        if store is None:
            return
        missing = store.missing((*self.loaders.train.examples, *self.loaders.val.examples))
        if not missing:
            return
        self.say(f"{len(missing)} images are looked at once by the frozen CNN: {store.path}, {store.origin}")
        size = self.trainer.config.micro_batch or config.batch_size
        made = features.extract(
            self.model.cnn, store, missing, batch_size=size, precision=config.precision, workers=sources.workers(config)
        )
        with closing(made):
            for _ in self.display.watch("features", made, len(missing)):
                self._stop_if_asked()

    def _at_limit(self) -> bool:
        return bool(self.config.max_steps) and self.trainer.step_number >= self.config.max_steps

    def _is_stale(self) -> bool:
        """Whether --early-stop ends the run: also one that is resumed after that, unless it is given more patience."""
        return 0 < self.config.early_stop <= self.position.stale

    def _train_epoch(self) -> None:
        config, position = self.config, self.position
        joint = self.trainer.begin_epoch(position.epoch)
        if self.trainer.objective == "words":
            phase = "the CNN learns to guess the captions' words"
        elif self.trainer.objective == "classes":
            phase = "the CNN learns to classify" if joint else "the classifier learns, the CNN is frozen"
        else:
            phase = "CNN and LSTM learn jointly" if joint else "the LSTM learns, the CNN is frozen"
            phase = "the LSTM learns, and sees no image" if config.blind else phase
            phase += ", from what their own captions are worth" if self.trainer.objective == "scst" else ""
        if phase != self.phase:
            self.phase = phase
            self.say(f"from epoch {position.epoch + 1} on, {phase}")
        batches = self.feed.epoch(position.epoch, position.batch)
        started, images = time.monotonic(), 0
        under_way: deque[Pending] = deque()
        stall = last = Stall()

        def finish(left: int) -> None:
            """Hear of all steps but the last few."""
            nonlocal images, stall, last
            while len(under_way) > left:
                result = self._result(under_way.popleft())
                images += result.images
                rate = images / (time.monotonic() - started)
                if result.step % config.log_every == 0:
                    last = self.feed.stall()
                    stall += last
                    self._log_step(result, rate, last)
                reward = result.figures.get("reward")
                self.display.step(position.epoch + 1, result.step, result.loss, rate, last.share, reward)

        try:
            for fed in batches:
                under_way.append(self._launch(fed))
                position.batch = fed.batch.index + 1
                asked, number = self.signal is not None, self.trainer.step_number
                saves = bool(config.save_checkpoint_every) and number % config.save_checkpoint_every == 0
                finish(0 if asked or saves or self._at_limit() else self.trainer.ahead)
                if asked:
                    self._stop_if_asked()
                if saves:
                    self._save("last")
                if self._at_limit():
                    return
            finish(0)
        finally:
            batches.close()
        position.batch = len(self.loaders.train)  # the last batches may have held no readable image
        stall += self.feed.stall()
        if stall.share > TOLERATED:
            self.say(f"epoch {position.epoch + 1}: {self.feed.sentence(stall)}")

    def _launch(self, fed: Fed) -> Pending:
        try:
            return self.trainer.launch(fed.batch, fed.images)
        except Diverged as error:
            raise self._diverged(error) from error

    def _result(self, pending: Pending) -> StepResult:
        try:
            return pending.result()
        except Diverged as error:
            raise self._diverged(error) from error

    def _diverged(self, error: Diverged) -> Diverged:
        last = self.folder / "last"
        saved = (last / "state.json").exists()
        good = f"the last good checkpoint is {last}" if saved else "no checkpoint was saved yet"
        return Diverged(f"{error}; {good}; lower --learning-rate or set --grad-clip")

    def _end_epoch(self) -> None:
        position, captioning_epochs = self.position, self.position.epoch + 1 - self.config.pretrain_words
        last = captioning_epochs == self.config.epochs
        if captioning_epochs > 0 and (captioning_epochs % self.config.val_every == 0 or last):
            self._validate(position.epoch)
        position.epoch, position.batch = position.epoch + 1, 0
        self._save("last")
        self._stop_if_asked()

    def _validate(self, epoch: int) -> None:
        config = self.config
        found = self.task.validate(self._held_out)
        self.scores = found.scores
        self.log.write(kind="val", step=self.trainer.step_number, epoch=epoch + 1, **self.scores)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        self.say(f"epoch {epoch + 1}: {shown}")
        if found.warning:
            self.say(found.warning)
        self._write_samples(found.samples)
        score = self.scores[config.save_best_on] * (1 if config.save_best_on == "val_loss" else -1)
        self.trainer.schedule.observe(score)
        if self.position.best is None or score < self.position.best:
            self.position.best, self.position.stale = score, 0
            self._save("best")
            return
        self.position.stale += 1
        if self._is_stale() and epoch + 1 < config.pretrain_words + config.epochs:
            text = (
                f"early stop: {self.position.stale} validations without a better {config.save_best_on} than "
                f"{abs(self.position.best):.4f}; the best checkpoint is {self.folder / 'best'}"
            )
            self.log.write(kind="remark", step=self.trainer.step_number, text=text)
            self.say(text)

    # what is kept ---------------------------------------------------------------------------------------------------

    def _save(self, name: str) -> None:
        state = {
            "trainer": self.trainer.state(),
            "position": asdict(self.position),
            "scores": self.scores,
            "data": self.data,
            "pycap": __version__,
        }
        checkpoint.save(
            self.folder / name,
            model=_on_host(self.model.state_arrays()),
            optimizer=_on_host(self.trainer.optimizer.state_arrays()) if name == "last" else None,
            state=state,
            vocab=self.vocab,
            config=self.config,
            preprocess=self.spec.to_dict(),
        )

    def _log_step(self, result: StepResult, rate: float, stall: Stall) -> None:
        self.log.write(
            kind="train",
            step=result.step,
            epoch=self.position.epoch + 1,
            objective=self.trainer.objective,
            loss=result.loss,
            tokens=result.tokens,
            lr=result.lr,
            norms=result.norms,
            images_per_s=rate,
            waited=stall.share,
            **result.figures,
        )

    def _write_samples(self, samples: list[Sample]) -> None:
        title = f"{self.config.stage}: step {self.trainer.step_number}"
        intro = "  ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        run_folder.write_samples(self.folder / "samples.html", title, intro, samples)

    def _announce(self) -> None:
        source, loader = self.source, self.loaders.train
        lines = [self.memory.summary()] if self.memory else []
        lines += [
            f"{len(source.train)} images to train on, {len(source.val)} to validate, "
            f"from {', '.join(map(str, source.folders))}; {len(loader)} steps an epoch",
            *source.remarks,
            self.task.about(),
            f"{'classifier' if self.config.classifies else self.config.model} on {self.config.cnn} in {self.config.precision}: "
            f"{self.model.parameter_count():,} parameters; run folder {self.folder}",
            f"computing on {current()}{f' (no GPU: {backends.no_gpu()})' if backends.no_gpu() else ''}",
        ]
        if self.config.precision == "bf16" and backends.bfloat16_unit() == "float32":
            lines.append(
                "bf16 without AMX (the CPU or the backend lacks it): it saves memory, but is no faster than --precision fp32"
            )
        if self.config.precision == "tf32" and current() == "cpu":
            lines.append("tf32 is a GPU's: on the CPU it computes as --precision fp32 does")
        if source.problems:
            lines.append(
                f"{len(source.problems)} entries of the data set cannot be used: {self.folder / 'skipped.jsonl'}"
            )
        for line in lines:
            self.say(line)

    # signals --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks the loop to save and stop; the second stops at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the program around us handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_if_asked(self) -> None:
        if self.signal is None:
            return
        self._save("last")
        raise Stopped(self.signal, f"stopped at step {self.trainer.step_number}; continue with --resume {self.folder}")

    def _held_out(self, what: str) -> Iterator[Batch]:
        """The validation batches, unless a signal comes. what: said beside the bar."""
        batches = self.loaders.val.epoch(0)
        try:
            for batch in self.display.watch(what, batches, len(self.loaders.val)):
                self._stop_if_asked()
                yield batch
        finally:
            batches.close()  # type: ignore[attr-defined]


def _on_host(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: to_host(array) for name, array in arrays.items()}
