"""The order of the pairs: total, the same tomorrow, with too many of one caption and images that look alike at its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from pycap.data import DataError, Example
from pycap.data.features import FeatureStore
from pycap.data.names import hashed
from pycap.picking import duplicates
from pycap.picking.duplicates import near_duplicates
from pycap.picking.order import base, capped, last
from tests.data.test_features import ORIGIN
from tests.picking import pairs


def table(**columns: list[Any]) -> Any:
    """What an order needs of results."""
    kinds = {"logprobs": np.float64, "captions": np.uint64, "images": np.uint64}
    return SimpleNamespace(**{name: np.array(values, kinds[name]) for name, values in columns.items()})


def test_the_most_probable_first_then_the_files_order_then_those_without() -> None:
    assert base(table(logprobs=[-3, np.nan, -1, -3, -2]), "logprob").tolist() == [2, 4, 0, 3, 1]


def test_a_random_order_is_that_of_its_seed_and_of_each_image_alone() -> None:
    images = [hashed(f"{number}.jpg") for number in range(200)]
    orders = [base(table(images=images), "random", seed).tolist() for seed in (0, 1, -5, 2**70)]
    assert all(sorted(order) == list(range(200)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert base(table(images=images), "random", 1).tolist() == orders[1]
    fewer = base(table(images=images[:50]), "random", 1).tolist()
    assert fewer == [number for number in orders[1] if number < 50]
    ranks = np.argsort(orders[1])  # no trace of the file's order: |r| < 5 standard errors
    assert abs(np.corrcoef(ranks, np.arange(200))[0, 1]) < 5 / np.sqrt(200)


def test_too_many_of_one_caption_come_last_in_their_order() -> None:
    said = table(captions=[7, 7, 5, 7, 5, 9])
    order = np.array([3, 1, 2, 0, 4, 5])
    for limit, wanted in ((1, [3, 2, 5, 1, 0, 4]), (2, [3, 1, 2, 4, 5, 0]), (3, [3, 1, 2, 0, 4, 5])):
        assert last(order, capped(said, order, limit)).tolist() == wanted


def test_the_cap_is_that_of_a_loop_over_the_order() -> None:
    rng = np.random.default_rng(3)
    said = table(captions=rng.integers(0, 9, 300))
    order = rng.permutation(300)
    seen: dict[int, int] = {}
    naive = []
    for caption in said.captions[order].tolist():
        naive.append(seen.get(caption, 0) >= 4)
        seen[caption] = seen.get(caption, 0) + 1
    assert capped(said, order, 4).tolist() == naive


def features(path: Path, vectors: dict[str, np.ndarray]) -> Path:
    """A file of features of images of these names."""
    stack = np.stack(list(vectors.values()))
    origin = type(ORIGIN)(ORIGIN.cnn, ORIGIN.weights, ORIGIN.preprocess, stack.shape[1])
    with FeatureStore(path, origin) as store:
        store.add([Example(name, name, Path(name), ()) for name in vectors], stack)
    return path


def hashes(*names: str) -> np.ndarray:
    return np.array([hashed(name) for name in names], np.uint64)


def turned(degrees: float) -> np.ndarray:
    """A vector so far from `turned(0)`, and of another length."""
    return (3 + degrees) * np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees)), 0], np.float32)


def test_an_image_that_looks_like_an_earlier_one_is_told_and_shields_none(tmp_path: Path) -> None:
    # cos 15 degrees is 0.966, cos 20 is 0.940
    kept = {
        "t/a.jpg": turned(0),
        "t/b.jpg": turned(15),
        "t/c.jpg": turned(30),
        "t/d.jpg": turned(40),
        "t/e.jpg": turned(100),
    }
    file = features(tmp_path / "f.h5", kept)
    alike, known = near_duplicates(file, hashes("a.jpg", "b.jpg", "none.jpg", "c.jpg", "d.jpg", "e.jpg"), 0.95)
    assert alike.tolist() == [False, True, False, False, True, False] and known == 5
    alike, known = near_duplicates(file, hashes("d.jpg", "t/c.jpg", "b.jpg"), 0.95)
    assert alike.tolist() == [False, True, False] and known == 3
    assert not near_duplicates(file, hashes("a.jpg", "b.jpg"), 0.97)[0].any()


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = {f"{number}.jpg": rng.standard_normal(4).astype(np.float32) for number in range(120)}
    file, names = features(tmp_path / "f.h5", vectors), hashes(*vectors)
    whole = near_duplicates(file, names, 0.9)[0]
    rows = np.stack(list(vectors.values()))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    naive: list[int] = []
    for number in range(120):
        if not any(rows[number] @ rows[other] >= 0.9 for other in naive):
            naive.append(number)
    assert 10 < len(naive) < 110 and np.flatnonzero(~whole).tolist() == naive
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    monkeypatch.setattr(duplicates, "_KEPT_BLOCK", 3)
    assert np.array_equal(near_duplicates(file, names, 0.9)[0], whole)


def test_long_features_are_compared_as_exactly_as_is_said() -> None:
    rng = np.random.default_rng(0)
    one, noise = (rng.standard_normal((1000, 4096)).astype(np.float32) for _ in range(2))

    def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    project = duplicates._projection(4096)
    for seen in (
        lambda x: x,
        lambda x: np.maximum(x, 0),
    ):  # as after a ReLU, all vectors have a part in common, and so errors
        first, second = seen(one), seen(one + 0.3 * noise)
        truth = cosine(first, second)
        error = (cosine(project(first), project(second)) - truth) / ((1 - truth**2) / 16)
        assert 0.93 < truth.min() and abs(error).max() < 5 and abs(error.mean()) < 1
    assert 0.8 < error.std() < 1.2


def test_damaged_and_empty_features_look_like_none(tmp_path: Path) -> None:
    zero, bad = np.zeros(3, np.float32), np.array([np.nan, 1, 1], np.float32)
    file = features(
        tmp_path / "f.h5", {"a.jpg": turned(0), "b.jpg": turned(0), "c.jpg": zero, "d.jpg": zero, "e.jpg": bad}
    )
    with h5py.File(file, "r+") as opened:
        opened["data"][1] = turned(1)
    alike, known = near_duplicates(file, hashes("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"), 0.95)
    assert not alike.any() and known == 1


def test_features_of_other_images_are_an_error(tmp_path: Path) -> None:
    file = features(tmp_path / "f.h5", {"a.jpg": turned(0)})
    with pytest.raises(DataError, match="f.h5: features of none of the first 2 images"):
        near_duplicates(file, hashes("b.jpg", "t/a.jpg"), 0.95)
    with pytest.raises(DataError, match=r"none\.h5: no such file; name another$"):
        near_duplicates(tmp_path / "none.h5", np.zeros(1, np.uint64), 0.95)
    with pytest.raises(DataError, match="cannot be read as an HDF5 file"):
        near_duplicates(pairs.write(tmp_path / "g.h5", ["no"]), hashes("a.jpg"), 0.95)
