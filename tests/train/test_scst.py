"""Self-critical training: its reward, its gradient against the expected reward's own, its steps on every path, whole runs."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycap
from pycap import backends, checkpoint, cli
from pycap.autograd import Tensor
from pycap.config import ConfigError, TrainConfig, parse_args, resumed
from pycap.data import Example
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.data.vocab import END, PAD, START, UNK, Vocabulary
from pycap.models import targets
from pycap.models.nic import NIC
from pycap.models.vgg import VGG
from pycap.training.run import Stopped
from pycap.training.scst import Critic, Drawn, Reward
from pycap.training.start import MODEL
from pycap.training.trainer import Trainer
from tests.train import test_step as steps
from tests.train.runs import rows, tiny
from tests.train.test_run import stop_after

# A language of two words, of which a sentence has two at most.
WORDS = Vocabulary(["man", "runs"])
SAID = (("a man runs",), ("runs", "man runs"), ("a dog",))
CORPUS = [Example(i, f"{i}.jpg", Path(f"{i}.jpg"), captions) for i, captions in enumerate(SAID)]
MAN, RUNS = 4, 5


def test_the_reward_counts_the_end_and_words_that_the_model_lacks() -> None:
    reward = Reward(CORPUS, WORDS)
    # All n-grams with man or runs are of two images of three, and END weighs nothing. Against "man runs" all of up to 3 words
    # are right; against "runs" one of two words, and one of two bigrams, the one with END.
    expected = 10 / 4 * (3 + (1 / np.sqrt(2) + 1 / np.sqrt(2)) * np.exp(-1 / 72)) / 2
    ended, cut, unknown, empty = reward(CORPUS[1], [[MAN, RUNS, END], [MAN, RUNS], [UNK, RUNS, END], [END]])
    assert ended == pytest.approx(expected, rel=1e-12)
    assert 0 < unknown < cut < ended and empty == 0.0
    # "a" is no word of the model's, but one of the reference.
    assert reward(CORPUS[0], [[MAN, RUNS, END]])[0] < 10 * 3 / 4
    assert reward(CORPUS[2], [[UNK, UNK, END]])[0] == 0.0


def toy(dtype: type = np.float32) -> NIC:
    rng = np.random.default_rng(3)
    model = NIC(
        VGG("vgg_micro", 32, rng, width=0.25, fc_size=8, drop=0.0), len(WORDS), rng, rnn_size=6, drop_prob_lm=0.0
    )
    model.projection.bias.data[PAD] = -40  # as a trained model, but more so: it is never drawn
    for parameter in model.named_parameters().values():
        parameter.data = parameter.data.astype(dtype)
    model.train(False)
    return model


def image(dtype: type = np.float32) -> Tensor:
    return Tensor(np.random.default_rng(1).standard_normal((1, 32, 32, 3)).astype(dtype))


def as_tokens(sentences: Sequence[Sequence[int]]) -> np.ndarray:
    made = np.full((4, len(sentences)), PAD, np.int32)
    made[0] = START
    for column, sentence in enumerate(sentences):
        made[1 : 1 + len(sentence), column] = sentence
    return made


def gradient(model: NIC, tokens: np.ndarray, factors: np.ndarray, total: int) -> np.ndarray:
    """Of the weighted loss of captions of the one image, all parameters in one vector."""
    size = targets.count(tokens, words_only=False)
    wanted = targets.caption_targets(1, tokens, len(tokens), size, total, factors)
    images = image(model.projection.weight.dtype.type)
    model.weighted_loss(images, wanted).backward(np.float32(1))
    parameters = model.named_parameters().values()
    flat = np.concatenate([p.grad.reshape(-1) for p in parameters if p.fresh]).astype(np.float64)
    for parameter in parameters:
        parameter.fresh = False
    return flat


def logprobs(model: NIC, sentences: Sequence[Sequence[int]]) -> np.ndarray:
    images = image(model.projection.weight.dtype.type)
    return np.array([-model.loss(images, as_tokens([s]), normalizer=1).item() for s in sentences])


#: Every sentence: END, one word and END, or two words, after which there is no room.
EVERY = [
    [END],
    *([w, END] for w in (START, UNK, MAN, RUNS)),
    *map(list, itertools.product((START, UNK, MAN, RUNS), repeat=2)),
]


def test_the_gradient_is_reinforces_by_finite_differences() -> None:
    """With the drawn sentences and advantages held fixed, of -mean(advantage * log p), in float64."""
    rng = np.random.default_rng(0)
    with backends.use("reference"):
        model = toy(np.float64)
        drawn = [EVERY[i] for i in rng.integers(0, len(EVERY), 8)]
        factors = rng.standard_normal(8).astype(np.float32)

        def objective() -> float:
            return -float(np.mean(factors.astype(np.float64) * logprobs(model, drawn)))

        found = gradient(model, as_tokens(drawn), factors, len(drawn))
        parameters = list(model.named_parameters().values())
        direction = [rng.standard_normal(p.shape) for p in parameters]
        values, step = [], 1e-6
        for sign in (1, -1):
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.data += sign * step * along * (1 if sign == 1 else 2)
            values.append(objective())
    expected = (values[0] - values[1]) / (2 * step)
    flat = np.concatenate([along.reshape(-1) for along in direction])
    assert found @ flat == pytest.approx(expected, rel=1e-6)


def test_drawn_gradients_average_to_that_of_the_expected_reward() -> None:
    """The bound is derived: four standard errors of the mean of so many draws, whose variance is summed over all sentences."""
    count = 4000
    config = TrainConfig(seq_per_img=count, max_length=2, drop_prob_lm=0, drop_prob_cnn=0)
    with backends.use("reference"):
        model, reward = toy(), Reward(CORPUS, WORDS)
        drawn = Critic(model, reward, config).draw(a_batch([CORPUS[1]]), lambda part: image(), 0)
        rewards = np.array(reward(CORPUS[1], EVERY))
        probabilities = np.exp(logprobs(model, EVERY))
        scores = np.stack([gradient(model, as_tokens([s]), np.ones(1, np.float32), 1) for s in EVERY])  # of -log p
        sampled = gradient(model, drawn.batch.tokens, drawn.advantages, count)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6) and probabilities.max() < 0.5
    assert drawn.figures["reward"] == pytest.approx(
        probabilities @ rewards, abs=4 * np.sqrt(probabilities @ rewards**2 / count)
    )
    true = (probabilities * rewards) @ scores
    # The baseline takes nothing away: probabilities sum to 1, so their gradients to 0.
    np.testing.assert_allclose(probabilities @ scores, 0, atol=1e-5 * np.abs(scores).max())
    advantages = rewards - drawn.figures["baseline"]
    rng = np.random.default_rng(0)
    for along in (true, *rng.standard_normal((5, len(true)))):
        along = along / np.linalg.norm(along)
        each = advantages * (scores @ along)
        error = np.sqrt((probabilities @ each**2 - (probabilities @ each) ** 2) / count)
        assert abs(sampled @ along - true @ along) < 4 * error
    each = advantages * (scores @ true)
    assert probabilities @ each > 20 * np.sqrt(probabilities @ each**2 / count), (
        "a wrong sign, or factor, would be seen"
    )


def test_steps_raise_the_expected_reward() -> None:
    """Of all sentences about three images, by their probabilities: nothing of it is drawn."""
    config = TrainConfig(
        seq_per_img=20, max_length=2, drop_prob_lm=0, drop_prob_cnn=0, learning_rate=2e-2, image_size=32, resize=32
    )
    given = replace(a_batch(CORPUS), images=np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    given.crops[:, :2] = 0
    with backends.use("reference"):
        reward = Reward(CORPUS, WORDS)
        made = Trainer(toy(), config, PreprocessSpec(resize=32, crop=32), 30, resident=False, reward=reward)
        made.begin_epoch(0)

        def expected() -> list[float]:
            found = []
            for i, example in enumerate(CORPUS):
                pixels = made._input(given.images[i : i + 1], given.crops[i : i + 1])
                losses = [made.model.loss(pixels, as_tokens([s]), normalizer=1).item() for s in EVERY]
                found.append(float(np.exp(-np.array(losses)) @ reward(example, EVERY)))
            return found

        before = expected()
        for _ in range(40):
            made.step(given)
        after = expected()
    assert after[0] > 2.5 * before[0] and after[1] > 3 * before[1] > 0
    assert before[2] == after[2] == 0, "of the third image it can say nothing that is right"


# Steps ------------------------------------------------------------------------------------------------------------------

LETTERS = [f"{a}{b}" for a in "abc" for b in "abcdefghijk"]
TALK = Vocabulary(LETTERS)  # as many ids as the captions of the other steps' tests


def talk(seed: int, images: int = 4) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(i, f"{seed}-{i}.jpg", Path("x"), tuple(" ".join(rng.choice(LETTERS[:9], 5)) for _ in range(3)))
        for i in range(images)
    ]


def a_batch(examples: list[Example]) -> Batch:
    return replace(steps.batch(0, len(examples)), examples=tuple(examples))


def trainer(resident: bool, **options: Any) -> Trainer:
    made = steps.trainer(
        resident, reward=Reward(talk(0) + talk(1), TALK), drop_prob_lm=0.0, drop_prob_cnn=0.0, **options
    )
    assert len(TALK) == steps.VOCABULARY and made.objective == "scst"
    return made


def told(made: Trainer, count: int = 4) -> list[tuple[Any, ...]]:
    results = [made.step(a_batch(talk(number % 2))) for number in range(count)]
    return [(r.loss, *r.figures.values()) for r in results]


@pytest.mark.parametrize("options", [{}, {"micro_batch": 3}, {"freeze_cnn": True}, {"model": "merge"}])
def test_steps_that_stay_on_the_device_are_those_of_the_host(options: dict[str, Any]) -> None:
    with backends.use("reference"):
        plain, resident = told(trainer(False, **options)), told(trainer(True, **options))
    assert len({loss for loss, *_ in plain}) == 4
    for expected, got in zip(plain, resident, strict=True):
        assert got[1:] == expected[1:] and got[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-6)


def test_on_the_stand_in_steps_are_recorded_and_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with backends.use("reference"):
        plain = trainer(True)
        expected = told(plain, 8)
    with steps.standin(monkeypatch):
        made = trainer(True)
        assert told(made, 8) == expected and steps.weights(made) == steps.weights(plain)
        assert len(steps.device_step(made).graphs) > 0


def test_micro_batches_draw_the_same_and_learn_the_same() -> None:
    with backends.use("reference"):
        whole, parts = trainer(False), trainer(False, micro_batch=1)
        first, second = told(whole, 1), told(parts, 1)
        assert first[0][1:] == second[0][1:] and first[0][0] == pytest.approx(second[0][0], rel=1e-5)
        for name, tensor in whole.model.named_parameters().items():
            np.testing.assert_allclose(tensor.grad, parts.model.named_parameters()[name].grad, rtol=1e-3, atol=1e-7)


def test_what_is_drawn_depends_on_the_seed_and_the_step() -> None:
    with backends.use("reference"):
        made, given = trainer(False), a_batch(talk(0))

        def draw(step: int, **options: Any) -> Drawn:
            critic = Critic(made.model, Reward(talk(0), TALK), replace(made.config, **options))
            return critic.draw(given, lambda part: made._input(given.images[part], given.crops[part]), step)

        first, again, *others = draw(5), draw(5), draw(6), draw(5, seed=made.config.seed + 1)
    assert first.batch.tokens.tobytes() == again.batch.tokens.tobytes()
    assert first.batch.tokens.tobytes() not in [other.batch.tokens.tobytes() for other in others]
    tokens, figures = first.batch.tokens, first.figures
    assert tokens.shape[1] == 12 and (tokens[0] == START).all() and first.batch.images is given.images
    words, ends = (tokens[1:] != PAD).sum(0) - (tokens == END).sum(0), (tokens == END).sum(0)
    assert figures["length"] == pytest.approx(words.mean()) and figures["ended"] == ends.mean() < 1
    assert (words[ends == 0] == made.config.max_length).all() and words.max() == made.config.max_length
    assert first.advantages.mean() == pytest.approx(figures["reward"] - figures["baseline"], abs=1e-6)


# Whole runs -------------------------------------------------------------------------------------------------------------

PLAIN = {"drop_prob_lm": 0.0, "drop_prob_cnn": 0.0}


def critical(data: Path, out: Path, start: Path, **options: Any) -> TrainConfig:
    how = {"stage": "scst", "datasets": "coco", "init_from": start, "save_best_on": "CIDEr", **PLAIN, **options}
    return tiny(data, out, **how)


def test_a_run_resumes_bit_for_bit(data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pycap.train(critical(data, tmp_path / "whole", trained)).folder
    with monkeypatch.context() as patch:
        stop_after(patch, 4, signal.SIGTERM)
        with pytest.raises(Stopped):
            pycap.train(critical(data, tmp_path / "parts", trained))
    parts = pycap.train(resumed(tmp_path / "parts")).folder
    told = ("step", "objective", "loss", "reward", "baseline", "length", "ended")
    train = [[row[name] for name in told] for row in rows(whole, "train")]
    assert len(train) == 6 and all(row[1] == "scst" for row in train)
    assert [[row[name] for name in told] for row in rows(parts, "train")] == train
    validations = [(row["step"], row["epoch"], row["CIDEr"]) for row in rows(whole, "val")]
    assert [row[:2] for row in validations] == [(0, 0), (3, 1), (6, 2)]
    assert [(row["step"], row["epoch"], row["CIDEr"]) for row in rows(parts, "val")] == validations
    assert (whole / "last/model.safetensors").stat().st_size == (parts / "last/model.safetensors").stat().st_size
    for name, array in checkpoint.load(whole, prefer="last").model.items():
        np.testing.assert_array_equal(checkpoint.load(parts, prefer="last").model[name], array)


def test_the_model_is_the_checkpoints(data: Path, trained: Path, tmp_path: Path) -> None:
    """The recipe says nothing of sizes, and the command line need not either."""
    line = f"--stage scst --init-from {trained} --data {data} --out-dir {tmp_path / 'run'} --epochs 1 --batch-size 24"
    folder = pycap.train(parse_args([*line.split(), "--workers=1", "--threads=2", "--log-every=1"])).folder
    made, before = (checkpoint.load(run).config for run in (folder, trained))
    assert all(getattr(made, name) == getattr(before, name) for name in MODEL)
    assert (made.cnn, made.rnn_size, made.image_size, made.flip) == ("vgg_micro", 24, 64, False)
    assert made.save_best_on == "CIDEr" and len(rows(folder, "train")) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init_from": None}, "init_from: stage scst goes on from a model that captions already"),
        ({"drop_prob_lm": 0.5}, "drop_prob_lm: 0.5: stage scst draws captions from the whole model"),
        ({"drop_prob_cnn": 0.1}, "drop_prob_cnn: 0.1: stage scst draws"),
        ({"pretrain_words": 2}, "pretrain_words: 2 belongs to a model's beginning"),
    ],
)
def test_what_a_run_cannot_do_is_said_before_it_begins(
    data: Path, trained: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        pycap.train(critical(data, tmp_path / "run", trained, **options))
    assert not (tmp_path / "run").exists()


def test_a_merge_captioner_on_features(data: Path, tmp_path: Path) -> None:
    fed = {"model": "merge", "freeze_cnn": True, "features": "auto", "epochs": 1, **PLAIN}
    start = pycap.train(tiny(data, tmp_path / "merge", **fed)).folder
    folder = pycap.train(critical(data, tmp_path / "run", start, **fed)).folder
    assert [row["objective"] for row in rows(folder, "train")] == ["scst"] * 3
    before, after = (checkpoint.load(run, prefer="last").model for run in (start, folder))
    changed = {name.split(".")[0] for name, array in before.items() if not np.array_equal(array, after[name])}
    assert "projection" in changed and "cnn" not in changed


def test_evaluate_reads_the_data_sets_that_the_run_was_trained_on(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = critical(data, tmp_path / "run", trained, datasets=f"coco={data}", max_steps=1, val_images_use=2)
    folder = pycap.train(replace(config, data=None)).folder
    with pytest.raises(SystemExit) as done:
        cli.main(["evaluate", str(folder), "--data", str(data), "--images", "2"])
    assert done.value.code == 0 and "CIDEr" in capsys.readouterr().out
