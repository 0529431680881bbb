"""Data sets alone and combined: what a stage reads, ids that do not collide, and no training on what is held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycap.data import DataError, load_split
from pycap.data.datasets import Part, kinds, load, parse, photograph, remarks, require
from tests.data.fixtures import coco_body, edit_json, karpathy_body, make_coco, make_flickr8k, write_jpeg, write_json
from tests.data.test_imageclef import make_imageclef
from tests.data.test_picks import write_rows


def make_flickr30k(root: Path, **splits: tuple[str, ...]) -> Path:
    """The original layout with split files; splits: image names by split, a caption each."""
    names = [name for part in splits.values() for name in part]
    root.mkdir(parents=True)
    (root / "results_20130124.token").write_text("".join(f"{name}#0\tA man on {name} .\n" for name in names))
    for split, part in splits.items():
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
        for i, name in enumerate(part):
            write_jpeg(root / "flickr30k-images" / name, seed=i)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Flickr8k trains on 1000_abc to 1003_abc, holds out 1004_abc (val) and 1005_abc (test), and both sets share some."""
    make_flickr8k(tmp_path / "flickr8k", broken_key=False)
    make_flickr30k(
        tmp_path / "flickr30k",
        train=("1000.jpg", "1004_abc.jpg", "1005_abc.jpg", "2000.jpg", "2001.jpg"),
        val=("1001_abc.jpg", "3000.jpg"),
        test=("1002_abc.jpg",),
    )
    return tmp_path


def names(parts: tuple[Part, ...] | str, root: Path, split: str) -> list[str]:
    spec = parts if isinstance(parts, str) else "+".join(part.kind for part in parts)
    return [e.file_name for e in load_split(spec, root, split)[0]]


# -- which parts ------------------------------------------------------------------------------------------------------


def where(*args: object) -> list[tuple[str, str]]:
    return [(part.kind, str(part.path)) for part in parse(*args)]  # type: ignore[arg-type]


def test_where_parts_are_looked_for() -> None:
    top = Path("/top")
    assert where("coco") == [("coco", "data/coco")]
    assert where("coco_all") == [("coco_all", "data/coco")]
    assert where("coco_all", top) == [("coco_all", "/top")]
    assert where("flickr") == [("flickr8k", "data/flickr8k"), ("flickr30k", "data/flickr30k")]
    assert where("flickr", top) == [("flickr8k", "/top/flickr8k"), ("flickr30k", "/top/flickr30k")]
    assert where("selected", top)[2] == ("picks", "/top/picks.jsonl")
    assert where("selected", None, Path("p.jsonl"))[2] == ("picks", "p.jsonl")
    assert where("coco+flickr8k=/a+b/c+imageclef", top) == [
        ("coco", "/top/coco"),
        ("flickr8k", "/a+b/c"),
        ("imageclef", "/top/imageclef"),
    ]
    assert where("flickr8k+picks=/p/q.jsonl", top)[1] == ("picks", "/p/q.jsonl")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("flickr9k", "no kind 'flickr9k'; kinds: coco, coco_all"),
        ("coco+flickr9k", "no kind"),
        ("", "no kind ''"),
        ("flickr8k+flickr8k=/other", "flickr8k stands in it twice"),
        ("coco+coco_all", "coco stands in it twice"),
        ("picks=p.jsonl", "nothing to validate on"),
    ],
)
def test_specs_that_are_refused(spec: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse(spec)


def test_kinds_are_of_whichever_folders() -> None:
    assert kinds("coco=/disk/a+b") == "coco"
    assert kinds("flickr8k=/x+imageclef") == "flickr8k+imageclef"
    assert kinds("selected") == "flickr8k+flickr30k+picks"


def test_picks_that_nothing_reads_are_refused() -> None:
    with pytest.raises(DataError, match=r"picks p.jsonl: flickr reads none; use --stage selected"):
        parse("flickr", None, Path("p.jsonl"))


def test_what_is_missing_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        require(parse("selected"))
    for said in (
        f"no flickr8k in {tmp_path}/data/flickr8k (wanted: Flickr8k_text/",
        f"no flickr30k in {tmp_path}/data/flickr30k (wanted: results_20130124.token",
        f"no picks in {tmp_path}/data/picks.jsonl (wanted: JSON Lines",
        "--data ROOT",
        "--datasets flickr8k=DIR+flickr30k=DIR+picks=FILE",
    ):
        assert said in str(caught.value)
    make_flickr8k(tmp_path / "data" / "flickr8k")
    with pytest.raises(DataError) as caught:
        require(parse("flickr"))
    assert "no flickr30k" in str(caught.value) and "no flickr8k" not in str(caught.value)


# -- combined ---------------------------------------------------------------------------------------------------------


def test_parts_come_in_turn_with_ids_of_their_own(root: Path) -> None:
    examples, _ = load_split("flickr", root, "val")
    assert [(e.image_id, e.file_name) for e in examples] == [
        ("flickr8k/1004_abc", "flickr8k/1004_abc.jpg"),
        ("flickr30k/1001_abc", "flickr30k/1001_abc.jpg"),
        ("flickr30k/3000", "flickr30k/3000.jpg"),
    ]
    assert examples[0].path == root / "flickr8k" / "Flicker8k_Dataset" / "1004_abc.jpg"
    alone = load_split("flickr8k", root / "flickr8k", "val")[0]
    assert [(e.image_id, e.file_name) for e in alone] == [("1004_abc", "1004_abc.jpg")]
    assert len(load_split("flickr", root, "all")[0]) == 6 + 8


def test_what_one_set_holds_out_no_other_trains_on(root: Path) -> None:
    examples, problems = load_split("flickr", root, "train")
    # 1000 is trained on by both sets, and is no leak; 1001, 1002, 1004 and 1005 are held out by the other one.
    assert [e.file_name for e in examples] == [
        "flickr8k/1000_abc.jpg",
        "flickr30k/1000.jpg",
        "flickr8k/1003_abc.jpg",
        "flickr30k/2000.jpg",
        "flickr30k/2001.jpg",
    ]
    left_out = {p["file"]: (p["held_out_by"], p["reason"]) for p in problems}
    assert {file: by for file, (by, _) in left_out.items()} == {
        "flickr8k/1001_abc.jpg": "flickr30k",
        "flickr8k/1002_abc.jpg": "flickr30k",
        "flickr30k/1004_abc.jpg": "flickr8k",
        "flickr30k/1005_abc.jpg": "flickr8k",
    }
    assert "flickr8k's val image 1004_abc.jpg" in left_out["flickr30k/1004_abc.jpg"][1]
    assert "flickr30k's test image 1002_abc.jpg" in left_out["flickr8k/1002_abc.jpg"][1]
    assert len(load_split("flickr30k", root / "flickr30k", "train")[0]) == 5  # alone, it trains on all of its own


def test_held_out_images_count_where_their_files_are_gone(root: Path) -> None:
    for name in ("1004_abc.jpg", "1005_abc.jpg"):
        (root / "flickr8k" / "Flicker8k_Dataset" / name).unlink()
    assert "flickr30k/1005_abc.jpg" not in names("flickr", root, "train")


@pytest.mark.parametrize(
    ("file_name", "photo"),
    [
        ("1000268201_693b08cb0e.jpg", "1000268201"),
        ("1000268201.jpg", "1000268201"),
        ("2258277193_586949ec62_b.jpg", "2258277193"),
        ("000000000790.jpg", "000000000790"),
        ("val2014/COCO_val2014_000000000790.jpg", "000000000790"),
        ("12_dogs.jpg", "12_dogs"),
        ("-A0x_000.jpg", "-A0x_000"),
    ],
)
def test_photographs_are_known_by_their_names(file_name: str, photo: str) -> None:
    assert photograph(file_name) == photo


def test_flickr8ks_names_and_flickr30ks_are_of_one_photograph(tmp_path: Path) -> None:
    make_flickr8k(tmp_path / "flickr8k", broken_key=False)
    old, new = "1004_abc.jpg", "1004123456_693b08cb0e.jpg"
    for file in (tmp_path / "flickr8k" / "Flickr8k_text").iterdir():
        file.write_text(file.read_text().replace(old, new))
    (tmp_path / "flickr8k" / "Flicker8k_Dataset" / old).rename(tmp_path / "flickr8k" / "Flicker8k_Dataset" / new)
    make_flickr30k(tmp_path / "flickr30k", train=("1004123456.jpg", "5.jpg"), val=("6.jpg",), test=("7.jpg",))
    assert names("flickr30k+flickr8k", tmp_path, "val")[1] == f"flickr8k/{new}"
    assert names("flickr30k+flickr8k", tmp_path, "train")[0] == "flickr30k/5.jpg"


def test_picks_train_only_and_not_on_held_out_images(root: Path) -> None:
    write_jpeg(root / "photos" / "new.jpg")
    write_rows(
        root / "picks.jsonl",
        {"file_name": "photos/new.jpg", "caption": "a new dog"},
        {"file_name": "flickr8k/Flicker8k_Dataset/1004_abc.jpg", "caption": "a dog"},
    )
    examples, problems = load_split("selected", root, "train")
    assert examples[2].image_id == examples[2].file_name == "picks/photos/new.jpg"
    assert examples[2].captions == ("a new dog",)
    assert [(p["file"], p["held_out_by"]) for p in problems if p["file"].startswith("picks/")] == [
        ("picks/flickr8k/Flicker8k_Dataset/1004_abc.jpg", "flickr8k")
    ]
    (root / "picks.jsonl").unlink()
    assert names("selected", root, "val") == names("flickr", root, "val")
    with pytest.raises(DataError, match="no picks in"):
        load_split("selected", root, "train")


def test_sets_of_different_origin_may_use_the_same_names(tmp_path: Path) -> None:
    make_coco(tmp_path / "coco")
    make_flickr30k(tmp_path / "flickr30k", train=("000000000000.jpg",), val=("000000000001.jpg",), test=("7.jpg",))
    examples, problems = load_split("coco+flickr30k", tmp_path, "train")
    assert problems == []
    assert [e.image_id for e in examples] == ["coco/100", "flickr30k/000000000000", "coco/101", "coco/102", "coco/103"]


# -- all of a set -----------------------------------------------------------------------------------------------------


def test_coco_all_trains_on_val_too_and_says_so(tmp_path: Path) -> None:
    make_coco(tmp_path)
    body = coco_body(2)
    for i, image in enumerate(body["images"]):
        image.update(id=200 + i, file_name=f"v{i}.jpg")
        write_jpeg(tmp_path / "val2017" / f"v{i}.jpg")
    for annotation in body["annotations"]:
        annotation["image_id"] += 100
    write_json(tmp_path / "annotations" / "captions_val2017.json", body)
    train, problems = load_split("coco_all", tmp_path, "train")
    assert problems == []
    assert [e.image_id for e in train] == [100, 101, 102, 103, 200, 201]
    assert [e.image_id for e in load_split("coco_all", tmp_path, "val")[0]] == [200, 201]
    assert any("validation images too" in line for line in remarks(parse("coco_all")))
    assert remarks(parse("coco")) == []


def test_coco_all_takes_every_image_of_karpathys_file(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset_coco.json", karpathy_body())
    for i, folder in enumerate(("train2014", "val2014", "val2014", "val2014")):
        write_jpeg(tmp_path / folder / f"pic{i}.jpg", seed=i)
    assert [e.image_id for e in load_split("coco_all", tmp_path, "train")[0]] == [700, 701, 702, 703]
    assert [e.image_id for e in load_split("coco_all", tmp_path, "val")[0]] == [702]


def test_an_id_of_two_images_is_listed(tmp_path: Path) -> None:
    make_coco(tmp_path)
    edit_json(tmp_path / "annotations" / "captions_val2017.json", lambda b: b["images"].pop())
    examples, problems = load_split("coco", tmp_path, "all")
    assert [e.path.parent.name for e in examples] == ["train2017"] * 4
    assert [p["file"] for p in problems if "is left out" in p["reason"]] == [f"{i:012d}.jpg" for i in range(3)]


def test_all_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no annotations/captions_train2017.json"):
        load_split("coco", tmp_path, "all")


def test_imageclef_combines_too(tmp_path: Path) -> None:
    make_imageclef(tmp_path / "imageclef")
    make_coco(tmp_path / "coco")
    parts = parse("coco+imageclef", tmp_path)
    assert [len(load(parts, split)[0]) for split in ("train", "val")] == [4 + 6, 4 + 2]
    assert any("same quarter" in line for line in remarks(parts))


@pytest.mark.realdata
def test_real_flickr8k_and_coco(data_root: Path) -> None:
    examples, _ = load_split("flickr8k+coco", data_root, "train")
    assert len(examples) == 6000 + 90
    assert len({e.image_id for e in examples}) == len(examples)
