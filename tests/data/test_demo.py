"""The demo set: its layout, its determinism, and that its scenes show what they say."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pycap.data import DataError, demo
from pycap.data.demo import Scene, Thing, generate, is_true, load_scenes
from pycap.data.demo_scene import FRAME, SETTINGS, place, sample_scene
from tests.data.scenes import GROUP, PAIR


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("demo") / "set", train=60, val=20, seed=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# The folder


def test_layout_is_cocos(folder: Path) -> None:
    names = {"demo.json", "annotations", "train2017", "val2017", "scenes_train2017.json", "scenes_val2017.json"}
    assert set(os.listdir(folder)) == names
    seen: set[int] = set()
    for split, count in (("train", 60), ("val", 20)):
        document = json.loads((folder / "annotations" / f"captions_{split}2017.json").read_text())
        assert set(document) == {"info", "licenses", "images", "annotations"}
        ids = [image["id"] for image in document["images"]]
        assert len(ids) == len(set(ids)) == count and not seen & set(ids)
        seen |= set(ids)
        for image in document["images"]:
            with Image.open(folder / f"{split}2017" / image["file_name"]) as picture:
                assert picture.format == "JPEG" and picture.mode == "RGB"
                assert picture.size == (image["width"], image["height"]) == (72, 72)
        assert len(list((folder / f"{split}2017").iterdir())) == count
        assert len({annotation["id"] for annotation in document["annotations"]}) == 5 * count
        by_image = {image_id: set() for image_id in ids}
        for annotation in document["annotations"]:
            by_image[annotation["image_id"]].add(annotation["caption"])
        assert all(len(captions) == 5 for captions in by_image.values())


def test_captions_of_the_files_are_true_of_the_scenes_of_the_files(folder: Path) -> None:
    for split, count in (("train", 60), ("val", 20)):
        scenes = load_scenes(folder, split)
        assert len(scenes) == count
        for annotation in json.loads((folder / "annotations" / f"captions_{split}2017.json").read_text())[
            "annotations"
        ]:
            assert is_true(annotation["caption"], scenes[annotation["image_id"]])


def test_equal_seeds_give_equal_bytes_also_in_another_process(folder: Path, tmp_path: Path) -> None:
    script = "import sys; from pycap.data.demo import generate; generate(sys.argv[1], train=60, val=20, seed=3)"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "again")], check=True, env=environment)
    assert contents(tmp_path / "again") == contents(folder)


def test_other_seeds_give_other_images_and_captions(folder: Path, tmp_path: Path) -> None:
    other = contents(generate(tmp_path / "other", train=60, val=20, seed=4))
    ours = contents(folder)
    same = [name for name in ours if ours[name] == other[name]]
    assert same == []


def test_a_larger_set_begins_with_the_smaller_one(folder: Path, tmp_path: Path) -> None:
    larger = generate(tmp_path / "larger", train=70, val=25, seed=3)
    for split in ("train", "val"):
        small, large = load_scenes(folder, split), load_scenes(larger, split)
        assert small.items() <= large.items()
        names = [f"{split}2017/{image_id:012d}.jpg" for image_id in small]
        assert all((folder / name).read_bytes() == (larger / name).read_bytes() for name in names)


def test_splits_are_drawn_apart_and_no_image_occurs_twice(folder: Path) -> None:
    images = [data for name, data in contents(folder).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == 80
    train, val = list(load_scenes(folder, "train").values()), list(load_scenes(folder, "val").values())
    assert train[:20] != val


def test_an_image_that_was_seen_is_drawn_anew() -> None:
    seen: set[bytes] = set()
    first = demo._example("val", 0, 0, 72, seen)
    assert demo._example("val", 0, 0, 72, set()) == first
    second = demo._example("val", 0, 0, 72, seen)
    assert second[2] != first[2] and len(seen) == 2


def test_a_second_call_does_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert generate(folder, train=60, val=20, seed=3) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("lost", ["demo.json", "val2017/000001000001.jpg", "annotations/captions_train2017.json"])
def test_a_set_with_a_file_gone_is_rebuilt(tmp_path: Path, lost: str) -> None:
    target = generate(tmp_path / "set", train=3, val=2)
    whole = contents(target)
    (target / lost).unlink()
    generate(target, train=3, val=2)
    assert contents(target) == whole


def test_a_cut_off_manifest_means_rebuild(tmp_path: Path) -> None:
    target = generate(tmp_path / "set", train=3, val=2)
    whole = contents(target)
    (target / "demo.json").write_text('{"train": 3, ')
    assert contents(generate(target, train=3, val=2)) == whole


def test_other_parameters_replace_the_set(tmp_path: Path) -> None:
    target = generate(tmp_path / "set", train=3, val=2)
    generate(target, train=2, val=2, size=64)
    assert len(list((target / "train2017").iterdir())) == 2
    with Image.open(target / "train2017" / "000000000001.jpg") as picture:
        assert picture.size == (64, 64)


def test_an_interrupted_call_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = demo.draw, itertools.count()

    def stop_at_the_third(scene: Scene, rng: np.random.Generator, size: int) -> Image.Image:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(scene, rng, size)

    monkeypatch.setattr(demo, "draw", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", train=5, val=2)
    assert list(tmp_path.iterdir()) == []
    generate(tmp_path / "set", train=5, val=2)
    assert len(load_scenes(tmp_path / "set", "train")) == 5


def test_what_a_killed_call_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".set.partial" / "train2017").mkdir(parents=True)
    (tmp_path / ".set.partial" / "train2017" / "000000000009.jpg").write_bytes(b"half")
    generate(tmp_path / "set", train=2, val=1)
    assert os.listdir(tmp_path) == ["set"]
    assert len(os.listdir(tmp_path / "set" / "train2017")) == 2


def test_a_real_coco_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "coco" / "train2017" / "1.jpg").write_bytes(b"a photograph")
    with pytest.raises(DataError, match="no demo set"):
        generate(tmp_path / "coco", train=2, val=1)
    assert (tmp_path / "coco" / "train2017" / "1.jpg").read_bytes() == b"a photograph"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no demo set"):
        generate(tmp_path / "file", train=2, val=1)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": 20}, {"seed": -1}, {"train": 2_000_000}])
def test_parameters_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        generate(tmp_path / "set", **{"train": 2, "val": 1, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_load_scenes_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="scenes_val2017.json is missing"):
        load_scenes(tmp_path, "val")
    with pytest.raises(ValueError, match="split 'test'"):
        load_scenes(tmp_path, "test")
    for damaged in ('{"1": {', '{"1": {"things": []}}', "[]", '{"1": 5}'):
        (tmp_path / "scenes_val2017.json").write_text(damaged)
        with pytest.raises(DataError, match="damaged"):
            load_scenes(tmp_path, "val")


# The scenes


def test_a_scene_survives_json(told: list[tuple[Scene, str]]) -> None:
    for scene, _ in told[:300]:
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


@pytest.mark.parametrize(
    "change",
    [{"background": "red"}, {"position": None}, {"relation": "left"}, {"count": 0}, {"things": GROUP.things * 2}],
)
def test_a_scene_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Scene"):
        replace(GROUP, **change)


def test_two_things_that_captions_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="tell apart"):
        replace(PAIR, things=(PAIR.things[0], replace(PAIR.things[0], size="large")))


def test_colours_are_far_apart_and_stand_out() -> None:
    for (one, a), (two, b) in itertools.combinations(SETTINGS.colours.items(), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 100, (one, two)
    for (one, a), (two, b) in itertools.product(SETTINGS.colours.items(), SETTINGS.backgrounds.items()):
        if one != two:
            assert np.linalg.norm(np.subtract(a, b)) > 80, (one, two)


def test_objects_stay_inside_apart_and_where_the_truth_says() -> None:
    rng = np.random.default_rng(5)
    for _ in range(1500):
        scene = sample_scene(rng)
        placed = place(scene, rng)
        assert len(placed) == sum(1 for _ in scene.things) * scene.count
        spots = np.array([(x, y) for _, x, y in placed])
        radii = np.array([SETTINGS.radius[thing.size] for thing, _, _ in placed]) * (1 + SETTINGS.radius_jitter)
        assert (spots.min(0) - radii.max() > 3).all() and (spots.max(0) + radii.max() < FRAME - 3).all()
        for one, two in itertools.combinations(range(len(placed)), 2):
            assert np.linalg.norm(spots[one] - spots[two]) > radii[one] + radii[two] + 0.5
        if scene.position is not None:
            x, y = spots.mean(0) - FRAME / 2
            side = {"left": -x, "right": x, "top": -y, "bottom": y}
            if scene.position == "centre":
                assert max(abs(x), abs(y)) < 4
            else:
                assert side[scene.position] > 16
                assert max(abs(value) for value in (x, y) if abs(value) != side[scene.position]) < 6
        else:
            x, y = spots[0] - spots[1]
            towards = {"left": -x, "right": x, "above": -y, "below": y}[scene.relation]
            assert towards > 27 and abs(x if scene.relation in ("above", "below") else y) < 11


def painted(scene: Scene, size: int = 72) -> np.ndarray:
    return np.asarray(demo.draw(scene, np.random.default_rng(0), size)).astype(int)


def test_every_attribute_can_be_seen() -> None:
    """The same lot, one attribute changed: many pixels change much, beyond noise and jitter."""
    plain = replace(GROUP, background_texture="plain", things=(Thing("circle", "red", "large", "solid"),))
    (thing,) = plain.things

    def changed(other: Scene) -> int:
        return int((np.abs(painted(plain) - painted(other)).max(-1) > 40).sum())

    assert changed(plain) == 0
    for shape in SETTINGS.shapes[1:]:
        assert changed(replace(plain, things=(replace(thing, shape=shape),))) > 40, shape
    for colour in SETTINGS.colours:
        if colour != "red":
            assert changed(replace(plain, things=(replace(thing, colour=colour),))) > 200, colour
    assert changed(replace(plain, things=(replace(thing, texture="striped"),))) > 80
    assert changed(replace(plain, things=(replace(thing, size="small"),))) > 80
    assert changed(replace(plain, count=1)) > 150
    for position in SETTINGS.positions[1:]:
        assert changed(replace(plain, position=position)) > 150, position
    for background in SETTINGS.backgrounds:
        if background != "grey":
            assert changed(replace(plain, background=background)) > 1000, background
    checked = painted(replace(plain, background_texture="checked"))[:, 40:]
    assert checked.std() > 2 * painted(plain)[:, 40:].std()


def test_painted_colour_area_and_place_are_those_of_the_truth() -> None:
    scene = Scene((Thing("square", "blue", "large", "solid"),), 1, "right", None, "white", "plain")
    blue = painted(scene) - np.array(SETTINGS.colours["blue"])
    rows, columns = np.nonzero(np.abs(blue).max(-1) < 30)
    assert columns.mean() > 50 and 28 < rows.mean() < 44
    radius = SETTINGS.radius["large"]  # of the circle around it, so a side is sqrt(2) times that
    assert all(1.3 * radius <= np.ptp(along) <= 1.8 * radius for along in (columns, rows))
    assert painted(scene, 144).shape == (144, 144, 3)
