"""Every option of training: the dataclass and its checks."""
# ruff: noqa: RUF009 (_opt is dataclasses.field with help and limits)

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "reference", "cpp", "triton", "cuda")
PRECISIONS = ("fp32", "tf32", "bf16")  # as in pycap.device, which this file does not need otherwise
CNNS = ("vgg16", "vgg11", "vgg13", "vgg19", "vgg_micro", "vgg_small6")
SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "METEOR")  # of pycap.metrics; more is better
CLASS_SCORES = ("top-1", "top-5")  # of the stage pretrain; more is better


class ConfigError(ValueError):
    """An option that is unknown, of the wrong type or out of range; the text names option, value and remedy."""


def _opt(default: Any, help: str, *, choices: Sequence[str] = (), low: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": tuple(choices), "low": low})


@dataclass
class TrainConfig:
    """All that decides a training run. `None` in a `cnn_` option means: as for the rest of the model."""

    stage: str = _opt("coco", "what to train on; each stage has a recipe of the same name")
    data: Path | None = _opt(
        None, "the data set's folder (none: data/KIND); of several sets, the one that holds theirs"
    )
    datasets: str = _opt(
        "",
        "data sets to train on instead of the stage's own: KIND or KIND=FOLDER, joined by +; KIND: coco, coco_all, "
        "flickr8k, flickr30k, imageclef, picks (docs/data.md)",
    )
    picks: Path | None = _opt(
        None,
        "stage selected, or data sets with picks: JSON Lines (none: picks.jsonl in the data folder)",
    )
    out_dir: Path | None = _opt(None, "the run's folder (none: runs/STAGE)")
    store: str = _opt("auto", "HDF5 store of resized images: auto (in the run's folder when it pays), none, or a file")
    workers: int | None = _opt(
        None,
        "threads that decode images (none: 2, with a GPU as many as there are CPUs, 16 at most; 0: no threads)",
        low=0,
    )
    word_count_threshold: int = _opt(5, "words seen less often in the training captions become UNK", low=1)
    max_length: int = _opt(20, "words of a caption beyond this many are cut off", low=1)
    batch_size: int = _opt(16, "images per step, of all ranks together", low=1)
    seq_per_img: int = _opt(5, "captions per image and step; they share one pass of the CNN", low=1)
    image_size: int = _opt(224, "height and width of the crop that the CNN sees, divisible by 32", low=32)
    resize: int = _opt(0, "images are resized to this before cropping (0: 8/7 of image_size)", low=0)
    flip: bool = _opt(True, "mirror half of the training images")
    demo_train: int = _opt(3000, "images of the drawn demo set to train on, where no data is found", low=1)
    demo_val: int = _opt(250, "held-out images of the drawn demo set", low=1)

    model: str = _opt(
        "nic", "captioner: nic (the ImageCLEF 2016 paper), merge (the Keras article)", choices=("nic", "merge")
    )
    cnn: str = _opt("vgg16", "image encoder", choices=CNNS)
    cnn_width: float = _opt(1.0, "multiplies the channels of every convolution")
    fc_size: int = _opt(4096, "width of fc6 and fc7", low=1)
    blind: bool = _opt(False, "the captioner sees zeros instead of the image: the language model alone")
    features: str = _opt(
        "none",
        "train a frozen CNN's captioner on its fc7 vectors: auto (made when the run begins), none, or an HDF5 file",
    )
    rnn_size: int = _opt(512, "LSTM units", low=1)
    input_encoding_size: int = _opt(512, "width of word and image embeddings", low=1)
    drop_prob_lm: float = _opt(0.5, "dropout in the language model, in [0, 1)")
    drop_prob_cnn: float = _opt(0.5, "dropout after fc6 and fc7, in [0, 1)")

    optimizer: str = _opt("adam", "update rule", choices=("adam", "rmsprop", "sgd"))
    learning_rate: float = _opt(4e-4, "learning rate", low=0)
    cnn_optimizer: str | None = _opt(None, "update rule of the CNN (none: same)", choices=("adam", "rmsprop", "sgd"))
    cnn_learning_rate: float | None = _opt(None, "learning rate of the CNN (none: same)", low=0)
    momentum: float = _opt(0.9, "sgd: momentum, in [0, 1)")
    alpha: float = _opt(0.99, "rmsprop: decay of the mean square, in [0, 1)")
    beta1: float = _opt(0.9, "adam: decay of the mean, in [0, 1)")
    beta2: float = _opt(0.999, "adam: decay of the mean square, in [0, 1)")
    epsilon: float = _opt(1e-8, "adam, rmsprop: added to the root of the mean square", low=0)
    weight_decay: float = _opt(0.0, "L2 penalty", low=0)
    cnn_weight_decay: float | None = _opt(None, "L2 penalty of the CNN (none: same)", low=0)
    grad_clip: float = _opt(0.0, "clip gradients at this (0: off)", low=0)
    grad_clip_mode: str = _opt("value", "clip each element, or a group's norm", choices=("value", "norm"))
    cnn_grad_clip: float | None = _opt(None, "clip the CNN's gradients at this (none: same, 0: off)", low=0)
    lr_schedule: str = _opt("constant", "learning rate over time", choices=("constant", "step", "cosine", "plateau"))
    lr_decay_start: float = _opt(0.0, "step: epoch from which on the rate decays", low=0)
    lr_decay_every: float = _opt(1.0, "step: epochs between decays")
    lr_decay_rate: float = _opt(0.5, "step, plateau: factor of each decay, in (0, 1]")
    plateau_patience: int = _opt(2, "plateau: validations without a better save_best_on before a decay", low=0)
    warmup_steps: int = _opt(0, "steps over which the rate rises linearly from 0", low=0)
    min_learning_rate: float = _opt(0.0, "the schedule never goes below this", low=0)
    freeze_cnn: bool = _opt(False, "never train the CNN")
    finetune_cnn_after: int = _opt(0, "epochs for which the CNN stays frozen (0: joint from the start)", low=0)
    micro_batch: int = _opt(0, "images per pass, to save memory; gradients stay the same (0: the whole batch)", low=0)

    pretrain_words: int = _opt(0, "epochs before the first in which the CNN alone learns to guess caption words", low=0)
    pretrain_learning_rate: float = _opt(1e-3, "learning rate of those epochs", low=0)
    epochs: int = _opt(20, "passes over the training images", low=1)
    max_steps: int = _opt(0, "stop after this many steps in all (0: no limit)", low=0)
    seed: int = _opt(123, "seed of weights, shuffling, crops and dropout", low=0)
    val_every: int = _opt(1, "epochs between validations", low=1)
    val_images_use: int = _opt(-1, "validation images to caption and score (-1: all)", low=-1)
    beam_size: int = _opt(1, "beam width of captions generated for validation (1: greedy)", low=1)
    length_penalty: float = _opt(0.0, "beam search: divide log-probabilities by length to this power", low=0)
    save_checkpoint_every: int = _opt(0, "steps between checkpoints (0: at each epoch's end only)", low=0)
    save_best_on: str = _opt(
        "val_loss", "what makes a checkpoint the best", choices=("val_loss", *SCORES, *CLASS_SCORES)
    )
    early_stop: int = _opt(0, "end after so many validations without a better save_best_on (0: never)", low=0)
    check_gradients: int = _opt(
        0, "random directions along which backward is held against differences of the loss before the first step", low=0
    )
    log_every: int = _opt(10, "steps between rows of log.jsonl", low=1)

    resume: Path | None = _opt(None, "continue this run or checkpoint exactly; its options are the defaults")
    init_from: Path | None = _opt(None, "run or checkpoint to take the weights from")
    extend_vocab: bool = _opt(False, "init_from: add the new data's words to the checkpoint's vocabulary")
    vgg_weights: Path | None = _opt(
        None, "pre-trained VGG for the CNN: .h5, .safetensors, .pth, .npz, or a run's folder (docs/weights.md)"
    )

    device: str = _opt("auto", "where to compute (auto: on a GPU that the kernels can use)", choices=DEVICES)
    backend: str = _opt("auto", "whose kernels", choices=BACKENDS)
    precision: str = _opt(
        "fp32",
        "tf32: matrix products on a GPU; bf16: activations of the CNN, and tf32; all else, weights and losses too, is fp32",
        choices=PRECISIONS,
    )
    threads: int = _opt(0, "CPU threads (0: all)", low=0)

    def __post_init__(self) -> None:
        self.given: frozenset[str] | None = None  # options that the user set, where parse_args knows them
        for name in PATHS:
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, Path(value))

    @property
    def resize_to(self) -> int:
        """Side to which images are resized before the crop, in pixels."""
        return self.resize or round(self.image_size * 8 / 7)

    @property
    def run_dir(self) -> Path:
        """The run's folder: `out_dir`, or runs/STAGE."""
        return self.out_dir or Path("runs") / self.stage

    @property
    def reads(self) -> str:
        """The data sets that the run is trained on, as `pycap.data.datasets.parse` takes them."""
        return self.datasets or self.stage

    @property
    def classifies(self) -> bool:
        """Whether the run trains a classifier of images, not a captioner."""
        return self.stage == "pretrain"

    def validate(self) -> TrainConfig:
        """Check every option; returns the config itself.

        Raises:
            ConfigError: names the option, its value and what to give instead.
        """
        from pycap.config.files import check_stage  # which reads the options' names from here

        for f in fields(self):
            check_value(f, getattr(self, f.name))
        check_stage(self.stage)
        if self.image_size % 32:
            below = self.image_size // 32 * 32
            raise ConfigError(
                f"image_size: {self.image_size} is not divisible by 32 (the CNN halves it five times); "
                f"use {below} or {below + 32}"
            )
        if self.resize and self.resize < self.image_size:
            raise ConfigError(
                f"resize: {self.resize} is smaller than image_size {self.image_size}, which is cut out of it; "
                f"give {self.image_size} or more, or 0"
            )
        for name in ("drop_prob_lm", "drop_prob_cnn", "momentum", "alpha", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1); 0 turns it off")
        for name in ("cnn_width", "lr_decay_every"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not above 0")
        if not 0 < self.lr_decay_rate <= 1:
            raise ConfigError(
                f"lr_decay_rate: {self.lr_decay_rate} is not in (0, 1]; each decay multiplies the rate by it"
            )
        if self.micro_batch > self.batch_size:
            raise ConfigError(
                f"micro_batch: {self.micro_batch} exceeds batch_size {self.batch_size}; "
                "give a part of it, or 0 for the whole"
            )
        if self.freeze_cnn and self.finetune_cnn_after:
            raise ConfigError(
                f"finetune_cnn_after: {self.finetune_cnn_after} contradicts freeze_cnn, "
                "which never trains the CNN; drop one"
            )
        for name, why in (("freeze_cnn", "never trains the CNN"), ("blind", "has no use for a CNN")):
            if getattr(self, name) and self.pretrain_words:
                raise ConfigError(f"pretrain_words: {self.pretrain_words} contradicts {name}, which {why}; drop one")
        if self.features != "none" and not self.freeze_cnn:
            raise ConfigError(
                f"features: {self.features} are of a frozen CNN, and this one learns, so that they would not stay as they "
                "are; give --freeze-cnn, or --features none"
            )
        if self.check_gradients and self.precision == "bf16":
            raise ConfigError(
                f"check_gradients: {self.check_gradients} needs --precision fp32 (or tf32): bf16 rounds weights to 8 bits, and "
                "the small steps of differences change nothing; give it for one run of --max-steps 1, or 0"
            )
        if self.resume and self.init_from:
            raise ConfigError(
                f"init_from: {self.init_from} contradicts resume {self.resume}: resume continues exactly, "
                "init_from starts anew from weights; drop one"
            )
        if self.extend_vocab and not (self.init_from or self.resume):
            raise ConfigError(
                "extend_vocab: True needs a checkpoint whose vocabulary is extended; give it with --init-from, or leave it out"
            )
        if self.vgg_weights and self.init_from:
            raise ConfigError(
                f"vgg_weights: {self.vgg_weights} contradicts init_from {self.init_from}, which has a CNN; drop one"
            )
        if self.blind and self.vgg_weights:
            raise ConfigError(f"vgg_weights: {self.vgg_weights} contradicts blind: no CNN runs; drop one")
        self._check_task()
        return self

    def _check_task(self) -> None:
        """Captioners and classifiers have scores of their own, and a classifier no language model."""
        other = SCORES if self.classifies else CLASS_SCORES
        if self.save_best_on in other:
            own = ("val_loss", *(CLASS_SCORES if self.classifies else SCORES))
            raise ConfigError(
                f"save_best_on: {self.save_best_on} is no score of stage {self.stage}; one of {', '.join(own)}"
            )
        for name in ("model", "blind", "features", "pretrain_words", "datasets", "picks", "extend_vocab"):
            if self.classifies and getattr(self, name) != FIELDS[name].default:
                raise ConfigError(
                    f"{name}: {getattr(self, name)} is a captioner's, and stage {self.stage} trains a classifier of images; "
                    "leave it out"
                )


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100
FIELDS: dict[str, Field[Any]] = {f.name: f for f in fields(TrainConfig)}
TYPES: dict[str, Any] = {name: t for name, t in get_type_hints(TrainConfig).items() if name in FIELDS}
PATHS = tuple(name for name, t in TYPES.items() if t == Path | None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def shown(value: Any) -> str:
    """A value for a message: of YAML, a few letters may stand for millions, and a number may be too long to be written."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return f"a {type(value).__name__} of thousands of digits"


def type_name(name: str) -> str:
    kinds = getattr(TYPES[name], "__args__", (TYPES[name],))
    return " or ".join("none" if k is type(None) else k.__name__ for k in kinds)


def check_value(f: Field[Any], value: Any) -> None:
    kinds = getattr(TYPES[f.name], "__args__", (TYPES[f.name],))
    # bool is an int to isinstance, and an int serves as a float
    fits = (
        type(value) in kinds or (float in kinds and type(value) is int) or (Path in kinds and isinstance(value, Path))
    )
    if not fits:
        raise ConfigError(f"{f.name}: {shown(value)} is not of type {type_name(f.name)}")
    if isinstance(value, (int, float)) and not (
        math.isfinite(value) if isinstance(value, float) else abs(value) < 1 << 63
    ):
        raise ConfigError(f"{f.name}: {shown(value)} is not a finite number, or of more than 64 bits")
    if isinstance(value, (str, Path)) and not _is_text(str(value)):
        raise ConfigError(
            f"{f.name}: {shown(str(value))} holds half of a character, which no text and no file's name can"
        )
    choices, low = f.metadata["choices"], f.metadata["low"]
    if choices and value is not None and value not in choices:
        raise ConfigError(f"{f.name}: no {shown(value)}{did_you_mean(value, choices)}; one of {', '.join(choices)}")
    if low is not None and value is not None and value < low:
        raise ConfigError(f"{f.name}: {value} is below {low}")


def _is_text(text: str) -> bool:
    """Whether it can be written, names of files included that are no UTF-8 (os.fsdecode)."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
