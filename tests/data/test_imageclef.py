"""ImageCLEF 2016's development set: the layouts that are read, the fixed split, what is tolerated and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycap.data import DataError, Example, load_split
from pycap.data.imageclef import held_out, read_sentences
from tests.data.fixtures import write_jpeg, write_json

IDS = [f"-{chr(65 + i)}{i}x_{i:03d}" for i in range(8)]


def make_imageclef(root: Path, text: str | None = None, folder: str = "images", sharded: bool = False) -> Path:
    """Eight images with two sentences each, in one folder, or in folders of the ids' first two characters."""
    lines = [f"{image_id}\tA dog number {k} ." for image_id in IDS for k in "ab"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "captions.txt").write_text(text if text is not None else "\n".join(lines) + "\n", encoding="utf-8")
    for i, image_id in enumerate(IDS):
        write_jpeg(root / folder / (image_id[:2] if sharded else "") / f"{image_id}.jpg", seed=i)
    return root


def by_id(examples: list[Example]) -> dict[int | str, tuple[str, ...]]:
    return {e.image_id: e.captions for e in examples}


def test_the_split_is_fixed_and_three_quarters_train() -> None:
    ids = [f"{i:016x}" for i in range(2000)]
    held = held_out(ids)
    assert len(held) == 500
    assert held_out(ids[::-1]) == held
    # Another split would not compare with results that are known.
    assert [i for i in range(2000) if ids[i] in held][:6] == [2, 5, 16, 17, 19, 21]


@pytest.mark.parametrize(("folder", "sharded"), [("images", False), ("scaleconcepts16_images", True), ("Images", True)])
def test_text_and_images_in_one_folder_or_in_folders_by_id(tmp_path: Path, folder: str, sharded: bool) -> None:
    make_imageclef(tmp_path, folder=folder, sharded=sharded)
    parts = {split: load_split("imageclef", tmp_path, split) for split in ("train", "val", "test", "all")}
    assert all(problems == [] for _, problems in parts.values())
    train, val, test, whole = (by_id(parts[split][0]) for split in ("train", "val", "test", "all"))
    assert (len(train), len(val)) == (6, 2)
    assert val == test and not set(train) & set(val)
    assert sorted(whole) == sorted(IDS) == sorted([*train, *val])
    assert whole[IDS[3]] == ("A dog number a .", "A dog number b .")
    path = next(e.path for e in parts["all"][0] if e.image_id == IDS[3])
    assert path == tmp_path / folder / (IDS[3][:2] if sharded else "") / f"{IDS[3]}.jpg"


def test_cocos_json_serves_and_splits_the_same(tmp_path: Path) -> None:
    make_imageclef(tmp_path / "text")
    make_imageclef(tmp_path / "json", sharded=True)
    (tmp_path / "json" / "captions.txt").unlink()
    body = {
        "images": [{"id": i, "file_name": f"{image_id}.jpg"} for i, image_id in enumerate(IDS)],
        "annotations": [{"image_id": i, "caption": f"A dog number {k} ."} for i in range(len(IDS)) for k in "ab"],
    }
    write_json(tmp_path / "json" / "annotations" / "captions.json", body)
    assert len(load_split("imageclef", tmp_path / "json", "val")[0]) == 2
    text, json = (load_split("imageclef", tmp_path / name, "val") for name in ("text", "json"))
    assert json[1] == []
    assert by_id(json[0]) == by_id(text[0])


@pytest.mark.parametrize(
    ("lines", "sentences"),
    [
        ("ab1\tOne dog .\tTwo dogs .\nab1\tThree .\n", {"ab1": ["One dog .", "Two dogs .", "Three ."]}),
        ("ab1\t0\tOne dog .\nab1\t1\tTwo dogs .\n", {"ab1": ["One dog .", "Two dogs ."]}),  # numbers are no sentences
        ("ab1.jpg#0\tOne dog .\nab1.jpg#1\tTwo dogs .\n", {"ab1": ["One dog .", "Two dogs ."]}),
        ("-a#b.c\tOne dog .\n", {"-a": ["One dog ."]}),
        ("v1.2\tOne dog .\n", {"v1.2": ["One dog ."]}),
        ("ab1 One dog .\r\n\r\nab2   Two dogs .\r\n", {"ab1": ["One dog ."], "ab2": ["Two dogs ."]}),
    ],
)
def test_forms_of_lines(tmp_path: Path, lines: str, sentences: dict[str, list[str]]) -> None:
    file = tmp_path / "captions.txt"
    file.write_bytes(lines.encode())
    captions, problems = read_sentences(file)
    assert problems == []
    assert {i: [s.strip() for s in each] for i, each in captions.items()} == sentences


def test_lines_without_a_sentence_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("ab1\tA dog .\nab2 no tab here\n\tA cat .\nab3\t12\n")
    captions, problems = read_sentences(file)
    assert captions == {"ab1": ["A dog ."]}
    assert [p["line"] for p in problems] == [2, 3, 4]
    assert "ab2 no tab here" in problems[0]["reason"]


def test_a_file_without_any_sentence_is_refused(tmp_path: Path) -> None:
    make_imageclef(tmp_path, text="12\n34\n")
    with pytest.raises(DataError, match=r"captions.txt: no line has the form .*IMAGE_ID.*line 1"):
        load_split("imageclef", tmp_path, "train")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    make_imageclef(tmp_path)
    (tmp_path / "images" / f"{IDS[0]}.jpg").unlink()
    problem = load_split("imageclef", tmp_path, "all")[1][0]
    assert problem["file"] == f"{IDS[0]}.jpg" and "no image file" in problem["reason"]
    (tmp_path / "captions.txt").unlink()
    with pytest.raises(DataError, match=r"no caption file \(captions.json, .*imageclef needs .*IMAGE_ID.*images/"):
        load_split("imageclef", tmp_path, "train")
