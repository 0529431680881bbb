"""COCO's layout: what is read, what is tolerated and listed, what is refused and with which words."""

from __future__ import annotations

import pytest

from pycap.data import DataError, load_split
from tests.data.fixtures import coco_body, edit_json, make_coco, write_json


def train_json(root, year="2017"):
    return root / "annotations" / f"captions_train{year}.json"


def test_reads_a_sound_folder(tmp_path):
    make_coco(tmp_path)
    examples, problems = load_split("coco", tmp_path, "train")
    assert problems == []
    assert [e.image_id for e in examples] == [100, 101, 102, 103]
    assert examples[1].file_name == "000000000001.jpg"
    assert examples[1].path == tmp_path / "train2017" / "000000000001.jpg"
    assert examples[1].captions == ("a cat number b", "the dog number b")


def test_images_folder_may_hold_the_splits(tmp_path):
    make_coco(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "train2017").rename(tmp_path / "images" / "train2017")
    examples, _ = load_split("coco", tmp_path, "train")
    assert examples[0].path.parent == tmp_path / "images" / "train2017"


def test_whitespace_in_captions_is_collapsed(tmp_path):
    make_coco(tmp_path)

    def change(body):
        body["annotations"][0]["caption"] = "  a cat\n on   a mat. \n"

    edit_json(train_json(tmp_path), change)
    examples, problems = load_split("coco", tmp_path, "train")
    assert examples[0].captions[0] == "a cat on a mat."
    assert problems == []


@pytest.mark.parametrize("empty", ["", " \n", " . ", "''", None, 7])
def test_empty_captions_are_left_out_and_listed(tmp_path, empty):
    make_coco(tmp_path)

    def change(body):
        body["annotations"][0]["caption"] = empty

    edit_json(train_json(tmp_path), change)
    examples, problems = load_split("coco", tmp_path, "train")
    assert examples[0].captions == ("the dog number a",)
    assert [p["file"] for p in problems] == ["000000000000.jpg"]
    assert "caption 1 of 2 has no words" in problems[0]["reason"]


def test_image_with_only_empty_captions_is_left_out(tmp_path):
    make_coco(tmp_path)

    def change(body):
        for annotation in body["annotations"][:2]:
            annotation["caption"] = " "

    edit_json(train_json(tmp_path), change)
    examples, problems = load_split("coco", tmp_path, "train")
    assert [e.image_id for e in examples] == [101, 102, 103]
    assert "no usable caption" in problems[-1]["reason"]


def test_image_without_annotations_is_left_out_and_listed(tmp_path):
    make_coco(tmp_path)
    edit_json(train_json(tmp_path), lambda body: body["images"].append({"id": 5, "file_name": "lonely.jpg"}))
    examples, problems = load_split("coco", tmp_path, "train")
    assert len(examples) == 4
    assert [p["file"] for p in problems] == ["lonely.jpg"]


def test_missing_image_file_is_left_out_and_listed(tmp_path):
    make_coco(tmp_path)
    gone = tmp_path / "train2017" / "000000000002.jpg"
    gone.unlink()
    examples, problems = load_split("coco", tmp_path, "train")
    assert [e.image_id for e in examples] == [100, 101, 103]
    reason = f"no image file {gone}; it is left out"
    assert problems == [{"kind": "missing-image", "file": gone.name, "path": str(gone), "reason": reason}]


def test_unknown_image_ids_are_counted(tmp_path):
    make_coco(tmp_path)

    def change(body):
        body["annotations"][3]["image_id"] = 9
        body["annotations"][5]["image_id"] = 10

    edit_json(train_json(tmp_path), change)
    examples, problems = load_split("coco", tmp_path, "train")
    assert len(examples) == 4
    (problem,) = problems
    assert (problem["count"], problem["first"]) == (2, 9)
    assert '2 of 8 annotations name image ids that "images" lacks (first: 9)' in problem["reason"]


def test_only_unknown_image_ids_is_an_error(tmp_path):
    make_coco(tmp_path)

    def change(body):
        for annotation in body["annotations"]:
            annotation["image_id"] = 9

    edit_json(train_json(tmp_path), change)
    with pytest.raises(DataError, match=r"captions_train2017.json: 8 of 8 annotations .*first: 9.*fetch"):
        load_split("coco", tmp_path, "train")


def test_duplicate_image_id_is_listed_and_the_first_used(tmp_path):
    make_coco(tmp_path)
    edit_json(train_json(tmp_path), lambda body: body["images"].append({"id": 100, "file_name": "other.jpg"}))
    examples, problems = load_split("coco", tmp_path, "train")
    assert examples[0].file_name == "000000000000.jpg"
    assert "100 stands twice" in problems[0]["reason"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.pop("images"), 'the key "images" is missing'),
        (lambda b: b.pop("annotations"), 'the key "annotations" is missing'),
        (lambda b: b.update(images={}), '"images" is a dict, not a list'),
        (lambda b: b["images"][1].pop("file_name"), r'images\[1\] lacks "file_name"'),
        (lambda b: b["images"][1].update(id=None), r"images\[1\] has id None"),
        (lambda b: b["annotations"][2].pop("image_id"), r'annotations\[2\] lacks "image_id"'),
        (lambda b: b["annotations"].insert(0, 3), r"annotations\[0\] is a int, not an object"),
        (
            lambda b: b["annotations"].insert(0, {"image_id": 1, "bbox": [1, 2, 3, 4]}),
            r'annotations\[0\] lacks "caption" .*instances file',
        ),
    ],
)
def test_json_that_is_not_cocos_names_the_key(tmp_path, change, words):
    make_coco(tmp_path)
    edit_json(train_json(tmp_path), change)
    with pytest.raises(DataError, match=words) as caught:
        load_split("coco", tmp_path, "train")
    assert str(train_json(tmp_path)) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"[1, 2]", "a list at the top"),
        (b'{"images": [\n{"id": 1,\n', "not valid JSON at line 3"),
        (b'{"images": "\xff\xfe"}', "not UTF-8"),
    ],
)
def test_json_that_cannot_be_parsed(tmp_path, data, words):
    make_coco(tmp_path)
    train_json(tmp_path).write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        load_split("coco", tmp_path, "train")
    assert "captions_train2017.json" in str(caught.value)


def test_missing_folder_says_what_belongs_there_and_what_is_beside(tmp_path):
    (tmp_path / "cocoa").mkdir()
    with pytest.raises(DataError) as caught:
        load_split("coco", tmp_path / "coco", "train")
    message = str(caught.value)
    assert str(tmp_path / "coco") in message
    assert "annotations/captions_{train,val}2017.json" in message
    assert "cocoa/" in message


def test_file_instead_of_a_folder(tmp_path):
    file = write_json(tmp_path / "captions.json", {})
    with pytest.raises(DataError, match="is a file, not a folder"):
        load_split("coco", file, "train")


def test_folder_of_another_layout_lists_what_is_there(tmp_path):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(DataError, match=r"no annotations/captions_train2017.json.*the folder holds: holiday/"):
        load_split("coco", tmp_path, "train")


def test_missing_year_of_images_is_named(tmp_path):
    write_json(tmp_path / "annotations" / "captions_train2014.json", coco_body())
    with pytest.raises(DataError, match="captions_train2014.json is there, but its image folder train2014/ is not"):
        load_split("coco", tmp_path, "train")


def test_missing_annotations_of_images_are_named(tmp_path):
    make_coco(tmp_path)
    train_json(tmp_path).unlink()
    with pytest.raises(DataError, match="train2017/ is there, but annotations/captions_train2017.json is not"):
        load_split("coco", tmp_path, "train")


def test_2014_is_found_and_years_are_not_mixed(tmp_path):
    make_coco(tmp_path, year="2014")
    make_coco(tmp_path, year="2017", splits=("train",))
    assert load_split("coco", tmp_path, "train")[0][0].path.parent.name == "train2014"
    assert load_split("coco", tmp_path, "val")[0][0].path.parent.name == "val2014"


def test_test_split_is_read_where_there_is_one(tmp_path):
    make_coco(tmp_path, splits=("train", "val", "test"))
    assert len(load_split("coco", tmp_path, "test")[0]) == 4


def test_cocos_own_test_split_has_no_captions(tmp_path):
    make_coco(tmp_path)
    with pytest.raises(DataError, match="test images no captions"):
        load_split("coco", tmp_path, "test")


def test_nothing_usable_is_an_error(tmp_path):
    make_coco(tmp_path)
    for file in (tmp_path / "train2017").iterdir():
        file.unlink()
    with pytest.raises(
        DataError, match=r"none of 4 images can be used \(looked for .*First problems: 0+.jpg: no image"
    ):
        load_split("coco", tmp_path, "train")


@pytest.mark.parametrize(("stage", "split", "words"), [("cocoa", "train", "kinds: coco"), ("coco", "dev", "val")])
def test_unknown_stage_or_split(tmp_path, stage, split, words):
    with pytest.raises(DataError, match=words):
        load_split(stage, tmp_path, split)


@pytest.mark.realdata
def test_real_coco(data_root):
    examples, problems = load_split("coco", data_root / "coco", "train")
    assert len(examples) == 90
    assert problems == []
    assert all(len(e.captions) == 5 for e in examples)
