"""What a classifier's run shows of its model: loss, top-1 and top-5 of the held-out images, and what it takes them for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycap import checkpoint, ops
from pycap.autograd import no_grad
from pycap.backends import WeightCache, constant_weights, set_float32_products
from pycap.captioner import build_classifier, load_weights
from pycap.config import TrainConfig
from pycap.data import DataError, folders
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.data.vocab import SPECIALS, Vocabulary
from pycap.device import activation_dtype, float32_products, to_host
from pycap.distributed import ALONE, Ranks
from pycap.models.classifier import Classifier
from pycap.training.captioning import MOST_SAMPLES, Ending, HeldOut, Validation
from pycap.training.folder import write_lines
from pycap.training.relus import Watch
from pycap.training.samples import Sample
from pycap.training.shares import gather
from pycap.training.sources import Source

_FIRST = len(SPECIALS)  # id of the first class
_GUESSES = 5
_SHOWN = 8  # on the screen


class Classification:
    """The run's model as a classifier. Of several ranks each classifies its share of the held-out images, and all are told the
    whole of it."""

    def __init__(
        self,
        model: Classifier,
        vocab: Vocabulary,
        spec: PreprocessSpec,
        config: TrainConfig,
        source: Source,
        ranks: Ranks = ALONE,
    ) -> None:
        """DataError where the images have classes that the vocabulary, a checkpoint's, lacks."""
        self._model, self._vocab, self._spec, self._config, self._ranks = model, vocab, spec, config, ranks
        strange = sorted({e.captions[0] for e in (*source.train, *source.val)} - set(vocab.words))
        if strange:
            raise DataError(
                f"{source.folders[0]}: {len(strange)} classes (first: {', '.join(strange[:3])}) are not among the "
                f"{len(vocab) - _FIRST} of the checkpoint that this run starts from; give its data, or take the CNN alone with "
                "--vgg-weights"
            )
        self._names = folders.class_names(source.folders[0])

    def about(self) -> str:
        """What is to be learned, in a sentence."""
        return f"{len(self._vocab) - _FIRST} classes"

    def validate(self, held_out: HeldOut) -> Validation:
        """Loss, top-1 and top-5 of the held-out images as the model stands."""
        watch = Watch(self._model)
        scores, _, samples = self._classify(self._model, held_out("classes of held-out images"), watch)
        return Validation(scores, samples, watch.result(self._ranks))

    def end(self, folder: Path, held_out: HeldOut) -> Ending:
        """What the best checkpoint in the run's folder takes the held-out images for, written there to predictions.jsonl."""
        saved = checkpoint.load(folder)
        model = build_classifier(saved.config, len(saved.vocab), draw=False)
        load_weights(model, saved, copy=False)
        scores, rows, samples = self._classify(model, held_out("classes by the best checkpoint"))
        if self._ranks.rank == 0:
            write_lines(folder / "predictions.jsonl", rows)
        lines = [f"classes of held-out images, by {saved.folder}:"]
        for row in rows[:_SHOWN]:
            right = "" if row["guesses"][0]["class"] == row["class"] else f"; it is {self._named(row['class'])}"
            lines.append(f"  {row['file_name']}: {self._named(row['guesses'][0]['class'])}{right}")
        lines += [
            f"top-1 {100 * scores['top-1']:.2f} %, top-5 {100 * scores['top-5']:.2f} % of {len(rows)} images: "
            f"{folder / 'predictions.jsonl'}; a page to look at: {folder / 'samples.html'}",
            f"a captioner that starts from this CNN: --vgg-weights {folder} --cnn {self._config.cnn} "
            f"--cnn-width {self._config.cnn_width:g} --fc-size {self._config.fc_size} --image-size {self._config.image_size}",
        ]
        return Ending(samples, lines)

    def _classify(
        self, model: Classifier, batches: Iterator[Batch], watch: Watch | None = None
    ) -> tuple[dict[str, float], list[dict[str, Any]], list[Sample]]:
        """(scores, a row of predictions.jsonl each image, the first few for the page)."""
        cache = WeightCache()
        own: list[tuple[int, tuple[float, int, dict[str, Any]]]] = []
        samples: list[tuple[int, Sample]] = []
        for batch in batches:
            with watch.batch(len(batch)) if watch else nullcontext():
                logits = self._logits(model, batch, cache)
            truth = batch.tokens[1] - _FIRST
            shifted = logits - logits.max(1, keepdims=True)
            logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
            losses = (-logp[np.arange(len(truth)), truth]).tolist()
            before = rank(logits, truth).tolist()
            best = np.argsort(-logp, axis=1, kind="stable")[:, :_GUESSES]
            for i, example in enumerate(batch.examples):
                guesses = [
                    {"class": self._vocab.words[_FIRST + j], "probability": float(np.exp(logp[i, j]))} for j in best[i]
                ]
                row = {"file_name": example.file_name, "class": example.captions[0], "guesses": guesses}
                own.append((batch.index, (losses[i], before[i], row)))
                if len(samples) < MOST_SAMPLES:
                    samples.append((batch.index, self._sample(batch, i, guesses, float(logp[i, best[i, 0]]))))
        all_losses, places, rows = zip(*gather(self._ranks, own), strict=True)
        scores = {
            "val_loss": float(np.mean(all_losses)),
            **{f"top-{k}": float(np.mean(np.array(places) < k)) for k in (1, 5)},
        }
        return scores, list(rows), gather(self._ranks, samples, MOST_SAMPLES)

    def _logits(self, model: Classifier, batch: Batch, cache: WeightCache) -> NDArray[np.float64]:
        """Of the classes alone, [B,C]; without dropout."""
        set_float32_products(float32_products(self._config.precision))
        dtype, spec = activation_dtype(self._config.precision), self._spec
        with no_grad(), model.evaluating(), constant_weights(cache):
            pixels = ops.pixels(batch.images, batch.crops, spec.crop, spec.mean, spec.std, dtype)
            return to_host(model.logits(pixels).data)[:, _FIRST:].astype(np.float64)

    def _sample(self, batch: Batch, i: int, guesses: list[dict[str, Any]], logprob: float) -> Sample:
        top, left, _ = batch.crops[i]
        pixels = batch.images[i][top : top + self._spec.crop, left : left + self._spec.crop]
        truth = batch.examples[i].captions[0]
        told = [f"{100 * guess['probability']:.0f} % {self._named(guess['class'])}" for guess in guesses]
        verdict = str(guesses[0]["class"] == truth).lower()
        said = (f"it is: {self._named(truth)}", *told)
        return Sample(batch.file_names[i], pixels, self._named(guesses[0]["class"]), logprob, said, verdict)

    def _named(self, class_: str) -> str:
        """Its readable name, where it has one."""
        return self._names.get(class_, class_)


def rank(logits: NDArray[np.float64], truth: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many classes go before the true one, int [B]; of equal ones the first does. logits [B,C]; truth int [B]."""
    own = logits[np.arange(len(truth)), truth][:, None]
    before = np.arange(logits.shape[1]) < truth[:, None]
    return np.asarray(((logits > own) | ((logits == own) & before)).sum(1))
