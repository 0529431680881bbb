"""What a captioning run shows of its model: scores of the validation, and captions of the held-out images in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycap import checkpoint, metrics
from pycap.captioner import Caption, Captioner
from pycap.config import TrainConfig
from pycap.data.demo import is_true
from pycap.data.images import PreprocessSpec, decode_image
from pycap.data.loader import Batch
from pycap.data.vocab import SPECIALS, Vocabulary
from pycap.distributed import ALONE, Ranks
from pycap.models.captions import CaptionModel
from pycap.training.folder import write_lines
from pycap.training.relus import Relus, Watch
from pycap.training.samples import Sample
from pycap.training.shares import gather, led
from pycap.training.sources import Source
from pycap.training.trainer import Trainer
from pycap.training.variety import Variety, variety

MOST_SAMPLES = 24  # on the page
_SHOWN = 8  # on the screen

#: The validation batches, of each this rank's share, in order; called with what is said of them beside the bar.
HeldOut = Callable[[str], Iterator[Batch]]


@dataclass(frozen=True)
class Validation:
    """scores: by name, `val_loss` (nats a token) first. relus: of some of the images, where any was seen. variety: of the
    captions, where there are any."""

    scores: dict[str, float]
    samples: list[Sample]
    relus: Relus | None = None
    variety: Variety | None = None


@dataclass(frozen=True)
class Ending:
    """What the best checkpoint does with the held-out images. true_ratio: the part of its captions that are true, where the
    truth is known (the demo set). lines: for the screen."""

    samples: list[Sample]
    lines: list[str]
    true_ratio: float | None = None


class Captioning:
    """The run's model as a captioner. Of several ranks each captions its share of the held-out images, and all are told the
    whole of it."""

    def __init__(
        self,
        model: CaptionModel,
        trainer: Trainer,
        vocab: Vocabulary,
        spec: PreprocessSpec,
        config: TrainConfig,
        source: Source,
        ranks: Ranks = ALONE,
    ) -> None:
        self._trainer, self._spec, self._config, self._source = trainer, spec, config, source
        self._vocab, self._ranks = vocab, ranks
        self.captioner = Captioner(model, vocab, spec, config)

    def about(self) -> str:
        """What is to be learned, in a sentence."""
        unknown = self._vocab.coverage(c for e in self._source.train for c in e.captions)["unk_percent"]
        return f"{len(self._vocab) - len(SPECIALS)} words; {unknown:.1f} % of the training captions' words are not among them"

    def validate(self, held_out: HeldOut) -> Validation:
        """Loss and scores of the held-out images as the model stands."""
        config = self._config
        watch = Watch(self.captioner.model)
        loss = self._trainer.loss(held_out("validation loss"), watch)
        own: list[tuple[int, tuple[Any, str]]] = []
        samples: list[tuple[int, Sample]] = []
        for batch in held_out("captions to score"):
            captions = self.captioner.caption_batch(
                batch.images, batch.crops, beam_size=config.beam_size, length_penalty=config.length_penalty
            )
            for i, (example, beams) in enumerate(zip(batch.examples, captions, strict=True)):
                own.append((batch.index, (example.image_id, beams[0][0])))
                if len(samples) < MOST_SAMPLES:
                    samples.append((batch.index, self._sample(batch, i, *beams[0])))
        self.captioner.weights.clear()  # training goes on in the memory it had before
        results = dict(gather(self._ranks, own))
        references = self._references(results)
        # METEOR starts a Java program, which takes seconds: only where the best checkpoint is chosen by it.
        also = ["METEOR"] if config.save_best_on == "METEOR" else []
        scores = led(self._ranks, lambda: metrics.score(results, references, also=also))
        scores = {"val_loss": loss, **scores, "distinct": metrics.distinct_ratio(results.values())}
        some = gather(self._ranks, samples, MOST_SAMPLES)
        return Validation(scores, some, watch.result(self._ranks), variety(results, references))

    def end(self, folder: Path, held_out: HeldOut) -> Ending:
        """Beam-searched captions of the held-out images by the best checkpoint in the run's folder, written there to
        captions.jsonl; for the demo set with the key `true`."""
        captioner = Captioner.load(folder)
        beam_size = max(self._config.beam_size, 3)
        own: list[tuple[int, dict[str, Any]]] = []
        held: list[tuple[int, Sample]] = []
        for batch in held_out("captions of held-out images"):
            captions = captioner.caption_batch(
                batch.images, batch.crops, beam_size=beam_size, length_penalty=self._config.length_penalty
            )
            for i, (example, beams) in enumerate(zip(batch.examples, captions, strict=True)):
                text, logprob = beams[0]
                row = Caption(example.file_name, text, logprob, tuple(beams)).row(drawn=False)
                row = {"image_id": example.image_id, "file_name": example.file_name, **row}
                if self._source.scenes is not None:
                    row["true"] = is_true(text, self._source.scenes[int(example.image_id)])
                own.append((batch.index, row))
                if len(held) < MOST_SAMPLES:
                    held.append((batch.index, self._sample(batch, i, text, logprob, str(row.get("true", "")).lower())))
        rows = gather(self._ranks, own)
        samples = gather(self._ranks, held, MOST_SAMPLES)
        if self._ranks.rank == 0:
            write_lines(folder / "captions.jsonl", rows)
        lines = [f"captions of held-out images, by {checkpoint.find(folder)}, beam {beam_size}:"]
        for row in rows[:_SHOWN]:
            verdict = f"  [{str(row['true']).lower()}]" if "true" in row else ""
            lines.append(f"  {row['file_name']}: {row['caption']}{verdict}")
        lines.append(f"{len(rows)} captions: {folder / 'captions.jsonl'}; a page to look at: {folder / 'samples.html'}")
        if self._config.model == "merge":
            lines += _two_bleus(rows, self._references(row["image_id"] for row in rows))
        if self._source.scenes is None:
            return Ending(samples, lines)
        true = sum(row["true"] for row in rows)
        lines.append(f"held-out captions that are true: {100 * true / len(rows):.1f} % ({true} of {len(rows)})")
        return Ending(samples, lines, true / len(rows))

    def _references(self, captioned: Iterable[Any]) -> dict[Any, list[str]]:
        """People's captions of the images with these ids, in their order."""
        captions = {example.image_id: list(example.captions) for example in self._source.val}
        return {image_id: captions[image_id] for image_id in captioned}

    def _sample(self, batch: Batch, i: int, text: str, logprob: float, verdict: str = "") -> Sample:
        top, left, _ = batch.crops[i]
        whole = batch.images[i] if batch.images.ndim == 4 else decode_image(batch.examples[i].path, self._spec.resize)
        pixels = whole[top : top + self._spec.crop, left : left + self._spec.crop]
        return Sample(batch.file_names[i], pixels, text, logprob, batch.examples[i].captions, verdict)


def _two_bleus(rows: list[dict[str, Any]], references: dict[Any, list[str]]) -> list[str]:
    """BLEU of these captions, and beside it what the Keras articles call so."""
    scores = metrics.score({row["image_id"]: row["caption"] for row in rows}, references, also=["bleu_keras"])

    def told(name: str) -> str:
        return "  ".join(f"{key} {value:.4f}" for key, value in scores.items() if key.startswith(name))

    return [f"{told('BLEU')}; as the Keras articles count it, with startseq and endseq: {told('bleu_keras')}"]
