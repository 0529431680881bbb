"""What a run leaves in its folder: log, checkpoints, the page of samples. Of several ranks the first writes it, for all."""

from __future__ import annotations

from typing import Any

from pycap import __version__, checkpoint, distributed
from pycap import config as configuration
from pycap.config import TrainConfig
from pycap.data.disk import sync, writing
from pycap.data.images import PreprocessSpec
from pycap.data.vocab import Vocabulary
from pycap.device import to_host
from pycap.distributed import DistributedError, Ranks
from pycap.models.captions import CaptionModel
from pycap.models.classifier import Classifier
from pycap.training import folder as run_folder
from pycap.training.alarms import Alarm
from pycap.training.folder import Log
from pycap.training.samples import Sample, write_samples
from pycap.training.shares import differing, led
from pycap.training.sources import Source
from pycap.training.trainer import StepResult, Trainer
from pycap.training.watch import Watch


class Record:
    """Of one run. `folder` is the run's; what a method is told of is the same on all ranks."""

    def __init__(
        self,
        ranks: Ranks,
        config: TrainConfig,
        model: CaptionModel | Classifier,
        trainer: Trainer,
        vocab: Vocabulary,
        spec: PreprocessSpec,
        source: Source,
        watch: Watch,
        *,
        resumed: checkpoint.Checkpoint | None,
    ) -> None:
        """Begin the log, or go on with that of the run that is resumed, at the trainer's step. watch: told of each row."""
        self.folder, self._ranks, self._config, self._model, self._trainer = (
            config.run_dir,
            ranks,
            config,
            model,
            trainer,
        )
        self._vocab, self._spec, self._data = vocab, spec, source.digest()
        self._watch = watch
        self._log: Log | None = None
        led(ranks, lambda: self._begin(source, resumed))
        if resumed:
            distributed.advise(f"Go on with --resume {self.folder}.")

    def _begin(self, source: Source, resumed: checkpoint.Checkpoint | None) -> None:
        """What a run's folder says of its data and its options."""
        path = self.folder / run_folder.LOG
        if resumed:
            for name in ("best", "last"):  # what a kill left beside them
                with writing(self.folder / name):
                    checkpoint.recover(self.folder / name)
            self._log = Log(path, self._trainer.step_number, resumed.state.get("log_rows"))
            if self._log.missing > 0:
                self.write("remark", text=f"{self._log.missing} rows before this one have been lost from {path}")
        else:
            self._log = Log(path)
            run_folder.write_lines(self.folder / "skipped.jsonl", source.problems)
            for remark in source.remarks:
                self._log.write(kind="remark", step=0, text=remark)
            self._vocab.save(self.folder / "vocab.json")
        with writing(self.folder / "config.yaml"):
            configuration.save(self._config, self.folder / "config.yaml")
            sync(self.folder)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def alarm(self, alarm: Alarm) -> None:
        """A row of kind `alarm`, of the step that it is about."""
        told = {key: value for key, value in alarm.figures.items() if value is not None}
        self._write({"kind": "alarm", "step": alarm.step, "alarm": alarm.kind, **told, "text": alarm.text})

    def write(self, kind: str, **row: Any) -> None:
        """A row of the log, of the step that was made last."""
        self._write({"kind": kind, "step": self._trainer.step_number, **row})

    def _write(self, row: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(**row)
        self._watch.row(row)

    def step(self, result: StepResult, epoch: int, rate: float, waited: float) -> None:
        """The row of a step. epoch: from 1; rate: images a second; waited: the part of the time in which images were waited
        for."""
        self._write(
            {
                "kind": "train",
                "step": result.step,
                "epoch": epoch,
                "objective": self._trainer.objective,
                "loss": result.loss,
                "tokens": result.tokens,
                "lr": result.lr,
                "norms": result.norms,
                "images_per_s": rate,
                "waited": waited,
                **result.figures,
            }
        )

    def samples(self, samples: list[Sample], scores: dict[str, float] | None = None) -> None:
        """The page of images and captions. scores: of the validation that they come from; None: they are by the best
        checkpoint, of whose step and scores the page then tells."""
        if self._ranks.rank:
            return
        config, step, by = self._config, self._trainer.step_number, "none, the model in training"
        if scores is None:
            saved = checkpoint.load(self.folder)
            by, step, scores = f"{saved.folder.name}/", saved.state["trainer"]["step"], saved.state["scores"]
        kind, what, told = config.model, "captions", "the model's caption and, under it, what people say"
        if config.classifies:
            kind, what, told = (
                "classifier",
                "classes",
                "the model's first guess and, under it, the true class and all guesses",
            )
        write_samples(
            self.folder / "samples.html",
            f"{config.stage}: {what} of held-out images",
            f"Images that the model was not trained on, each with {told}.",
            {
                "stage": config.stage,
                "model": f"{kind} on {config.cnn}",
                "images": f"{config.image_size} \u00d7 {config.image_size} pixels",
                "precision": config.precision,
                "checkpoint": by,
                "step": f"{step:,}",
            },
            scores,
            samples,
        )

    def save(
        self, name: str, position: dict[str, Any], scores: dict[str, float], alarms: dict[str, Any] | None = None
    ) -> None:
        """The checkpoint `name`; "last" holds what a run needs to go on. alarms: `Alarms.state`.
        Raises DistributedError where a rank's weights are not those of the first; then nothing is written."""
        model = _on_host(self._model.state_arrays())
        if others := differing(self._ranks, model):
            raise DistributedError(
                f"rank {others[0]} of {self._ranks.size}: its weights at step {self._trainer.step_number} are not those of "
                "rank 0; none were saved: all ranks must run the same pycap, on processors of one kind with sound memory; "
                f"go on from the last checkpoint with --resume {self.folder}"
            )
        led(self._ranks, lambda: self._save(name, model, position, scores, alarms))
        if name == "last":
            distributed.advise(f"Go on with --resume {self.folder}.")

    def _save(
        self,
        name: str,
        model: dict[str, Any],
        position: dict[str, Any],
        scores: dict[str, float],
        alarms: dict[str, Any] | None,
    ) -> None:
        assert self._log is not None  # this is the first rank
        self._log.sync()  # a checkpoint must not outlive the rows that it says are there
        state = {
            "log_rows": self._log.rows,
            "trainer": self._trainer.state(),
            "position": position,
            "scores": scores,
            "data": self._data,
            "pycap": __version__,
            **({"alarms": alarms} if alarms and name == "last" else {}),
        }
        try:
            checkpoint.save(
                self.folder / name,
                model=model,
                optimizer=_on_host(self._trainer.optimizer.state_arrays()) if name == "last" else None,
                state=state,
                vocab=self._vocab,
                config=self._config,
                preprocess=self._spec.to_dict(),
            )
        except checkpoint.CheckpointError as error:
            then = f"go on with --resume {self.folder}" if run_folder.saved(self.folder) else "start again"
            raise checkpoint.CheckpointError(f"{error}; see to the disk, then {then}") from error


def _on_host(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: to_host(array) for name, array in arrays.items()}
