"""Classified images in folders: which are read, in what order, what is held out, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pycap.data import DataError, folders
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Loader
from tests.data.fixtures import write_jpeg


def tree(root: Path, counts: Mapping[str, int]) -> Path:
    """Empty files `FOLDER/<i>.JPEG`: nothing here decodes them. counts: of images by folder."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            (root / folder / f"{i:02d}.JPEG").touch()
    return root


def names(examples: list) -> list[str]:
    return [example.file_name for example in examples]


def test_both_splits_are_read_and_a_class_is_its_folders_name(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/n02": 2, "train/n01": 3, "val/n02": 2, "val/n01": 1})
    (root / "train" / "n01" / "notes.txt").touch()
    (root / "train" / "n01" / ".hidden.JPEG").touch()
    (root / "train" / "n02" / "images").mkdir()  # as Tiny-ImageNet's own archive has it
    (root / "train" / "n02" / "images" / "deep.PNG").touch()
    train, val, problems = folders.load(root)
    assert names(train) == [
        "n01/00.JPEG",
        "n01/01.JPEG",
        "n01/02.JPEG",
        "n02/00.JPEG",
        "n02/01.JPEG",
        "n02/images/deep.PNG",
    ]
    assert [example.captions for example in train] == [("n01",)] * 3 + [("n02",)] * 3
    assert names(val) == ["n01/00.JPEG", "n02/00.JPEG", "n02/01.JPEG"], "in turn one of each class"
    assert all(example.path.is_file() for example in train + val) and problems == []
    assert folders.classes(train).words[4:] == ("n01", "n02")


def test_without_val_a_tenth_of_each_class_is_held_out_by_its_names_alone(tmp_path: Path) -> None:
    counts = {"train/a": 25, "train/b": 10, "train/c": 9}
    train, val, problems = folders.load(tree(tmp_path / "one", counts))
    assert names(val) == ["a/11.JPEG", "b/08.JPEG", "a/24.JPEG"]  # by sha256sum
    assert not set(names(val)) & set(names(train)) and len(train) + len(val) == 44
    reason = "no image to validate on; the class is trained all the same"
    assert problems == [{"kind": "class-without-validation", "file": "val/c", "reason": reason}]
    again = folders.load(tree(tmp_path / "two", dict(reversed(counts.items()))))
    assert names(again[1]) == names(val)
    with pytest.raises(
        DataError, match="no val/, and no class has 10 images of which one could be held out; make val/CL"
    ):
        folders.load(tree(tmp_path / "few", {"train/a": 9, "train/b": 9}))


def test_folders_without_an_image_are_problems(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/a": 1, "train/b": 1, "train/empty": 0, "val/a": 1, "val/none": 0})
    train, val, problems = folders.load(root)
    assert len(train) == 2 and len(val) == 1
    assert [problem["file"] for problem in problems] == ["train/empty", "val/none", "val/b"]
    assert problems[0]["reason"] == "the folder holds no image; it is left out"


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"a": 3}, r"no train/ in it; pretrain needs train/CLASS/\*.JPEG and val/CLASS/\*.JPEG.*the folder holds: a/"),
        (
            {"train": 3},
            r"no folder of a class with images in it \(train/CLASS/\*.JPEG\); it holds: 00.JPEG, 01.JPEG, 02.JPEG",
        ),
        ({"train/a": 3}, "1 folders with images, and it takes two classes or more"),
        (
            {"train/a": 3, "train/b": 3, "val": 3},
            "images that lie side by side, as ImageNet's validation images do, must be",
        ),
        ({"train/a": 3, "train/b": 3, "val/b": 1, "val/c": 1}, r"1 of 2 classes have no images in train/ \(first: c\)"),
    ],
)
def test_other_trees_are_refused(tmp_path: Path, counts: dict[str, int], told: str) -> None:
    with pytest.raises(DataError, match=told):
        folders.load(tree(tmp_path, counts))


def test_a_folder_that_is_not_there_is_told_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; give --data the folder that holds train/CLASS"):
        folders.load(tmp_path / "none")


def test_readable_names_come_from_the_files_that_people_have(tmp_path: Path) -> None:
    assert folders.class_names(tmp_path) == {}
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01 tench, Tinca tinca\nn02 goldfish\n\nn03\n")
    assert folders.class_names(tmp_path) == {"n01": "tench, Tinca tinca", "n02": "goldfish"}
    (tmp_path / "classes.tsv").write_text("n01\tEgyptian cat\nn 2\treel\n")
    assert folders.class_names(tmp_path) == {"n01": "Egyptian cat", "n 2": "reel"}


def test_the_loader_takes_a_class_as_one_word_whatever_its_name(tmp_path: Path) -> None:
    wild = ("<b>", "Dog 2", "n01443537", "é")
    for number, name in enumerate(wild):
        for split in ("train", "val"):
            write_jpeg(tmp_path / split / name / "x.jpg", seed=number)
    (tmp_path / "train" / "Dog 2" / "bad.jpg").write_bytes(b"no image")
    train, _, _ = folders.load(tmp_path)
    vocab = folders.classes(train)
    options = {"seq_per_img": 1, "max_length": 1, "train": False, "seed": 1, "workers": 0}
    loader = Loader(train, vocab, PreprocessSpec(32, 32), batch_size=9, words=folders.whole, **options)  # type: ignore[arg-type]
    (batch,) = loader.epoch(0)
    assert batch.tokens.tolist() == [[1] * 4, [4 + sorted(wild).index(name) for name in sorted(wild)], [2] * 4]
    assert list(loader.skipped) == ["Dog 2/bad.jpg"]
