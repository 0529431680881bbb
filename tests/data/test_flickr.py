"""Flickr8k and Flickr30k: the original layouts, Kaggle's copies, and their known defects."""

from __future__ import annotations

import pytest

from pycap.data import DataError, load_split
from pycap.data.flickr import hash_split, read_captions
from tests.data.fixtures import BROKEN_KEY, make_flickr8k, write_jpeg


def test_original_layout(tmp_path):
    make_flickr8k(tmp_path, broken_key=False)
    examples, problems = load_split("flickr8k", tmp_path, "train")
    assert problems == []
    assert [e.file_name for e in examples] == [f"{1000 + i}_abc.jpg" for i in range(4)]
    assert examples[0].image_id == "1000_abc"
    assert examples[0].path == tmp_path / "Flicker8k_Dataset" / "1000_abc.jpg"
    assert examples[0].captions == tuple(f"A dog number {k} runs ." for k in range(5))


def test_val_is_dev(tmp_path):
    make_flickr8k(tmp_path)
    assert [e.file_name for e in load_split("flickr8k", tmp_path, "val")[0]] == ["1004_abc.jpg"]
    assert [e.file_name for e in load_split("flickr8k", tmp_path, "test")[0]] == ["1005_abc.jpg"]


def test_broken_key_is_tolerated_and_counted(tmp_path):
    make_flickr8k(tmp_path, broken_key=True)
    examples, problems = load_split("flickr8k", tmp_path, "train")
    assert len(examples) == 4
    (problem,) = problems
    assert problem["file"] == BROKEN_KEY
    assert problem["count"] == 5
    assert "no image name" in problem["reason"]


@pytest.mark.parametrize("folder", ["Flickr8k_Dataset", "Images", "images"])
def test_other_names_of_the_image_folder(tmp_path, folder):
    make_flickr8k(tmp_path)
    (tmp_path / "Flicker8k_Dataset").rename(tmp_path / folder)
    assert load_split("flickr8k", tmp_path, "train")[0][0].path.parent == tmp_path / folder


def test_text_files_may_lie_beside_the_images(tmp_path):
    make_flickr8k(tmp_path)
    for file in (tmp_path / "Flickr8k_text").iterdir():
        file.rename(tmp_path / file.name)
    assert len(load_split("flickr8k", tmp_path, "train")[0]) == 4


def test_windows_line_ends_blank_lines_and_byte_order_mark(tmp_path):
    make_flickr8k(tmp_path, broken_key=False)
    token = tmp_path / "Flickr8k_text" / "Flickr8k.token.txt"
    token.write_bytes(b"\xef\xbb\xbf" + token.read_bytes().replace(b"\n", b" \r\n") + b"\r\n")
    examples, problems = load_split("flickr8k", tmp_path, "train")
    assert problems == []
    assert examples[0].captions[4] == "A dog number 4 runs ."


def test_missing_image_and_missing_captions_are_listed(tmp_path):
    make_flickr8k(tmp_path, broken_key=False)
    (tmp_path / "Flicker8k_Dataset" / "1001_abc.jpg").unlink()
    with (tmp_path / "Flickr8k_text" / "Flickr_8k.trainImages.txt").open("a") as file:
        file.write("nobody.jpg\n")
    examples, problems = load_split("flickr8k", tmp_path, "train")
    assert [e.file_name for e in examples] == ["1000_abc.jpg", "1002_abc.jpg", "1003_abc.jpg"]
    assert [p["file"] for p in problems] == ["1001_abc.jpg", "nobody.jpg"]
    assert "no image file" in problems[0]["reason"]
    assert "no usable caption" in problems[1]["reason"]


def test_malformed_line_is_listed_with_its_number(tmp_path):
    make_flickr8k(tmp_path, broken_key=False)
    token = tmp_path / "Flickr8k_text" / "Flickr8k.token.txt"
    lines = token.read_text().splitlines()
    lines[2] = "no tab in this line"
    token.write_text("\n".join(lines))
    examples, problems = load_split("flickr8k", tmp_path, "train")
    assert len(examples[0].captions) == 4
    assert problems[0]["line"] == 3
    assert "no tab in this line" in problems[0]["reason"]


def test_a_file_of_another_form_is_refused(tmp_path):
    make_flickr8k(tmp_path)
    (tmp_path / "Flickr8k_text" / "Flickr8k.token.txt").write_text("just\ttext\nand\tmore\n")
    with pytest.raises(DataError, match=r"Flickr8k.token.txt: no line has the form `NAME.jpg#K<TAB>caption`"):
        load_split("flickr8k", tmp_path, "train")


def test_one_missing_split_file_is_an_error_not_another_split(tmp_path):
    make_flickr8k(tmp_path)
    (tmp_path / "Flickr8k_text" / "Flickr_8k.testImages.txt").unlink()
    with pytest.raises(DataError, match=r"no Flickr8k_text/Flickr_8k.testImages.txt, though"):
        load_split("flickr8k", tmp_path, "test")
    assert len(load_split("flickr8k", tmp_path, "val")[0]) == 1


@pytest.mark.parametrize(
    ("gone", "words"), [("Flickr8k_text", "no caption file"), ("Flicker8k_Dataset", "no image folder")]
)
def test_missing_parts_are_named(tmp_path, gone, words):
    make_flickr8k(tmp_path)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{words}.*the folder holds: .*elsewhere/"):
        load_split("flickr8k", tmp_path, "train")


def test_kaggles_flickr8k(tmp_path):
    names = [f"{i}.jpg" for i in range(16)]
    rows = [f'{name},"A dog, a ""big"" one, number {k} ."' for name in names for k in range(5)]
    (tmp_path / "captions.txt").write_text("\n".join(["image,caption", *rows]) + "\n")
    for i, name in enumerate(names):
        write_jpeg(tmp_path / "Images" / name, seed=i)
    parts = {split: load_split("flickr8k", tmp_path, split) for split in ("train", "val", "test")}
    assert [len(parts[s][0]) for s in ("train", "val", "test")] == [12, 2, 2]
    assert sorted(e.file_name for s in parts for e in parts[s][0]) == sorted(names)
    assert parts["train"][0][0].captions[1] == 'A dog, a "big" one, number 1 .'
    assert parts["train"][1] == []


def test_three_column_csv(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("image_name,comment_number,comment\n1.jpg,0,A dog .\n1.jpg,1,Two dogs .\n")
    assert read_captions(file) == ({"1.jpg": ["A dog .", "Two dogs ."]}, [])


def test_original_flickr30k(tmp_path):
    names = [f"{i}.jpg" for i in range(8)]
    text = "".join(f"{name}#{k}\tA man number {k} .\n" for name in names for k in range(5))
    (tmp_path / "results_20130124.token").write_text(text)
    for i, name in enumerate(names):
        write_jpeg(tmp_path / "flickr30k-images" / name, seed=i)
    assert [len(load_split("flickr30k", tmp_path, s)[0]) for s in ("train", "val", "test")] == [6, 1, 1]


def test_kaggles_flickr30k_with_its_broken_line(tmp_path):
    folder = tmp_path / "flickr30k_images"
    lines = ["image_name| comment_number| comment"]
    lines += [f"{i}.jpg| {k}| A man | with a bar number {k} ." for i in range(8) for k in range(5)]
    lines[3] = "0.jpg| 2   A dog runs across the grass ."
    folder.mkdir()
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    for i in range(8):
        write_jpeg(folder / "flickr30k_images" / f"{i}.jpg", seed=i)
    parts = [load_split("flickr30k", tmp_path, split) for split in ("train", "val", "test")]
    examples = {e.file_name: e for part in parts for e in part[0]}
    assert len(examples) == 8
    assert len(examples["0.jpg"].captions) == 4
    assert examples["0.jpg"].captions[0] == "A man | with a bar number 0 ."
    assert parts[0][1][0]["line"] == 4


def test_hash_split_is_fixed_disjoint_and_independent_of_order():
    names = [f"{i}.jpg" for i in range(100)]
    parts = {split: hash_split(names, split) for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [76, 12, 12]
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert set(hash_split(names[::-1], "test")) == set(parts["test"])
    assert parts["test"][:3] == ["26.jpg", "34.jpg", "36.jpg"]  # a changed split would leak test images into training


def test_split_files_of_flickr30k_may_hold_ids(tmp_path):
    for i in range(3):
        write_jpeg(tmp_path / "flickr30k-images" / f"{i}.jpg", seed=i)
        (tmp_path / f"{('train', 'val', 'test')[i]}.txt").write_text(f"{i}\n")
    (tmp_path / "results_20130124.token").write_text("".join(f"{i}.jpg#0\tA man .\n" for i in range(3)))
    assert [e.file_name for e in load_split("flickr30k", tmp_path, "val")[0]] == ["1.jpg"]


@pytest.mark.realdata
def test_real_flickr8k(data_root):
    examples, problems = load_split("flickr8k", data_root / "flickr8k", "train")
    assert (len(examples), problems) == (6000, [])
    assert len(load_split("flickr8k", data_root / "flickr8k", "val")[0]) == 1000


@pytest.mark.parametrize("name", ["captions.txt", "results.csv", "Flickr8k_text/Flickr_8k.trainImages.txt"])
def test_an_error_does_not_repeat_what_a_damaged_file_holds(tmp_path, name):
    """Names of 200,000 letters: a file that lost its line ends has them."""
    long = "x" * 200_000
    write_jpeg(tmp_path / "Images" / "1000_abc.jpg")
    if name == "results.csv":
        text, stage = f"image_name| comment_number| comment\n{long}| 0| A dog .\n", "flickr30k"
    else:
        text, stage = f"{long}.jpg#0\tA dog .\n", "flickr8k"
    (tmp_path / "Flickr8k_text").mkdir()
    if name.endswith("trainImages.txt"):
        (tmp_path / name).write_text(f"{long}.jpg\n")
        text, name = "1000_abc.jpg#0\tA dog .\n", "Flickr8k_text/Flickr8k.token.txt"
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="xxx") as caught:
        load_split(stage, tmp_path, "train" if "text/" in name else "all")
    assert len(str(caught.value)) < 1500
