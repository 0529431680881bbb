"""--extend-vocab: what stays bit for bit, where new rows come from, what is told; runs that begin so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pycap
from pycap import backends, checkpoint
from pycap.captioner import build_model, load_weights
from pycap.checkpoint import Checkpoint
from pycap.config import ConfigError, TrainConfig
from pycap.data import DataError
from pycap.data.vocab import Vocabulary
from pycap.training.extend import AVERAGED, DRAWN, extend
from tests.train.runs import tiny

OLD = ("a", "dog", "runs", "zebra", "the", "sleeps")
CAPTIONS = ["A cat runs fast.", "The cat naps, a dog naps!", "a cow"]  # cat, naps twice; fast, cow once


def start_of(config: TrainConfig, words: tuple[str, ...] = OLD) -> Checkpoint:
    """A checkpoint of a fresh model, its projection's biases drawn too, as if it had been trained."""
    vocab = Vocabulary(words)
    model = {name: array.copy() for name, array in build_model(config, len(vocab)).state_arrays().items()}
    rng = np.random.default_rng(7)
    for name in ("projection.bias", "word_head.bias"):
        if name in model:
            model[name] = rng.normal(-2, 3, len(vocab)).astype(np.float32)
    return Checkpoint(Path("run/best"), model, {}, vocab, config, {}, "id", {})


@pytest.fixture(params=["nic", "merge"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> TrainConfig:
    return tiny(tmp_path, tmp_path, model=request.param, pretrain_words=1)


def test_old_words_keep_ids_and_rows_and_new_ones_follow(config: TrainConfig) -> None:
    start = start_of(config)
    before = {name: array.copy() for name, array in start.model.items()}
    longer, _ = extend(start, CAPTIONS, 2, seed=1)
    size = len(start.vocab)
    assert longer.vocab.words == (*start.vocab.words, "cat", "naps")
    assert list(longer.model) == list(before)
    grown = {name for name in before if longer.model[name].shape != before[name].shape}
    assert grown == {*DRAWN, *AVERAGED}
    for name, array in before.items():
        assert start.model[name].tobytes() == array.tobytes()  # the checkpoint itself is left alone
        assert longer.model[name][: len(array)].tobytes() == array.tobytes(), name
        assert longer.model[name].dtype == array.dtype
        assert len(longer.model[name]) == len(array) + (2 if name in grown else 0)
    for name in AVERAGED:
        mean = before[name][4:].mean(axis=0, dtype=np.float64).astype(np.float32)
        assert all(np.array_equal(row, mean) for row in longer.model[name][size:]), name


def test_words_seen_too_seldom_are_not_added(config: TrainConfig) -> None:
    start = start_of(config)
    assert extend(start, CAPTIONS, 1, seed=1)[0].vocab.words[10:] == ("cat", "naps", "cow", "fast")
    same, told = extend(start, CAPTIONS, 3, seed=1)
    assert same.vocab == start.vocab
    assert all(same.model[name] is array for name, array in start.model.items())
    assert "0 added" in told
    with pytest.raises(DataError, match="threshold 0"):
        extend(start, CAPTIONS, 0, seed=1)


def test_new_embeddings_are_drawn_as_the_old_are_distributed(tmp_path: Path) -> None:
    config = tiny(tmp_path, tmp_path)
    words = tuple(f"{a}{b}{c}" for a in "abcdefghij" for b in "abcdefghij" for c in "klmno")
    start = start_of(config, words)
    table = start.model["word_embedding.weight"]
    table[:] = table * np.linspace(0.1, 3, table.shape[1], dtype=np.float32) + np.arange(
        table.shape[1], dtype=np.float32
    )
    table[:4] = 1e6  # PAD, START, END, UNK are no words like others
    captions = [f"{a}{b}{c}" for a in "pqrst" for b in "abcdefghij" for c in "abcdefghij"]
    drawn = extend(start, captions, 1, seed=1)[0].model["word_embedding.weight"][len(start.vocab) :]
    assert drawn.shape == (500, table.shape[1])
    assert len(np.unique(drawn, axis=0)) == 500
    # Of two samples of 500, means differ by sqrt(2/500) deviations (standard error), deviations by sqrt(1/500); five of them.
    old_mean, old_std = table[4:].mean(0), table[4:].std(0)
    assert np.all(np.abs(drawn.mean(0) - old_mean) < 5 * np.sqrt(2 / 500) * old_std)
    assert np.all(np.abs(drawn.std(0) / old_std - 1) < 5 * np.sqrt(1 / 500))
    again, other = (extend(start, captions, 1, seed=seed)[0].model["word_embedding.weight"] for seed in (1, 2))
    assert np.array_equal(again[len(start.vocab) :], drawn)
    assert not np.any(other[len(start.vocab) :] == drawn)


def logits(model: object, images: np.ndarray, words: list[int]) -> np.ndarray:
    """float32 [steps, images, vocabulary]: of each next word."""
    from pycap.autograd import Tensor, no_grad

    with no_grad(), model.evaluating():  # type: ignore[attr-defined]
        state, rows = model.begin(Tensor(images)), []  # type: ignore[attr-defined]
        for word in words:
            found, state = model.advance(state, np.full(len(images), word, np.int32))  # type: ignore[attr-defined]
            rows.append(np.array(found))
    return np.stack(rows)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_old_logits_stay_and_new_words_get_at_most_their_share(config: TrainConfig, backend: str) -> None:
    start = start_of(config)
    longer, _ = extend(start, CAPTIONS, 1, seed=1)
    images = np.random.default_rng(3).normal(size=(3, 64, 64, 3)).astype(np.float32)
    with backends.use(backend):
        found = []
        for saved in (start, longer):
            model = build_model(config, len(saved.vocab))
            load_weights(model, saved)
            found.append(logits(model, images, [1, 5, 6, 8]))
    old, new = found
    assert old.shape == (4, 3, 10) and new.shape == (4, 3, 14)
    assert np.array_equal(new[..., :10], old)
    share = np.exp(new - new.max(-1, keepdims=True)).astype(np.float64)
    share = share[..., 10:].sum(-1) / share[..., 4:].sum(-1)  # among words
    assert np.all(share <= 4 / 10 + 1e-6)
    assert share.max() > 0


def test_what_is_told(tmp_path: Path) -> None:
    _, told = extend(start_of(tiny(tmp_path, tmp_path)), CAPTIONS, 2, seed=1)
    # 12 words: cat, fast, cat, naps, naps and cow were unknown; fast and cow still are.
    assert told == (
        "vocabulary: 6 words kept, 2 of which the new captions never use; 2 added that they use 2 times or more "
        "(cat, naps); 50.0 % of their words were not in it, 16.7 % are not now"
    )


def few_words(data: Path, out: Path) -> Path:
    return pycap.train(tiny(data, out, epochs=1, word_count_threshold=30)).folder


def test_a_run_begins_with_the_longer_vocabulary_and_resumes_with_it(data: Path, tmp_path: Path) -> None:
    first = few_words(data, tmp_path / "first")
    options = {"init_from": first, "extend_vocab": True}
    still = pycap.train(tiny(data, tmp_path / "still", epochs=1, learning_rate=0.0, **options)).folder
    before, after = checkpoint.load(first), checkpoint.load(still)
    size = len(before.vocab)
    assert len(after.vocab) > size and after.vocab.words[:size] == before.vocab.words
    assert after.vocab == Vocabulary.load(still / "vocab.json")
    for name, array in before.model.items():
        assert np.array_equal(after.model[name][: len(array)], array), name
    rows = [json.loads(line) for line in (still / "log.jsonl").read_text().splitlines()]
    assert f"{size - 4} words kept" in rows[0]["text"] and rows[0]["kind"] == "remark"
    whole = pycap.train(tiny(data, tmp_path / "whole", **options)).folder
    parts = pycap.train(tiny(data, tmp_path / "parts", **(options | {"epochs": 1}))).folder
    pycap.train(pycap.config.resumed(parts, epochs=2))
    one, other = (checkpoint.load(folder, prefer="last") for folder in (whole, parts))
    assert one.vocab == other.vocab == after.vocab
    assert all(np.array_equal(one.model[name], array) for name, array in other.model.items())


def test_without_it_the_vocabulary_stays(data: Path, tmp_path: Path) -> None:
    first = few_words(data, tmp_path / "first")
    second = pycap.train(tiny(data, tmp_path / "second", epochs=1, init_from=first)).folder
    assert checkpoint.load(second).vocab == checkpoint.load(first).vocab


@pytest.mark.usefixtures("gpu_standin")
def test_on_the_stand_in_for_a_gpu_it_is_the_cpus(data: Path, tmp_path: Path) -> None:
    first = few_words(data, tmp_path / "first")
    made = []
    for where in ("cpu", "cuda"):
        options = {"init_from": first, "extend_vocab": True, "epochs": 1, "device": where, "backend": "reference"}
        made.append(checkpoint.load(pycap.train(tiny(data, tmp_path / where, **options)).folder, prefer="last"))
    one, other = made
    assert len(one.vocab) > len(checkpoint.load(first).vocab)
    assert all(one.model[name].tobytes() == array.tobytes() for name, array in other.model.items())


def test_it_needs_a_checkpoint() -> None:
    with pytest.raises(ConfigError, match="extend_vocab: True needs a checkpoint.*--init-from"):
        TrainConfig(extend_vocab=True).validate()
    TrainConfig(extend_vocab=True, resume=Path("run")).validate()  # a run that began so
