"""What ranks do alike, each with its share, in one process: batches, steps on the CPU, what is gathered, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycap import backends
from pycap.checkpoint import CheckpointError
from pycap.config import TrainConfig
from pycap.data import DataError, demo
from pycap.data.images import ImageError
from pycap.data.loader import Batch, Loader
from pycap.distributed import ALONE, DistributedError, Ranks
from pycap.training import sources
from pycap.training.scst import Reward
from pycap.training.shares import Share, gather, led, share
from pycap.training.trainer import Diverged, Trainer
from tests.data.fixtures import truncate
from tests.data.loading import SPEC, VOCAB, make_examples, make_loader
from tests.lockstep import Lockstep, together
from tests.train import test_scst as scst
from tests.train import test_step as one
from tests.train.rank_steps import between, cut
from tests.train.runs import lines

# Batches ----------------------------------------------------------------------------------------------------------------


def shards(examples: Any, size: int, **options: Any) -> list[Loader]:
    return [make_loader(examples, shard=(rank, size), **options) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_of_a_batch_are_together_the_batch(tmp_path: Path, size: int) -> None:
    """Of ten images the last batch has two, and five shards share batches of four."""
    examples = make_examples(tmp_path, 10, captions=6)
    loaders = shards(examples, size)
    for whole, *parts in zip(make_loader(examples).epoch(3), *(loader.epoch(3) for loader in loaders), strict=True):
        assert {part.index for part in parts} == {whole.index}
        assert [len(part) for part in parts] == [
            len(whole) * (rank + 1) // size - len(whole) * rank // size for rank in range(size)
        ]
        assert sum((part.file_names for part in parts), ()) == whole.file_names
        assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images)
        assert np.array_equal(np.concatenate([part.crops for part in parts]), whole.crops)
        columns = [column for part in parts for column in part.tokens.T]
        for own, expected in zip(columns, whole.tokens.T, strict=True):
            assert np.array_equal(own, expected[: len(own)]) and not expected[len(own) :].any()
        for part, loader in zip(parts, loaders, strict=True):
            assert part.tokens.shape[1] == 5 * len(part) and len(part) <= loader.most
            assert (part.images.dtype, part.crops.dtype, part.tokens.dtype) == (np.uint8, np.int32, np.int32)


def test_what_one_shard_cannot_read_all_leave_out_and_list_once(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 6)
    for bad in (0, 1, 5):
        truncate(examples[bad].path)
    listed = [tmp_path / f"{name}.jsonl" for name in ("alone", "shared")]
    list(make_loader(examples, train=False, workers=0, skipped_path=listed[0]).epoch(0))
    first, second = shards(examples, 2, train=False, workers=0)
    first._skipped_path = listed[1]
    names = []
    for parts in zip(first.epoch(0), second.epoch(0), strict=True):
        names.append([part.file_names for part in parts])
        told = [loader.news() for loader in (first, second)]
        first.skip(told[1])
        second.skip(told[0])
    assert names == [[(), ("2.jpg", "3.jpg")], [("4.jpg",), ()]]
    assert first.skipped.keys() == second.skipped.keys() == {"0.jpg", "1.jpg", "5.jpg"}
    assert first.news() == second.news() == []
    assert lines(listed[1]) == lines(listed[0])


def test_no_image_at_all_is_an_error_on_every_shard(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 4)
    for example in examples:
        truncate(example.path)
    first, second = shards(examples, 2, workers=0)
    epochs = [first.epoch(0), second.epoch(0)]
    assert [len(next(epoch)) for epoch in epochs] == [0, 0]
    told = [first.news(), second.news()]
    first.skip(told[1])
    second.skip(told[0])
    for epoch in epochs:
        with pytest.raises(DataError, match="none of 4 images can be read"):
            next(epoch)


# What is told -----------------------------------------------------------------------------------------------------------


def test_a_share_is_told_from_all() -> None:
    counts = [(2, 9), (0, 0), (3, 14)]
    assert together(3, lambda ranks: share(ranks, *counts[ranks.rank])) == [Share(first, 5, 23) for first in (0, 2, 2)]
    assert share(ALONE, 4, 11) == Share(0, 4, 11)


@pytest.mark.parametrize("most", [None, 1, 4, 9])
def test_gathered_things_are_in_the_order_of_one_process(most: int | None) -> None:
    made = [[(0, "a"), (0, "b"), (2, "g")], [(0, "c"), (1, "d")], [(1, "e"), (1, "f"), (2, "h"), (2, "i")]]
    expected = list("abcdefghi")[: most or 9]
    assert together(3, lambda ranks: gather(ranks, made[ranks.rank], most)) == [expected] * 3


class Odd(DataError):
    """An error that pickle cannot make again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}: {second}")


@pytest.mark.parametrize(
    ("error", "kind"),
    [(CheckpointError("full"), CheckpointError), (Odd("a", "b"), DistributedError), (ImageError("a", "b"), Exception)],
)
def test_the_first_ranks_error_is_everyones(error: Exception, kind: type[Exception]) -> None:
    def fails(ranks: Lockstep) -> str:
        def work() -> None:
            assert ranks.rank == 0
            raise error

        with pytest.raises(type(error) if ranks.rank == 0 else kind) as raised:
            led(ranks, work)
        return str(raised.value)

    assert together(2, fails) == [str(error)] * 2


def test_what_the_first_rank_makes_is_everyones() -> None:
    assert together(3, lambda ranks: led(ranks, lambda: [ranks.rank, None])) == [[0, None]] * 3


def test_ranks_share_a_machine_and_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even images that do not fit in memory need no store then, which only one process could write."""
    monkeypatch.setattr(sources, "_CACHE_BYTES", 4000)
    examples = make_examples(tmp_path, 5)
    source, config = sources.Source([tmp_path], examples, examples[:2], []), TrainConfig(batch_size=4)
    how = (source, VOCAB, SPEC, config, tmp_path, 3)

    def loaders(ranks: Ranks) -> Any:
        made = sources.loaders(*how, None, ranks)
        made.close()
        return [
            (each.shard, each.batch_size, each.workers, each._cache_room, each._skipped_path, each.store is None)
            for each in (made.train, made.val)
        ]

    listed = tmp_path / "skipped.jsonl"
    assert together(2, loaders) == [
        [((0, 2), 4, 1, 1000, listed, True), ((0, 2), 6, 1, 1000, listed, True)],
        [((1, 2), 4, 1, 1000, None, True), ((1, 2), 6, 1, 1000, None, True)],
    ]
    assert [row[1:] for row in loaders(ALONE)] == [(4, 2, 2000, listed, False), (3, 2, 2000, listed, False)]


def test_the_demo_set_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn: list[Path] = []
    generate = demo.generate
    monkeypatch.setattr(demo, "generate", lambda folder, **how: drawn.append(folder) or generate(folder, **how))
    said: list[str] = []
    config = TrainConfig(demo_train=2, demo_val=1, image_size=32)
    found = together(3, lambda ranks: sources.find(config, said.append, ranks)[0].digest())
    assert len(set(found)) == 1 and drawn == [Path("data/demo")]


# Steps ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _reference() -> Iterator[None]:
    with backends.use("reference"):
        yield


def trainer(ranks: Ranks = ALONE, **options: Any) -> Trainer:
    """With SGD: a step is the gradient, and not what is left of it when its size has been divided out, which is rounding
    where it is small (epsilon, below, keeps such small steps small)."""
    return one.trainer(False, ranks=ranks, **({"optimizer": "sgd", "learning_rate": 0.1} | options))


def cuts(whole: Batch, places: list[int]) -> list[Batch]:
    """Shares that end at these places."""
    return [between(whole, *ends) for ends in zip([0, *places], [*places, len(whole)], strict=True)]


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Weights after a few steps: float32, whose sums are in another order."""
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6 * max(1, np.abs(array).max()), err_msg=name)


OPTIONS: dict[str, dict[str, Any]] = {
    "joint": {},
    "passes": {"micro_batch": 2},
    "words": {"pretrain_words": 1},
    "merge": {"model": "merge"},
    "blind": {"blind": True, "weight_decay": 0.1},  # which what sees must not be given for want of a gradient
    "adam": {"grad_clip_mode": "value", "grad_clip": 2e-3, "optimizer": "adam", "learning_rate": 1e-2, "epsilon": 1e-2},
}


@pytest.mark.parametrize("places", [[3], [0, 1], [5, 5], [1, 4, 5]])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_steps_of_ranks_are_those_of_one(options: dict[str, Any], places: list[int]) -> None:
    """With dropout; of uneven shares some have no image."""
    plain = trainer(**options)
    expected = [plain.step(one.batch(number, 5)) for number in range(3)]

    def part(ranks: Lockstep) -> tuple[list[Any], dict[str, Any]]:
        made = trainer(ranks, **options)
        results = [made.step(cuts(one.batch(number, 5), places)[ranks.rank]) for number in range(3)]
        return results, made.model.state_arrays()

    (results, arrays), *others = together(len(places) + 1, part)
    for result, wanted in zip(results, expected, strict=True):
        assert (result.step, result.images, result.tokens, result.lr) == (
            wanted.step, wanted.images, wanted.tokens, wanted.lr,
        )  # fmt: skip
        assert result.loss == pytest.approx(wanted.loss, rel=1e-6)
        assert result.norms == pytest.approx(wanted.norms, rel=1e-5)
    close(arrays, plain.model.state_arrays())
    for told, own in others:
        assert told == results
        assert all(np.array_equal(own[name], array) for name, array in arrays.items())


def test_ranks_draw_what_one_process_draws() -> None:
    reward = Reward(scst.talk(0), scst.TALK)
    options: dict[str, Any] = {"drop_prob_lm": 0.0, "drop_prob_cnn": 0.0, "reward": reward}
    plain = trainer(**options)
    given = scst.a_batch(scst.talk(0))
    expected = [plain.step(given) for _ in range(3)]
    places = [1, 1]

    def part(ranks: Lockstep) -> list[Any]:
        made = trainer(ranks, **options)
        return [made.step(cuts(given, places)[ranks.rank]) for _ in range(3)]

    found, *others = together(3, part)
    assert others == [found] * 2
    for result, wanted in zip(found, expected, strict=True):
        assert result.figures == pytest.approx(wanted.figures, rel=1e-12)
        words, ends = (result.figures[name] * 3 * len(given) for name in ("length", "ended"))
        assert result.tokens == wanted.tokens == round(words + ends)
        assert result.loss == pytest.approx(wanted.loss, rel=1e-5, abs=1e-6)
        assert result.norms == pytest.approx(wanted.norms, rel=1e-4)
    assert len({result.figures["reward"] for result in found}) > 1


@pytest.mark.parametrize("frozen", [False, True])
def test_only_gradients_of_what_learns_are_exchanged(frozen: bool) -> None:
    def part(ranks: Lockstep) -> tuple[int, int]:
        made = trainer(ranks, freeze_cnn=frozen)
        made.step(cut(one.batch(0), ranks.rank, 2))
        learning = made.model.learning(False)
        return sum(ranks.sent), sum(4 * t.data.size for n, t in made.model.named_parameters().items() if n in learning)

    for sent, wanted in together(2, part):
        assert wanted <= sent < wanted + 64 * 30  # each begins at a multiple of 64 bytes


def test_what_is_learned_may_change_from_step_to_step() -> None:
    how = {"pretrain_words": 1, "finetune_cnn_after": 1}

    def steps(made: Trainer, share: Any) -> list[float]:
        losses = []
        for epoch in range(3):
            made.begin_epoch(epoch)
            losses += [made.step(share(one.batch(number))).loss for number in range(2)]
        return losses

    expected = steps(trainer(**how), lambda whole: whole)
    found = together(2, lambda ranks: steps(trainer(ranks, **how), lambda whole: cut(whole, ranks.rank, 2)))
    assert found[0] == found[1] == pytest.approx(expected, rel=1e-6)


def test_a_batch_of_which_nobody_has_an_image_is_no_step() -> None:
    def part(ranks: Lockstep) -> tuple[bool, int]:
        made = trainer(ranks)
        return made.launch(between(one.batch(0), 0, 0)) is None, made.step_number

    assert together(2, part) == [(True, 0)] * 2


@pytest.mark.parametrize("micro", [0, 1])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_all_ranks_diverge_where_one_does(place: str, micro: int) -> None:
    """With the names of all of the batch's files, and nothing changed."""

    def part(ranks: Lockstep) -> tuple[str, bool]:
        made = trainer(ranks, micro_batch=micro, model="merge")
        made.step(cut(one.batch(0), ranks.rank, 2))
        before = one.weights(made)
        parameter = made.model.named_parameters()["projection.bias"]
        with pytest.raises(Diverged) as raised, pytest.MonkeyPatch.context() as patch:
            if ranks.rank == 1 and place == "loss":
                patch.setattr(
                    made.model, "loss", lambda *a, **how: type(made.model).loss(made.model, *a, **how) * np.nan
                )
            elif ranks.rank == 1:
                plain = ranks.start_sum

                def start(array: Any) -> Any:
                    array[0] = np.inf
                    return plain(array)

                patch.setattr(ranks, "start_sum", start)
            made.step(cut(one.batch(1), ranks.rank, 2))
        assert not parameter.fresh
        return str(raised.value), one.weights(made) == before

    (first, kept), (second, also) = together(2, part)
    assert first == second and kept and also
    assert "step 2 " in first and "images of this batch: 1-0.jpg, 1-1.jpg, 1-2.jpg, 1-3.jpg" in first
    assert ("the loss is nan" if place == "loss" else "holds NaN or infinity") in first


def test_the_loss_of_held_out_images_is_a_mean_over_all_ranks_tokens() -> None:
    expected = trainer().loss([one.batch(0, 5), one.batch(1, 3)])
    given = [cuts(one.batch(0, 5), [1]), cuts(one.batch(1, 3), [0])]

    def part(ranks: Lockstep) -> float:
        return trainer(ranks).loss([batch for parts in given if len(batch := parts[ranks.rank])])

    first, second = together(2, part)
    assert first == second == pytest.approx(expected, rel=1e-6)
