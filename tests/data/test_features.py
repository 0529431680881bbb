"""The file of features: what comes back, other origins, killed writers, damage, images of one name, full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pycap.data import DataError, Example
from pycap.data.features import FeatureStore, Origin, weights_hash
from pycap.data.images import ImageError, PreprocessSpec
from pycap.data.store import ImageStore
from tests.data.fixtures import write_jpeg
from tests.data.test_store import ROOT, make_examples

ORIGIN = Origin("vgg_micro", weights_hash({"fc7.bias": np.arange(5)}), PreprocessSpec(resize=72, crop=64), 24)


def vectors(examples: list[Example], seed: int = 0) -> np.ndarray:
    """float32 [n, 24] that only these examples have."""
    rows = [np.random.default_rng([seed, int(e.image_id)]).standard_normal(24, np.float32) for e in examples]
    return np.stack(rows)


def held(store: FeatureStore, examples: list[Example], seed: int = 0) -> bool:
    return all(np.array_equal(store.get(e), vectors([e], seed)[0]) for e in examples)


def test_what_is_added_comes_back_and_is_not_missed(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "images", 7)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert store.missing(examples + examples) == examples
        store.add(examples[:3], vectors(examples[:3]))
        assert held(store, examples[:3]) and store.missing(examples) == examples[3:]
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert store.missing(examples) == examples[3:] and held(store, examples[:3])
        store.add(examples[3:], vectors(examples[3:]))
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert store.missing(examples) == [] and held(store, examples) and len(store) == 7 and store.report == []
    with h5py.File(tmp_path / "f.h5") as file:  # what others read
        assert file["data"].shape == (7, 24) and file["data"].dtype == np.float32
        assert [name.decode() for name in file["index"]["name"]] == [f"{i}.jpg" for i in range(7)]
        assert (file.attrs["cnn"], file.attrs["weights"]) == ("vgg_micro", ORIGIN.weights)


OTHERS = {
    "weights": replace(ORIGIN, weights=weights_hash({"fc7.bias": np.arange(6)})),
    "preprocessing": replace(ORIGIN, preprocess=PreprocessSpec(resize=64, crop=64)),
    "means": replace(ORIGIN, preprocess=replace(ORIGIN.preprocess, mean=(1, 2, 3))),
    "cnn": replace(ORIGIN, cnn="vgg11"),
    "size": replace(ORIGIN, size=25),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_features_of_another_origin_are_refused_with_both_named(tmp_path: Path, other: Origin) -> None:
    examples = make_examples(tmp_path / "images", 2)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        store.add(examples, vectors(examples))
    with pytest.raises(DataError, match="name another file") as refused:
        FeatureStore(tmp_path / "f.h5", other)
    for origin in (ORIGIN, other):
        assert origin.weights[:16] in str(refused.value) and str(origin) in str(refused.value)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert held(store, examples)


def test_the_hash_is_of_names_shapes_and_numbers() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.ones(2, np.float32)}
    same = {"b": np.ones(2, np.float32), "a": np.arange(12, dtype=np.float32)[::2] / 2}
    assert weights_hash(arrays) == weights_hash(same)
    different = [
        {"a": arrays["a"]},
        arrays | {"a": arrays["a"].reshape(2, 3)},
        arrays | {"a": np.arange(1, 7, dtype=np.float32)},
        {"a": arrays["a"], "c": arrays["b"]},
    ]
    assert len({weights_hash(each) for each in [arrays, *different]}) == 5


def test_an_image_without_features_is_named(tmp_path: Path) -> None:
    known, strange, broken = make_examples(tmp_path / "images", 3)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        store.add([known], vectors([known]))
        with pytest.raises(ImageError, match=r"1\.jpg: no features of it in .*f\.h5"):
            store.get(strange)
        store.fail(broken, ImageError(str(broken.path), "corrupt or cut short"))
        with pytest.raises(ImageError, match=r"2\.jpg: corrupt or cut short"):
            store.get(broken)
        assert store.missing([broken]) == [broken]  # another time it may be whole


def test_two_images_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one = Example(1, "a.jpg", write_jpeg(tmp_path / "one" / "a.jpg", seed=1), ())
    other = Example(2, "a.jpg", write_jpeg(tmp_path / "other" / "a.jpg", seed=2, height=90), ())
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        store.add([one], vectors([one]))
        assert store.missing([one, other]) == [other]
        store.add([other], vectors([other]))
        assert held(store, [one, other])


def test_a_name_longer_than_its_place_in_the_file_is_one_all_the_same(tmp_path: Path) -> None:
    image = write_jpeg(tmp_path / "a.jpg")
    one, other = (Example(i, "\u00e9" * 300 + f"/{i}.jpg", image, ()) for i in (1, 2))
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        store.add([one], vectors([one]))
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert store.missing([one, other]) == [other] and held(store, [one])


def test_a_damaged_vector_is_noticed_and_made_anew(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "images", 3)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        store.add(examples, vectors(examples))
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["data"][1, 5] += 1
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert store.missing(examples) == [examples[1]] and "1.jpg are damaged" in store.report[0]
        store.add([examples[1]], vectors([examples[1]]))
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert held(store, examples) and store.missing(examples) == []


def test_what_a_killed_writer_had_begun_is_written_over(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "images", 4)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        store.add(examples[:2], vectors(examples[:2]))
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["data"].resize(5, axis=0)  # vectors without their rows of the index
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert store.missing(examples) == examples[2:] and store.report == []
        store.add(examples[2:], vectors(examples[2:]))
        assert held(store, examples)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert held(store, examples) and len(store) == 4


def test_vectors_reach_the_file_before_the_rows_that_point_at_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = make_examples(tmp_path / "images", 3)
    lengths: list[tuple[int, int]] = []
    flush = h5py.File.flush
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        monkeypatch.setattr(
            h5py.File, "flush", lambda file: lengths.append((len(file["data"]), len(file["index"]))) or flush(file)
        )
        store.add(examples, vectors(examples))
    assert lengths == [(3, 0), (3, 3)]


def test_an_index_longer_than_the_data_is_corruption(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "images", 2)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        store.add(examples, vectors(examples))
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["data"].resize(1, axis=0)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert len(store) == 0 and "row 2 of 1" in store.report[0]
    assert (tmp_path / "f.h5.corrupt").is_file()


def test_a_file_that_is_no_feature_file_is_left_alone(tmp_path: Path) -> None:
    ImageStore(tmp_path / "s.h5", 72).close()
    before = (tmp_path / "s.h5").read_bytes()
    with pytest.raises(DataError, match="not a pycap feature file"):
        FeatureStore(tmp_path / "s.h5", ORIGIN)
    assert (tmp_path / "s.h5").read_bytes() == before


@pytest.mark.faults
def test_a_failing_write_is_an_error_and_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = make_examples(tmp_path / "images", 2)

    def full(self: h5py.Dataset, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        store.add(examples[:1], vectors(examples[:1]))
        with monkeypatch.context() as patch:
            patch.setattr(h5py.Dataset, "resize", full)
            with pytest.raises(DataError, match=r"f\.h5: cannot write features .*No space left"):
                store.add(examples[1:], vectors(examples[1:]))
        assert store.missing(examples) == examples[1:]
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert held(store, examples[:1]) and store.missing(examples) == examples[1:]


KILLED = """
import sys
from pathlib import Path
from pycap.data import Example
from pycap.data.features import FeatureStore
from tests.data.test_features import ORIGIN, vectors
store = FeatureStore(sys.argv[1], ORIGIN)
image = Path(sys.argv[2])
for i in range(0, 10**9, 3):
    some = [Example(k, f"{k}.jpg", image, ()) for k in (i, i + 1, i + 2)]
    store.add(some, vectors(some))
    print(i + 3, flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
def test_a_killed_writer_leaves_a_file_that_goes_on(tmp_path: Path, delay: float) -> None:
    image = make_examples(tmp_path / "images", 1)[0].path
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "f.h5"), str(image)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None and writer.stdout.readline() == "3\n"
    try:
        writer.wait(delay or 0.001)
    except subprocess.TimeoutExpired:
        os.kill(writer.pid, signal.SIGKILL)
    said = writer.stdout.read().split("\n")
    assert writer.wait(10) == -signal.SIGKILL
    writer.stdout.close()
    added = int(said[-2]) if len(said) > 1 else 3
    examples = [Example(k, f"{k}.jpg", image, ()) for k in range(added + 9)]
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        missing = store.missing(examples)
        # All that was said to be there is, or the file was beyond reading, and that was said.
        assert not any(e in missing for e in examples[:added]) or "corrupt" in store.report[0]
        assert held(store, [e for e in examples if e not in missing])
        store.add(missing, vectors(missing))
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as store:
        assert held(store, examples)
