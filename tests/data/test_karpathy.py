"""Karpathy's split files: COCO and Flickr, restval, and bad files."""

from __future__ import annotations

import pytest

from pycap.data import DataError, load_split
from tests.data.fixtures import edit_json, karpathy_body, make_coco, write_jpeg, write_json


@pytest.fixture
def coco_root(tmp_path):
    write_json(tmp_path / "dataset_coco.json", karpathy_body())
    for i, folder in enumerate(("train2014", "val2014", "val2014", "val2014")):
        write_jpeg(tmp_path / folder / f"pic{i}.jpg", seed=i)
    return tmp_path


def test_train_includes_restval(coco_root):
    examples, problems = load_split("coco", coco_root, "train")
    assert problems == []
    assert [(e.image_id, e.file_name) for e in examples] == [(700, "train2014/pic0.jpg"), (701, "val2014/pic1.jpg")]
    assert examples[0].captions[2] == "A bird number 2 ."
    assert examples[0].path.is_file()


@pytest.mark.parametrize(("split", "image_id"), [("val", 702), ("test", 703)])
def test_val_and_test(coco_root, split, image_id):
    assert [e.image_id for e in load_split("coco", coco_root, split)[0]] == [image_id]


def test_goes_before_the_stages_own_layout(coco_root):
    make_coco(coco_root)
    assert load_split("coco", coco_root, "val")[0][0].image_id == 702


def test_another_stages_file_is_not_used(coco_root):
    (coco_root / "dataset_coco.json").rename(coco_root / "dataset_flickr30k.json")
    make_coco(coco_root)
    assert load_split("coco", coco_root, "val")[0][0].image_id == 100


def test_flickr_images_are_found_and_ids_are_stems(tmp_path):
    write_json(tmp_path / "dataset_flickr8k.json", karpathy_body(coco=False))
    for i in range(4):
        write_jpeg(tmp_path / "Flicker8k_Dataset" / f"pic{i}.jpg", seed=i)
    examples, problems = load_split("flickr8k", tmp_path, "train")
    assert problems == []
    assert [e.image_id for e in examples] == ["pic0", "pic1"]


def test_own_name_of_the_file_and_images_beside_it(tmp_path):
    write_json(tmp_path / "dataset_mine.json", karpathy_body(coco=False))
    write_jpeg(tmp_path / "pic2.jpg")
    assert load_split("coco", tmp_path, "val")[0][0].path == tmp_path / "pic2.jpg"
    write_json(tmp_path / "dataset_yours.json", karpathy_body(coco=False))
    with pytest.raises(DataError, match=r"2 files could hold .*dataset_mine.json, dataset_yours.json"):
        load_split("coco", tmp_path, "val")


def test_tokens_serve_where_raw_is_missing(coco_root):
    def change(body):
        for sentence in body["images"][2]["sentences"]:
            del sentence["raw"]

    edit_json(coco_root / "dataset_coco.json", change)
    assert load_split("coco", coco_root, "val")[0][0].captions[0] == "a bird"


def test_missing_image_is_listed(coco_root):
    (coco_root / "val2014" / "pic1.jpg").unlink()
    examples, problems = load_split("coco", coco_root, "train")
    assert [e.image_id for e in examples] == [700]
    assert [p["file"] for p in problems] == ["val2014/pic1.jpg"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.pop("images"), 'the key "images"'),
        (lambda b: b["images"][1].pop("split"), r'images\[1\] lacks "split"'),
        (lambda b: b["images"][1].pop("sentences"), r'images\[1\] lacks "sentences"'),
        (lambda b: b["images"][1].update(sentences="a bird"), r'images\[1\] needs a "filename"'),
        (lambda b: b["images"][2].update(sentences=[{"sentid": 1}]), r'images\[2\].sentences\[0\] has neither "raw"'),
        (lambda b: [i.update(split="train") for i in b["images"]], r"no image is of split 'val' \(found: train\)"),
    ],
)
def test_bad_files_are_refused(coco_root, change, words):
    edit_json(coco_root / "dataset_coco.json", change)
    with pytest.raises(DataError, match=words) as caught:
        load_split("coco", coco_root, "val")
    assert "dataset_coco.json" in str(caught.value)


@pytest.mark.parametrize(("key", "says"), [("split", "no image is of split 'train'"), ("filepath", "which is not")])
def test_an_error_does_not_repeat_what_a_damaged_file_holds(coco_root, key, says):
    def change(body):
        for image in body["images"]:
            image[key] = "x" * 200_000 if key == "split" else ["x" * 200_000]

    edit_json(coco_root / "dataset_coco.json", change)
    with pytest.raises(DataError, match=f"{says}.*xxx|xxx.*{says}") as caught:
        load_split("coco", coco_root, "train")
    assert len(str(caught.value)) < 1000
