"""Ensembles of checkpoints: members of other sizes, preprocessing and word order, on the CPU and on a stand-in for a GPU."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycap
from pycap import backends, checkpoint, device, memory
from pycap.captioner import Captioner, EnsembleCaptioner, build_model
from pycap.data import images as images_module
from pycap.data import items as items_module
from pycap.data.images import PreprocessSpec
from pycap.data.inputs import find
from pycap.data.items import read_ahead
from pycap.data.vocab import Vocabulary
from pycap.decode import Sampling
from pycap.models.nic import NIC
from tests import cupy_standin
from tests.train.runs import tiny

WORDS = ("a", "dog", "cat", "runs", "sleeps", "red")
SPEC = PreprocessSpec(resize=64, crop=64)


def member(folder: Path, words: tuple[str, ...] = WORDS, spec: PreprocessSpec = SPEC, **options: Any) -> Path:
    """A checkpoint of weights that were drawn, and made large enough for words to differ."""
    config = tiny(folder, folder, max_length=6, image_size=spec.crop, **options)
    arrays = build_model(config, len(words) + 4).state_arrays()
    for name in ("projection.weight", "image_embedding.weight", "word_embedding.weight"):
        arrays[name] *= 4
    vocab = Vocabulary(words)
    checkpoint.save(folder, model=arrays, optimizer=None, state={}, vocab=vocab, config=config, preprocess=asdict(spec))
    return folder


def found(captioner: Captioner, files: list[Path], **how: Any) -> list[list[tuple[str, float]]]:
    return [list(caption.beams) for caption in captioner.caption(files, **how)]


def same(ours: list[list[tuple[str, float]]], theirs: list[list[tuple[str, float]]]) -> None:
    """The same texts, with log-probabilities that float32 may have rounded differently."""
    for mine, right in zip(ours, theirs, strict=True):
        assert [text for text, _ in mine] == [text for text, _ in right]
        assert [logprob for _, logprob in mine] == pytest.approx([logprob for _, logprob in right], rel=1e-5)


def photos(data: Path) -> list[Path]:
    return sorted((data / "val2017").iterdir())[:5]


def test_a_checkpoint_twice_says_what_it_says_alone(data: Path, tmp_path: Path) -> None:
    one = member(tmp_path / "one")
    alone, twice = pycap.load(one), pycap.load([one, one])
    assert isinstance(twice, EnsembleCaptioner) and not isinstance(pycap.load([one]), EnsembleCaptioner)
    for how in ({"beam_size": 3}, {"beam_size": 1}, {"sampling": Sampling(samples=3, seed=4)}):
        same(found(twice, photos(data), **how), found(alone, photos(data), **how))


@pytest.mark.parametrize("model", ["nic", "merge"])
def test_members_of_other_kinds_and_sizes_see_the_images_as_they_were_trained_to(
    data: Path, tmp_path: Path, model: str
) -> None:
    small = PreprocessSpec(resize=40, crop=32, mean=(10.0, 20.0, 30.0))
    other = member(tmp_path / "two", spec=small, model=model, cnn_width=0.5, rnn_size=16, seed=9)
    paths = [member(tmp_path / "one"), other]
    together, single = pycap.load(paths), [pycap.load(path) for path in paths]
    files = photos(data)
    # What each model by itself gives for the first word, END included, and the mean of it.
    read = next(read_ahead(find(files), [64, 40], 5, 0))
    batches = [each.arrays(read.arrays) for each in single]
    means = []
    for each, (images, crops) in zip(single, batches, strict=True):
        logits, _ = each.model.advance(each.model.begin(each._pixels(images, crops)), np.full(5, 1, np.int32))
        mass = np.exp(logits.astype(np.float64))
        means.append(mass / mass.sum(1, keepdims=True) / 2)
    mean = means[0] + means[1]
    images, crops = zip(*batches, strict=True)
    for p, sentences in zip(mean, together.caption_batch(images, crops, beam_size=7, max_length=1), strict=True):
        shares = {text: p[together.vocab.ids.get(text, 2)] / (1 - p[[0, 1, 3]].sum()) for text, _ in sentences}
        assert len(shares) == 7
        assert {text: np.exp(logprob) for text, logprob in sentences} == pytest.approx(shares, rel=1e-5)


def test_the_same_words_in_another_order_are_the_same_words(data: Path, tmp_path: Path) -> None:
    one, files = member(tmp_path / "one"), photos(data)
    saved = checkpoint.load(one)
    order = [3, 1, 0, 5, 2, 4]
    rows = [0, 1, 2, 3, *(4 + i for i in order)]
    arrays = {
        name: array[rows] if name.startswith(("word_embedding.", "projection.")) else array
        for name, array in saved.model.items()
    }
    vocab, preprocess = Vocabulary([WORDS[i] for i in order]), saved.preprocess
    other = tmp_path / "other"
    checkpoint.save(
        other, model=arrays, optimizer=None, state={}, vocab=vocab, config=saved.config, preprocess=preprocess
    )
    alone = found(pycap.load(one), files)
    same(found(pycap.load([one, other]), files), alone)
    same(found(pycap.load([other, one]), files), alone)


def test_other_words_are_an_error_that_names_one(tmp_path: Path) -> None:
    one, more = member(tmp_path / "one"), member(tmp_path / "more", (*WORDS, "zebra"))
    for paths in ([one, more], [more, one]):
        with pytest.raises(ValueError, match=r"one.*lacks the word 'zebra' of .*more \(they know 6 and 7\)"):
            pycap.load(paths)
    with pytest.raises(ValueError, match="no checkpoint"):
        pycap.load([])


@pytest.mark.parametrize(
    ("precisions", "products"), [(("tf32", "fp32"), "fp32"), (("fp32", "bf16"), "fp32"), (("tf32", "tf32"), "tf32")]
)
def test_products_are_those_of_the_most_exact_member(
    data: Path, tmp_path: Path, precisions: tuple[str, str], products: str
) -> None:
    paths = [member(tmp_path / str(number), precision=value) for number, value in enumerate(precisions)]
    found(pycap.load(paths), photos(data)[:1])
    assert backends.float32_products() == products


def test_an_image_that_one_member_cannot_read_is_no_image(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may change between decoding it for one member and for the other: the batch stays in step."""
    paths = [member(tmp_path / "one"), member(tmp_path / "two", spec=replace(SPEC, resize=70))]
    together, files = pycap.load(paths), photos(data)
    complete = list(together.caption(files))
    plain = images_module.decode_image

    def decode(path: str, size: int, name: str, out: np.ndarray) -> np.ndarray:
        if (path, size) in ((str(files[1]), 64), (str(files[3]), 70)):
            raise images_module.ImageError(name, "gone")
        return plain(path, size, name, out)

    monkeypatch.setattr(items_module, "decode_image", decode)
    captions = list(together.caption(files))
    assert [c.error for c in captions] == ["", "gone", "", "gone", ""]
    for place in (0, 2, 4):
        same([list(captions[place].beams)], [list(complete[place].beams)])


def test_on_a_gpu_steps_are_replayed_and_nothing_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setattr(memory, "_scratch", {})
    monkeypatch.setenv("PYCAP_BACKEND", "reference")
    small = PreprocessSpec(resize=40, crop=32)
    paths = [member(tmp_path / "one"), member(tmp_path / "two", ("dog", "a", *WORDS[2:]), small, seed=9)]
    steps, plain = [], NIC.advance

    def advance(self: NIC, state: Any, words: Any) -> Any:
        before = cupy_standin.ndarray.reads
        result = plain(self, state, words)
        steps.append(cupy_standin.ndarray.reads - before)
        return result

    with backends.use("reference"):
        expected = found(pycap.load(paths, device="cpu"), photos(data), beam_size=3)
        monkeypatch.setattr(NIC, "advance", advance)
        captioner = pycap.load(paths, device="cuda")
        for _ in range(2):
            same(found(captioner, photos(data), beam_size=3), expected)
    assert steps == [0] * 4  # two steps of two members: one run, one recorded
