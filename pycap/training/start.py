"""What a run starts from besides random weights: another run's model, or a pre-trained VGG, and how they see images."""

from __future__ import annotations

from dataclasses import replace

from pycap import weights
from pycap.checkpoint import Checkpoint
from pycap.config import ConfigError, TrainConfig, laid_under
from pycap.data.images import PreprocessSpec
from pycap.models.captions import CaptionModel
from pycap.models.classifier import Classifier
from pycap.training import sources

#: Options that say what a model is, and how it is shown images: mirrored only where captions do not tell left from right.
MODEL = (
    "model", "blind", "cnn", "cnn_width", "fc_size", "rnn_size", "input_encoding_size", "image_size", "resize", "flip",
)  # fmt: skip


def like(config: TrainConfig, start: Checkpoint) -> TrainConfig:
    """The config for a model that takes the checkpoint's weights: `MODEL` as there, but for what the user gave."""
    return laid_under(config, {name: getattr(start.config, name) for name in MODEL})


def check_task(config: TrainConfig, start: Checkpoint) -> None:
    """ConfigError where a captioner is to start from a classifier's weights, or the other way round."""
    if config.classifies != start.config.classifies:
        kind, own = ("classifier", "captioner") if start.config.classifies else ("captioner", "classifier")
        raise ConfigError(
            f"init_from: {start.folder} holds a {kind}, and stage {config.stage} trains a {own}; take its CNN with "
            f"--vgg-weights {start.folder}"
        )


def preprocess_spec(config: TrainConfig, start: Checkpoint | None, vgg: weights.VGGWeights | None) -> PreprocessSpec:
    """Sizes as the config says; mean and deviation as of the weights that the run starts from, else ImageNet's."""
    spec = sources.preprocess_spec(config)
    if start is not None:
        before = PreprocessSpec.from_dict(start.preprocess)
        return replace(spec, mean=before.mean, std=before.std)
    return replace(spec, mean=vgg.mean, std=vgg.std) if vgg else spec


def take_vgg(model: CaptionModel | Classifier, vgg: weights.VGGWeights, config: TrainConfig) -> str:
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
