"""What a run starts from: a run that it continues, another run's model, or a pre-trained VGG; and how images are seen there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pycap import checkpoint, weights
from pycap.captioner import build_classifier, build_model, load_weights
from pycap.checkpoint import Checkpoint
from pycap.config import ConfigError, TrainConfig, laid_under
from pycap.data.images import PreprocessSpec
from pycap.data.vocab import Vocabulary
from pycap.distributed import ALONE, Ranks
from pycap.models.captions import CaptionModel
from pycap.models.classifier import Classifier
from pycap.training import folder as run_folder
from pycap.training import sources
from pycap.training.extend import extend
from pycap.training.sources import Source

#: Options that say what a model is, and how it is shown images: mirrored only where captions do not tell left from right.
MODEL = (
    "model", "blind", "cnn", "cnn_width", "fc_size", "rnn_size", "input_encoding_size", "image_size", "resize", "flip",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    config: with what the data and the checkpoint decide. saved: the checkpoint of `resume` or of `init_from`, with the new
    data's words where `extend_vocab` says so; None where the model starts at random. vgg: for the CNN of such a model.
    """

    config: TrainConfig
    source: Source
    vocab: Vocabulary
    spec: PreprocessSpec
    saved: Checkpoint | None
    vgg: weights.VGGWeights | None

    @property
    def resumed(self) -> Checkpoint | None:
        """The checkpoint of a run that is continued, of which more is taken than weights."""
        return self.saved if self.config.resume else None

    def model(self, say: Callable[[str], None]) -> CaptionModel | Classifier:
        """A new model with the weights. say: told what a VGG gave. CheckpointError, WeightsError where weights do not fit."""
        build = build_classifier if self.config.classifies else build_model
        model = build(self.config, len(self.vocab))
        if self.saved:
            load_weights(model, self.saved)
        if self.vgg:
            say(_take_vgg(model, self.vgg, self.config))
        return model


def find(config: TrainConfig, say: Callable[[str], None], ranks: Ranks = ALONE) -> Start:
    """Read all that the run starts from; nothing is written but a demo set.

    say: told of a demo set that stands in for the data. ranks: which all call this; the first draws that set. Raises
    ConfigError for options that the checkpoint contradicts, and for a run's folder that cannot be this run's; DataError,
    CheckpointError, WeightsError of what is read.
    """
    saved = None
    if config.resume:
        if (config.resume / run_folder.LOG).is_file() and not run_folder.saved(config.resume):
            raise ConfigError(
                f"resume: {config.resume} was stopped before its first checkpoint, and its first step: nothing is lost; start "
                "it again with its options, without --resume"
            )
        saved = checkpoint.load(config.resume, prefer="last", optimizer=True)
    elif config.init_from:
        saved = checkpoint.load(config.init_from)
    source, config = sources.find(config, say, ranks)
    if saved and config.resume:
        _check_resumed(config, saved)
        before, now = saved.state.get("data"), source.digest()
        if before and before != now:  # checkpoints of older versions do not tell
            source.remarks.append(
                f"the data is not what the run was saved with ({before}; now {now}): it goes on, but not as it would have"
            )
    elif saved:
        _check_task(config, saved)
        config = _like(config, saved)
        if config.extend_vocab:
            captions = [caption for example in source.train for caption in example.captions]
            saved, told = extend(saved, captions, config.word_count_threshold, config.seed)
            source.remarks.append(told)
    vocab = saved.vocab if saved else sources.vocabulary(source, config)
    vgg = weights.load(config.vgg_weights) if config.vgg_weights and not saved else None
    start = Start(config, source, vocab, _spec(config, saved, vgg), saved, vgg)
    _check_folder(start)
    return start


def _like(config: TrainConfig, saved: Checkpoint) -> TrainConfig:
    """The config for a model that takes the checkpoint's weights: `MODEL` as there, but for what the user gave."""
    return laid_under(config, {name: getattr(saved.config, name) for name in MODEL})


def _check_task(config: TrainConfig, saved: Checkpoint) -> None:
    """ConfigError where a captioner is to start from a classifier's weights, or the other way round."""
    if config.classifies != saved.config.classifies:
        kind, own = ("classifier", "captioner") if saved.config.classifies else ("captioner", "classifier")
        raise ConfigError(
            f"init_from: {saved.folder} holds a {kind}, and stage {config.stage} trains a {own}; take its CNN with "
            f"--vgg-weights {saved.folder}"
        )


def _check_resumed(config: TrainConfig, saved: Checkpoint) -> None:
    """ConfigError where a resumed run is asked to be another one than it began as."""
    for name in ("stage", *MODEL, "extend_vocab", "vgg_weights"):
        asked, began = getattr(config, name), getattr(saved.config, name)
        if asked != began:
            raise ConfigError(
                f"{name}: {asked} contradicts resume: the run of {saved.folder} began with {began}, and is continued exactly; "
                "leave it out, or start anew from its weights with --init-from"
            )


def _check_folder(start: Start) -> None:
    """ConfigError where a resumed run would go on in another folder than its own, or a new one move aside what it reads."""
    config, folder = start.config, start.config.run_dir.resolve()
    if start.resumed:
        if folder not in start.resumed.folder.resolve().parents:
            raise ConfigError(
                f"out_dir: {config.run_dir} is not the run of {start.resumed.folder}, which resume continues in its own "
                "folder; leave --out-dir out (in Python: pycap.config.resumed), or start anew from its weights with --init-from"
            )
        return
    features = None if config.features in ("none", "auto") else Path(config.features)
    for given in (config.init_from, config.vgg_weights, features, *start.source.folders):
        if given and folder in (given.resolve(), *given.resolve().parents):
            raise ConfigError(f"out_dir: {config.run_dir} holds {given}, which this run reads; give another --out-dir")


def _spec(config: TrainConfig, saved: Checkpoint | None, vgg: weights.VGGWeights | None) -> PreprocessSpec:
    """A resumed run's own; else sizes as the config says; mean and deviation as of the weights that the run starts from, or
    ImageNet's."""
    spec = sources.preprocess_spec(config)
    if saved is not None:
        before = saved.spec
        return before if config.resume else replace(spec, mean=before.mean, std=before.std)
    return replace(spec, mean=vgg.mean, std=vgg.std) if vgg else spec


def _take_vgg(model: CaptionModel | Classifier, vgg: weights.VGGWeights, config: TrainConfig) -> str:
    """Give the model's CNN the weights; returns what to tell.

    fc6 and fc7 keep their random values where they do not fit. WeightsError where the convolutions do not, or where the CNN
    is frozen with such a random fc6.
    """
    own = model.cnn.state_arrays()
    taken, reason = weights.fit(vgg, config.cnn, {name: array.shape for name, array in own.items()})
    if reason and config.freeze_cnn:
        raise weights.WeightsError(
            f"{vgg.path}: fc6 and fc7 cannot be taken ({reason}), and --freeze-cnn would leave them at random values for good; "
            "leave it out, or use --finetune-cnn-after"
        )
    model.cnn.load_arrays({**own, **taken})
    told = f"{vgg.cnn} from {vgg.path} ({vgg.source}, sha256 {vgg.sha256[:16]}...)"
    return f"{told}: the convolutions; fc6 and fc7 start at random: {reason}" if reason else f"{told}: all layers"
