"""A trained model ready for use: built from a config, loaded from a checkpoint, turning images into captions."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from pycap import checkpoint, ops
from pycap.autograd import Tensor, no_grad
from pycap.backends import WeightCache, constant_weights, select, set_float32_products
from pycap.config import TrainConfig
from pycap.data import DataError
from pycap.data.images import PreprocessSpec, centre_crops
from pycap.data.inputs import Inputs, find
from pycap.data.items import Array, Item, read_ahead
from pycap.data.vocab import SPECIALS, Vocabulary
from pycap.decode import Ensemble, Sampling, Searches, Views, beam_search, sample
from pycap.decode.rules import best
from pycap.device import DeviceError, activation_dtype, current, float32_products, to_device, to_host
from pycap.models.captions import CaptionModel
from pycap.models.classifier import Classifier
from pycap.models.merge import Merge
from pycap.models.nic import NIC
from pycap.models.vgg import VGG

if TYPE_CHECKING:
    from pycap.data.features import Origin


@dataclass(frozen=True)
class Caption:
    """What the model says of an image. `name`: of the image, with what folder or archive it is in. `logprob`: natural
    logarithm, END included. `beams`: (text, logprob) of all that were found, or drawn, the most probable first. `error`: why
    there is no caption, else empty."""

    name: str
    text: str
    logprob: float
    beams: tuple[tuple[str, float], ...]
    error: str = ""

    @property
    def file_name(self) -> str:
        """The name without folder or archive."""
        return os.path.basename(self.name)

    def row(self, drawn: bool) -> dict[str, Any]:
        """As a line of JSON has it, without the image. drawn: `beams` were sampled, and are called so."""
        beams = [{"caption": text, "logprob": logprob} for text, logprob in self.beams]
        return {"caption": self.text, "logprob": self.logprob, "samples" if drawn else "beams": beams}


def build_model(
    config: TrainConfig, vocabulary: int, *, draw: bool = True, word_head: bool | None = None
) -> CaptionModel:
    """A new captioner as `config` describes it.

    Its weights are drawn from `config.seed` or, with draw False, left open: `load_weights` follows. word_head: whether it
    has the classifier of words; None: as `config.pretrain_words` says.
    """
    rng = _rng(config, draw)
    kind = {"nic": NIC, "merge": Merge}[config.model]
    return kind(
        _cnn(config, rng),
        vocabulary,
        rng,
        rnn_size=config.rnn_size,
        input_encoding_size=config.input_encoding_size,
        drop_prob_lm=config.drop_prob_lm,
        word_head=config.pretrain_words > 0 if word_head is None else word_head,
        blind=config.blind,
    )


def build_classifier(config: TrainConfig, vocabulary: int, *, draw: bool = True) -> Classifier:
    """A new classifier as `config` describes it; draw: as for `build_model`."""
    rng = _rng(config, draw)
    return Classifier(_cnn(config, rng), vocabulary, rng)


def _rng(config: TrainConfig, draw: bool) -> np.random.Generator | None:
    return np.random.default_rng(np.random.SeedSequence([config.seed, 0x0DE1])) if draw else None


def _cnn(config: TrainConfig, rng: np.random.Generator | None) -> VGG:
    return VGG(
        config.cnn, config.image_size, rng, width=config.cnn_width, fc_size=config.fc_size, drop=config.drop_prob_cnn
    )


def load_weights(model: CaptionModel | Classifier, saved: checkpoint.Checkpoint, *, copy: bool = True) -> None:
    """Give a model a checkpoint's weights. CheckpointError names what does not fit: the vocabulary, or arrays.

    copy: into the model's own arrays; else, on the CPU, the checkpoint's mapped arrays become the model's: nothing is read
    before it is used, and a first write to a page copies it.
    The classifier of words that `--pretrain-words` trains may be missing on either side: captioning has no use for it.
    """
    table = saved.model.get("head.weight" if saved.config.classifies else "word_embedding.weight")
    if table is not None and len(table) != len(saved.vocab):
        raise checkpoint.CheckpointError(
            f"{saved.folder / 'vocab.json'}: {len(saved.vocab)} words, but the weights beside it are for {len(table)}; "
            "put back the vocab.json that was saved with them"
        )
    own = model.state_arrays()
    head = {name: array for name, array in own.items() if name.startswith("word_head.")}
    arrays = {**head, **{n: a for n, a in saved.model.items() if n in own or not n.startswith("word_head.")}}
    checkpoint.match(arrays, {name: array.shape for name, array in own.items()}, saved.folder)
    model.load_arrays(arrays, copy=copy)


def network_input(images: Any, crops: Any, spec: PreprocessSpec, dtype: DTypeLike) -> ops.Pixels | Tensor:
    """What a model takes: of images uint8 [N,R,R,3] the crops int32 [N,3] (top, left, flip), to be normalised; features
    float32 [N,F] as they are, in a CNN's place. dtype: of activations."""
    if images.ndim == 2:
        return ops.cast(Tensor(to_device(images)), dtype)
    return ops.pixels(images, crops, spec.crop, spec.mean, spec.std, dtype)


def cnn_origin(cnn: VGG, spec: PreprocessSpec) -> Origin:
    """What makes a CNN's features, as their file says it; hashes the weights (a second for VGG16)."""
    from pycap.data.features import Origin, weights_hash

    arrays = {name: to_host(array) for name, array in cnn.state_arrays().items()}
    return Origin(cnn.name, weights_hash(arrays), spec, cnn.output_size)


class Captioner:
    """A model, its vocabulary and the way its images are prepared; `pycap.load` makes one.

    `device` is where it lies, the current device when it was made. `weights` keeps weights in the form that the kernels like
    best, from the first caption on: for VGG16 up to 250 MB. An optimiser's step and `Module.load_arrays` empty it; who writes
    into the model's arrays himself calls `backends.weights_changed()`. `digests`: of each checkpoint that it was loaded from,
    `Checkpoint.digest`.
    """

    digests: tuple[str, ...] = ()

    def __init__(
        self,
        model: CaptionModel | Ensemble,
        vocab: Vocabulary,
        spec: PreprocessSpec,
        config: TrainConfig,
        precision: str | None = None,
    ) -> None:
        """precision: "fp32", "tf32", "bf16", or None for the one that the model was trained in. ValueError for others."""
        self.model, self.vocab, self.spec, self.config = model, vocab, spec, config
        self.precision = precision or config.precision
        self._dtype, self._products = activation_dtype(self.precision), float32_products(self.precision)
        self.device = current()
        self.weights = WeightCache()
        self._searches = Searches()

    @classmethod
    def load(
        cls, path: str | Path | Sequence[str | Path], precision: str | None = None, device: str | None = None
    ) -> Captioner:
        """Read a checkpoint folder, or the best (else the last) one of a run; several paths make an `EnsembleCaptioner`.

        CheckpointError says what is wrong. precision: as for the constructor; weights are saved in float32 whatever they were
        trained in. device: "cpu", "cuda" or "auto", for this model and the whole process (`backends.select`); None: the
        current one.
        """
        paths = [path] if isinstance(path, (str, Path)) else list(path)
        if not paths:
            raise ValueError("no checkpoint is named: name one, or several for an ensemble")
        read = [checkpoint.load(each) for each in paths]
        if device is not None:
            select(device)
        members = [_member(saved, precision) for saved in read]
        made = members[0] if len(members) == 1 else EnsembleCaptioner(members, [str(saved.folder) for saved in read])
        made.digests = tuple(saved.digest for saved in read)
        return made

    def caption_batch(
        self,
        images: Any,
        crops: Any,
        *,
        beam_size: int = 3,
        max_length: int | None = None,
        length_penalty: float = 0.0,
        sampling: Sampling | None = None,
        keys: Sequence[int | str] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Captions of decoded images: for each, (text, logprob) of its beams or samples, the most probable first.

        images uint8 [N,R,R,3] (or features float32 [N,F]), crops int32 [N,3] (top, left, flip), arrays of the host, as the
        loader gives them. sampling: draw captions in place of searching for them (beam_size and length_penalty have no part
        in it); keys: see `decode.sample`. max_length: words, by default as in training. DeviceError where the process has
        turned to another device than the model's.
        """
        if current() != self.device:
            raise DeviceError(
                f"the captioner's model lies on {self.device}, and the current device is {current()}: call "
                f"pycap.backends.select({self.device!r}), or load it again"
            )
        set_float32_products(self._products)
        vocab = self.vocab
        rules: dict[str, Any] = {
            "max_length": self.config.max_length if max_length is None else max_length,
            "start": vocab.START,
            "end": vocab.END,
            "suppress": (vocab.PAD, vocab.START, vocab.UNK),
        }
        with no_grad(), self.model.evaluating(), constant_weights(self.weights):
            x = self._pixels(images, crops)
            if sampling is not None:
                drawn = sample(self.model, x, sampling, **rules, keys=keys)
                found = [best(sentences, len(sentences)) for sentences in drawn]
            else:
                rules |= {"beam_size": beam_size, "length_penalty": length_penalty, "searches": self._searches}
                found = beam_search(self.model, x, **rules)
        return [[(vocab.decode(h.ids), h.logprob) for h in hypotheses] for hypotheses in found]

    def _pixels(self, images: Any, crops: Any) -> Any:
        """What the model's `begin` takes."""
        return network_input(images, crops, self.spec, self._dtype)

    def arrays(self, read: Mapping[int, Array]) -> tuple[Any, Any]:
        """Images and crops as `caption_batch` takes them, of arrays by size."""
        images = read[self.spec.resize]
        return images, centre_crops(self.spec, len(images))

    @property
    def members(self) -> tuple[Captioner, ...]:
        """Those that write the captions: itself, or an ensemble's."""
        return (self,)

    def check(self, inputs: Inputs) -> None:
        """DataError where a store among what is to be captioned is not for this model: features of another CNN, images of
        another size, features beside images (`batches` takes one or the other)."""
        stores = inputs.stores()
        features = [name for name, held in stores if not isinstance(held, int)]
        images = [name for name in inputs.named if name not in features]
        if features and images:
            raise DataError(f"{features[0]}: holds features, and {images[0]} images; caption them into two files")
        for name, held in stores:
            for member in self.members:
                own = member.spec.resize if isinstance(held, int) else member._origin()
                if held != own:
                    holds = (
                        f"images of {held} px, and the model takes"
                        if isinstance(held, int)
                        else f"features of {held}, not of"
                    )
                    raise DataError(
                        f"{name}: holds {holds} {own}; make it anew for this model, or caption the image files"
                    )

    def _origin(self) -> Origin:
        """What makes the features that may stand in the CNN's place."""
        assert isinstance(self.model, CaptionModel)
        return cnn_origin(self.model.cnn, self.spec)

    def caption(
        self,
        paths: Inputs | Sequence[str | Path] | str | Path,
        *,
        batch_size: int = 16,
        workers: int = 2,
        **decoding: Any,
    ) -> Iterator[Caption]:
        """Caption images, in the order given. One that cannot be read yields a Caption with `error` set.

        paths: image files, or what else `data.inputs.find` takes. decoding: as `batches` has it. DataError for a folder without
        images, and for a list or a store that is none or not for this model.
        """
        inputs = (
            paths if isinstance(paths, Inputs) else find([paths] if isinstance(paths, (str, Path)) else paths, False)
        )
        self.check(inputs)
        for captions in self.batches(inputs, batch_size=batch_size, workers=workers, **decoding):
            yield from captions

    def batches(
        self,
        items: Iterable[Item],
        *,
        beam_size: int = 3,
        batch_size: int = 16,
        max_length: int | None = None,
        length_penalty: float = 0.0,
        sampling: Sampling | None = None,
        workers: int = 2,
    ) -> Generator[list[Caption], None, None]:
        """Captions of items in their order, `batch_size` at a time as they are made; the next ones are read meanwhile.

        A caption may depend in its last bits on which others are in its batch. sampling: draw captions in place of searching
        for them. What is drawn for an image depends on the seed and the file's name, not on its folder or on the other images.
        docs/decoding.md says what each argument does.
        """
        reading = read_ahead(items, [member.spec.resize for member in self.members], batch_size, workers)
        try:
            for names, arrays, errors in reading:
                readable = [name for name, error in zip(names, errors, strict=True) if error is None]
                found: Iterator[list[tuple[str, float]]] = iter(())
                if readable:
                    made = self.caption_batch(
                        *self.arrays(arrays),
                        beam_size=beam_size,
                        max_length=max_length,
                        length_penalty=length_penalty,
                        sampling=sampling,
                        keys=[os.path.basename(name) for name in readable],
                    )
                    found = iter(made)
                yield [
                    _caption(name, next(found)) if error is None else Caption(name, "", float("nan"), (), error.reason)
                    for name, error in zip(names, errors, strict=True)
                ]
        finally:
            reading.close()


def _caption(name: str, beams: Sequence[tuple[str, float]]) -> Caption:
    return Caption(name, *beams[0], tuple(beams))


def _member(saved: checkpoint.Checkpoint, precision: str | None) -> Captioner:
    """The captioner that a checkpoint holds."""
    if saved.config.classifies:
        raise checkpoint.CheckpointError(
            f"{saved.folder}: a classifier of {len(saved.vocab) - len(SPECIALS)} classes (--stage pretrain), which captions "
            f"nothing; train a captioner that starts from its CNN, with --vgg-weights {saved.folder}"
        )
    model = build_model(saved.config, len(saved.vocab), draw=False, word_head="word_head.weight" in saved.model)
    load_weights(model, saved, copy=False)
    model.train(False)
    return Captioner(model, saved.vocab, saved.spec, saved.config, precision)


class EnsembleCaptioner(Captioner):
    """Several captioners that write one caption together, by the mean of their words' probabilities.

    They may differ in all but their words: each prepares the images for itself. Longest caption and stage are the first
    member's; a GPU multiplies as the most exact of them asks for. `caption_batch` takes lists of images and crops, one a
    member.
    """

    def __init__(self, members: Sequence[Captioner], names: Sequence[str] | None = None) -> None:
        """names: what errors call the members. ValueError where their vocabularies hold different words."""
        first, names = members[0], names or [f"member {number}" for number in range(1, len(members) + 1)]
        ids = [_ids_of(first.vocab, m.vocab, names[0], name) for m, name in zip(members, names, strict=True)]
        together = Ensemble([m.model for m in members], ids)
        super().__init__(together, first.vocab, first.spec, first.config, first.precision)
        self._members = tuple(members)
        self._products = min(m._products for m in members)  # "fp32" before "tf32"

    @property
    def members(self) -> tuple[Captioner, ...]:
        return self._members

    def _pixels(self, images: Any, crops: Any) -> Views:
        return Views(m._pixels(*own) for m, *own in zip(self.members, images, crops, strict=True))

    def arrays(self, read: Mapping[int, Array]) -> tuple[Any, Any]:
        images, crops = zip(*(m.arrays(read) for m in self.members), strict=True)
        return list(images), list(crops)


def _ids_of(first: Vocabulary, other: Vocabulary, its_name: str, other_name: str) -> np.ndarray | None:
    """The other's id of each of the first one's, None where they are the same. ValueError names a word that one lacks."""
    if first == other:
        return None
    for has, lacks, owner, name in ((first, other, its_name, other_name), (other, first, other_name, its_name)):
        missing = next((word for word in has.words if word not in lacks.ids), None)
        if missing is not None:
            raise ValueError(
                f"an ensemble needs one vocabulary: {name} lacks the word {missing!r} of {owner} (they know "
                f"{len(lacks) - len(SPECIALS)} and {len(has) - len(SPECIALS)}); train the members on the same captions, or one "
                "from the other with --init-from"
            )
    return np.array([other.ids[word] for word in first.words], np.int32)
