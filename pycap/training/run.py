"""A training run from beginning to end: epochs, validation, checkpoints, resuming, signals."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pycap import backends, checkpoint, distributed, metrics
from pycap.config import ConfigError, TrainConfig
from pycap.data import DataError, Example
from pycap.data.disk import WriteError
from pycap.data.features import FeatureStore
from pycap.data.images import ImageError
from pycap.data.loader import Batch, Loader
from pycap.device import cpu_count, current
from pycap.models.classifier import Classifier
from pycap.signals import Stopping
from pycap.training import features, provenance, remedies, scst, shares, sources, start
from pycap.training import folder as run_folder
from pycap.training import plan as memory_plan
from pycap.training.alarms import Alarm, Alarms
from pycap.training.captioning import Captioning
from pycap.training.classification import Classification
from pycap.training.feed import TOLERATED, Fed, Feed, Stall
from pycap.training.folder import RunFolderError
from pycap.training.gradients import GradientCheck
from pycap.training.progress import Display
from pycap.training.record import Record
from pycap.training.trainer import Diverged, Pending, StepResult, Trainer
from pycap.training.watch import Watch


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
    validated: the step after which the last validation was.
    """

    epoch: int = 0
    batch: int = 0
    best: float | None = None
    stale: int = 0
    validated: int | None = None


def run(config: TrainConfig, watch: Watch | None = None) -> RunResult:
    """Train as `config` says, in its run folder, together with the other ranks of this job. watch: told of it as it goes.

    Raises the errors of its parts, RunFolderError where a file of the run cannot be written, and Stopped after Ctrl-C or
    SIGTERM.
    """
    config.validate()
    ranks = distributed.current()
    if config.batch_size < ranks.size:
        raise ConfigError(
            f"batch_size: {config.batch_size} images per step are too few for {ranks.size} ranks; give {ranks.size} or more, "
            "or start fewer ranks"
        )
    if config.save_best_on == "METEOR" and (missing := shares.led(ranks, metrics.meteor_missing)):
        raise ConfigError(f"save_best_on: METEOR cannot be computed here: {missing}")
    if config.stage == scst.STAGE:
        scst.check(config)
    backends.select(config.device, config.backend)
    backends.set_threads(config.threads or cpu_count())
    try:
        return _Run(config, ranks, watch).go()
    except WriteError as error:
        raise RunFolderError(f"{error}; {run_folder.remedy(config.run_dir)}") from error


class _Run:
    def __init__(self, config: TrainConfig, ranks: distributed.Ranks, watch: Watch | None = None) -> None:
        self.ranks, self.watch = ranks, watch or Watch()
        self.say: Callable[[str], None] = _printed if ranks.rank == 0 else _unsaid
        begun = start.find(config, self.say, ranks)
        config, self.source, self.vocab, self.spec = begun.config, begun.source, begun.vocab, begun.spec
        resumed = begun.resumed
        self.config, self.folder = config, config.run_dir
        self._require_alike()
        room = memory_plan.available_bytes() if current() == "cuda" else None
        self.memory = None if room is None else memory_plan.fit(config, len(self.vocab), room, ranks.size)
        self.model = begun.model(lambda text: self.say(text))
        inside = config.features == "auto"  # in the run's folder, which a wrong file must not have made
        store = None if inside else features.open_store(config, self.model.cnn, self.spec, ranks)
        if not resumed and (aside := shares.led(ranks, lambda: run_folder.make_room(self.folder))):
            self.say(f"{self.folder} held an earlier run; it is now {aside} (continue it with --resume {aside})")
        asked = min(config.micro_batch, -(-config.batch_size // ranks.size))  # of the largest share
        fitting = min(ranks.each(self.memory.micro_batch if self.memory else asked))
        store = features.open_store(config, self.model.cnn, self.spec, ranks) if inside else store
        self.loaders = sources.loaders(self.source, self.vocab, self.spec, config, self.folder, fitting, store, ranks)
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
            ranks=ranks,
        )
        self.position, self.scores, self.alarms = Position(), dict[str, float](), Alarms(config)
        if resumed:
            self._continue(resumed)
        self.began_at = self.trainer.step_number
        shares.require_same(ranks, self.model.state_arrays() | self.trainer.optimizer.state_arrays())
        self.record = Record(
            ranks, config, self.model, self.trainer, self.vocab, self.spec, self.source, self.watch, resumed=resumed
        )
        self.is_new = resumed is None
        step, position = self.trainer.step_number, asdict(self.position)
        origin = provenance.describe(passes, begun, self.model.state_arrays(), step, position, ranks)
        shares.led(ranks, lambda: provenance.append(self.folder, origin))
        self.watch.begins(origin)
        self.task = (
            Classification(self.model, self.vocab, self.spec, config, self.source, ranks)
            if isinstance(self.model, Classifier)
            else Captioning(self.model, self.trainer, self.vocab, self.spec, config, self.source, ranks)
        )
        self.signals = Stopping()
        self.phase = ""

    def _require_alike(self) -> None:
        """ConfigError where a rank computes on another device than the first, which would exchange in another way; DataError
        where it reads other images or captions."""
        (device, data), *others = self.ranks.each((current(), self.source.digest()))
        for rank, (its_device, its_data) in enumerate(others, 1):
            if its_device != device:
                raise ConfigError(
                    f"device: rank {rank} computes on {its_device}, and rank 0 on {device}; give all of them --device cpu, or "
                    "--device cuda, which has a rank say what it lacks"
                )
            if its_data != data:
                raise DataError(
                    f"rank {rank} reads other data than rank 0 ({its_data}, not {data}): give all of them the same, as a "
                    "folder that all machines see"
                )

    def _continue(self, resumed: checkpoint.Checkpoint) -> None:
        if resumed.optimizer is None:
            raise ConfigError(
                f"resume: {resumed.folder} was saved without the optimiser's state; take its weights with --init-from"
            )
        try:
            self.trainer.load_state(resumed.state["trainer"], resumed.optimizer)
            self.position, self.scores = Position(**resumed.state["position"]), dict(resumed.state["scores"])
            if "alarms" in resumed.state:  # checkpoints of older versions have none
                self.alarms.load_state(resumed.state["alarms"])
        except (KeyError, TypeError) as error:
            raise checkpoint.CheckpointError(
                f"{resumed.folder}: its state is not a run's ({type(error).__name__}: {error}); use another checkpoint, or "
                "take its weights with --init-from"
            ) from error

    # the loop -----------------------------------------------------------------------------------------------------

    def go(self) -> RunResult:
        self._announce()
        config, position, steps = self.config, self.position, len(self.loaders.train)
        epochs = config.pretrain_words + config.epochs
        total = epochs * steps
        total = min(total, config.max_steps) if config.max_steps else total
        with ExitStack() as closing_all:
            closing_all.callback(self.loaders.close)
            closing_all.callback(self.record.close)
            quiet = self.ranks.rank > 0
            with self.signals, Display(total, self.trainer.step_number, quiet=quiet) as self.display:
                self.say = self.display.say  # above the bar, while there is one
                if self.is_new:  # it can be resumed from now on, and a disk without room says so at once
                    self._save("last")
                self._extract_features()
                if config.check_gradients and position.epoch < epochs:
                    self._check_gradients(config.check_gradients)
                if config.stage == scst.STAGE and position.best is None:
                    self._validate(-1)  # where it starts from
                while position.epoch < epochs and not self._at_limit() and not self._is_stale():
                    if position.batch < steps:
                        self._train_epoch()
                    if position.batch >= steps:
                        self._end_epoch()
                if position.batch:  # max_steps ended the run inside an epoch
                    if position.validated != self.trainer.step_number:  # else it was killed after this
                        self._validate(position.epoch)
                    self._save("last")
                ending = self.task.end(self.folder, self._held_out)
                self.record.samples(ending.samples)
            self.trainer.close()
            for line in ending.lines:
                self.say(line)
        return RunResult(self.folder, self.trainer.step_number, self.scores, ending.true_ratio)

    def _extract_features(self) -> None:
        """Have all features that the run's images lack made, where it trains on features."""
        store = self.loaders.train.features
        if store is not None and self.ranks.size == 1:
            self._extract_into(store)
        elif store is not None:  # the first rank fills the file, then all read it
            for example, reason in shares.led(self.ranks, lambda: self._extract_alone(store)):
                store.fail(example, ImageError(str(example.path), reason))
        if number := self._asked(self.loaders.train):
            self._stop(number)

    def _check_gradients(self, directions: int) -> None:
        """On the batch that comes next, which is read again afterwards. WrongGradient."""
        self.trainer.begin_epoch(self.position.epoch)
        with closing(self.loaders.train.epoch(self.position.epoch, self.position.batch)) as batches:
            batch = next(batches, None)
            attempt = None if batch is None else self.trainer.prepare(batch)
            if attempt is not None:
                GradientCheck(self.trainer, attempt, self.ranks).run(directions, self.say, self._heed)

    def _heed(self) -> None:
        """Stopped where a signal asks for it."""
        if number := self._asked(self.loaders.train):
            self._stop(number)

    def _extract_alone(self, store: FeatureStore) -> list[tuple[Example, str]]:
        with FeatureStore(store.path, store.origin) as writer:
            return self._extract_into(writer)

    def _extract_into(self, store: FeatureStore) -> list[tuple[Example, str]]:
        """Returns the images that cannot be read, and why."""
        missing = store.missing((*self.loaders.train.examples, *self.loaders.val.examples))
        if missing:
            self.say(f"{len(missing)} images are looked at once by the frozen CNN: {store.path}, {store.origin}")
        made = features.extract(
            self.model.cnn,
            store,
            missing,
            batch_size=self.trainer.config.micro_batch or self.config.batch_size,
            precision=self.config.precision,
            workers=self.loaders.train.workers,
        )
        failed: list[tuple[Example, str]] = []
        with closing(made):
            for example, error in zip(missing, self.display.watch("features", made, len(missing)), strict=False):
                failed += [(example, error.reason)] if error else []
                if self.signals.number:
                    break
        return failed

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
                    self.record.step(result, position.epoch + 1, rate, last.share)
                self._warn(self.alarms.step(result, f"{self.trainer.objective}{' and CNN' if joint else ''}"))
                reward = result.figures.get("reward")
                self.display.step(position.epoch + 1, result.step, result.loss, rate, last.share, reward)

        try:
            for fed in batches:
                pending = self._launch(fed)
                under_way += [pending] if pending else []
                position.batch = fed.batch.index + 1
                asked, number = self._asked(self.loaders.train), self.trainer.step_number
                saves = bool(pending and config.save_checkpoint_every) and number % config.save_checkpoint_every == 0
                shown = bool(pending) and self.watch.wants(number)
                finish(0 if asked or saves or shown or self._at_limit() else self.trainer.ahead)
                if shown:
                    self.watch.stands(number, self.model.state_arrays(), self.trainer.optimizer.state_arrays())
                if asked:
                    self._stop(asked)
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

    def _launch(self, fed: Fed) -> Pending | None:
        try:
            pending = self.trainer.launch(fed.batch, fed.images)
        except Diverged as error:
            raise self._diverged(error) from error
        if pending:
            self.watch.launched(self.trainer.step_number, fed.batch)
        return pending

    def _result(self, pending: Pending) -> StepResult:
        try:
            return pending.result()
        except Diverged as error:
            raise self._diverged(error) from error

    def _diverged(self, error: Diverged) -> Diverged:
        last = self.folder / "last"
        saved = (last / "state.json").exists()
        good = f"the last good checkpoint is {last}" if saved else "no checkpoint was saved yet"
        if error.attempt is None:
            return Diverged(f"{error}; {good}")
        recent = self.alarms.recent
        why = remedies.explain(error, self.trainer, self.config, recent, self.ranks, self.began_at)
        return Diverged(f"{error}; {good}\n{why}")

    def _require_finite(self, what: str, value: float = 0.0) -> None:
        """Diverged where the weights, or a value, are not finite, before anything is saved."""
        begins = self.trainer.step_number == self.began_at
        if reason := remedies.broken(self.trainer, self.config, what, value, begins):
            raise self._diverged(Diverged(reason))

    def _warn(self, alarms: list[Alarm]) -> None:
        for alarm in alarms:
            self.record.alarm(alarm)
            self.say(f"warning: {alarm.text}")

    def _end_epoch(self) -> None:
        position, captioning_epochs = self.position, self.position.epoch + 1 - self.config.pretrain_words
        last = captioning_epochs == self.config.epochs
        if captioning_epochs > 0 and (captioning_epochs % self.config.val_every == 0 or last):
            self._validate(position.epoch)
        position.epoch, position.batch = position.epoch + 1, 0
        self._save("last")
        if number := self._asked(self.loaders.train):
            self._stop(number)

    def _validate(self, epoch: int) -> None:
        config = self.config
        found = self.task.validate(self._held_out)
        self._require_finite("the loss of the held-out images", found.scores["val_loss"])
        self.scores = found.scores
        dead = {"dead_relus": found.relus.shares} if found.relus else {}
        self.record.write("val", epoch=epoch + 1, **self.scores, **dead)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        self.say(f"epoch {epoch + 1}: {shown}")
        self._warn(self.alarms.validation(self.trainer.step_number, found.relus, found.variety))
        self.record.samples(found.samples, self.scores)
        score = self.scores[config.save_best_on] * (1 if config.save_best_on == "val_loss" else -1)
        self.trainer.schedule.observe(score)
        self.position.validated = self.trainer.step_number
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
            self.record.write("remark", text=text)
            self.say(text)

    def _save(self, name: str) -> None:
        self._require_finite("a weight")
        self.record.save(name, asdict(self.position), self.scores, self.alarms.state())

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
            where = " ".join(map(str, source.folders))
            lines.append(
                f"{len(source.problems)} entries of the data set cannot be used: {self.folder / 'skipped.jsonl'}; "
                f"pycap doctor {where} tells more"
            )
        for line in lines:
            self.say(line)

    # what all ranks do alike ----------------------------------------------------------------------------------------

    def _asked(self, loader: Loader) -> int:
        """The signal that asks all ranks to stop, whichever of them was sent it, or 0. Each tells the others on this occasion
        which images of `loader` it found unusable."""
        ranks, news = self.ranks, loader.news()
        own = self.signals.number or (signal.SIGTERM if self.watch.ends(asdict(self.position)) else 0)
        signals, unusable = ranks.total(np.array([bool(own), len(news)]))
        if unusable:
            for rank, told in enumerate(ranks.each(news)):
                if rank != ranks.rank:
                    loader.skip(told)
        return max(ranks.each(int(own))) if signals else 0

    def _stop(self, number: int) -> None:
        self._save("last")
        raise Stopped(number, f"stopped at step {self.trainer.step_number}; continue with --resume {self.folder}")

    def _held_out(self, what: str) -> Iterator[Batch]:
        """The validation batches, this rank's share of each, unless a signal comes. what: said beside the bar."""
        loader = self.loaders.val
        batches = loader.epoch(0)
        try:
            for batch in self.display.watch(what, batches, len(loader)):
                if number := self._asked(loader):
                    self._stop(number)
                if len(batch):
                    yield batch
        finally:
            batches.close()


def _printed(text: str) -> None:
    print(text, flush=True)


def _unsaid(text: str) -> None:
    """Of several ranks the first one speaks."""
