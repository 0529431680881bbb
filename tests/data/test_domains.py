"""The demo domains: they differ as their table says, are the same every time, and lie as the readers expect."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pycap.data import DataError, demo, demo_domains, load_split
from pycap.data.demo_domains import DOMAINS, examples, generate, load_scenes
from pycap.data.demo_grammar import GROUP_TEMPLATES, PAIR_TEMPLATES, WORDS
from pycap.data.demo_layouts import Drawn

SHARE = 0.02
CAPTIONED = ("coco", "flickr8k", "flickr30k", "imageclef")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("domains") / "all", share=SHARE)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Drawn]]:
    """250 images of each domain's first split."""
    return {name: examples(name, next(iter(domain.splits)), 250, 0, 48, set()) for name, domain in DOMAINS.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def share(values: list[str], wanted: str) -> float:
    return values.count(wanted) / len(values)


# What is drawn and told


def test_shapes_colours_and_backgrounds_are_as_frequent_as_the_table_says(drawn: dict[str, list[Drawn]]) -> None:
    for name, images in drawn.items():
        settings = DOMAINS[name].settings
        things = [thing for d in images for thing in d.scene.things]
        backgrounds = [d.scene.background for d in images]
        for kind, seen in (("shapes", [thing.shape for thing in things]), ("backgrounds", backgrounds)):
            weights = {value: settings.weights.get(kind, {}).get(value, 1.0) for value in getattr(settings, kind)}
            total = sum(weights.values())
            for value, weight in weights.items():
                # Five deviations of a binomial of as many draws: one wrong alarm in a million.
                spread = 5 * (weight / total * (1 - weight / total) / len(seen)) ** 0.5
                assert share(seen, value) == pytest.approx(weight / total, abs=spread), (name, kind, value)
        assert {thing.colour for thing in things} == {
            colour for colour in settings.colours if settings.weights.get("colours", {}).get(colour, 1.0) > 0
        }


def test_coco_lacks_what_the_target_has_and_the_flickr_sets_teach(drawn: dict[str, list[Drawn]]) -> None:
    seen = {
        name: {fact for d in images for t in d.scene.things for fact in (t.shape, t.colour, f"on {d.scene.background}")}
        for name, images in drawn.items()
    }
    assert seen["imageclef"] - seen["coco"] == {"star", "pink", "on green"}
    assert seen["imageclef"] - seen["flickr30k"] == set()
    assert seen["imageclef"] - seen["flickr8k"] == {"cross"}
    spoken = {name: {word for d in images for c in d.captions for word in c.split()} for name, images in drawn.items()}
    assert {"disc", "hoops", "big", "little", "middle", "over", "under", "pair"} <= spoken["imageclef"] - spoken["coco"]
    assert spoken["coco"] <= spoken["imageclef"] and spoken["imageclef"] == spoken["flickr30k"]
    assert spoken["imageclef"] - spoken["flickr8k"] == {"cross", "crosses"}


def test_the_flickr_sets_speak_more_like_the_target_than_coco_does(drawn: dict[str, list[Drawn]]) -> None:
    words = {name: Counter(word for d in drawn[name] for c in d.captions for word in c.split()) for name in CAPTIONED}
    every = sorted(set().union(*words.values()))
    frequency = {name: np.array([count[word] for word in every]) / count.total() for name, count in words.items()}
    distance = {name: np.abs(f - frequency["imageclef"]).sum() for name, f in frequency.items()}
    assert distance["flickr30k"] < 0.8 * distance["flickr8k"] and distance["flickr30k"] < 0.5 * distance["coco"]


def test_images_of_the_target_are_noisier(drawn: dict[str, list[Drawn]]) -> None:
    def noise(images: list[Drawn]) -> float:
        corners = [np.asarray(Image.open(io.BytesIO(d.jpeg)))[:4, :4].astype(float) for d in images[:60]]
        return float(np.mean([corner.std((0, 1)).mean() for corner in corners]))

    assert noise(drawn["imageclef"]) > 1.4 * noise(drawn["coco"])


def test_captions_are_true_different_and_of_the_one_grammar(drawn: dict[str, list[Drawn]]) -> None:
    for name in CAPTIONED:
        for d in drawn[name]:
            assert len(set(d.captions)) == DOMAINS[name].captions
            assert all(demo.is_true(caption, d.scene) for caption in d.captions), name


def test_the_table_names_only_what_the_grammar_and_the_scenes_know() -> None:
    phrases = {phrase for values in WORDS.values() for said in values.values() for phrase in said}
    for name, domain in DOMAINS.items():
        assert domain.usual <= phrases and domain.never <= phrases, name
        assert domain.groups.keys() <= GROUP_TEMPLATES.keys() and domain.pairs.keys() <= PAIR_TEMPLATES.keys()
        for kind, weights in domain.settings.weights.items():
            assert set(weights) <= set(getattr(domain.settings, kind)), (name, kind)
        assert all(said for values in domain.style.words.values() for said in values.values()), name


def test_sizes_are_in_the_order_of_the_real_ones() -> None:
    sizes = {name: domain.splits for name, domain in DOMAINS.items()}
    assert sizes["coco"]["train"] > sizes["flickr30k"]["train"] > sizes["flickr8k"]["train"]
    assert sizes["flickr8k"]["train"] > sizes["imageclef"]["val"] and sizes["imageclef"]["target"] >= 1000


# The folder


def test_the_readers_read_every_domain(root: Path) -> None:
    for name in ("coco", "flickr8k", "flickr30k"):
        for split, count in DOMAINS[name].splits.items():
            found, problems = load_split(name, root / name, split)
            assert len(found) == round(count * SHARE) and problems == []
            assert all(len(example.captions) == 5 and example.path.is_file() for example in found)
    for split, count in (("train", 6), ("test", 2), ("all", 8)):
        found, problems = load_split("imageclef", root / "imageclef", split)
        assert len(found) == count and problems == []
        assert all(len(example.captions) == 8 and example.path.is_file() for example in found)


def test_imagenet_is_a_tree_of_classes_that_name_the_one_object(root: Path) -> None:
    assert len(list((root / "imagenet" / "train").rglob("*.jpg"))) == round(5880 * SHARE)
    names = {folder.name for folder in (root / "imagenet" / "train").iterdir()}
    classes = {
        f"{colour}_{shape}" for colour in demo_domains.SETTINGS.colours for shape in demo_domains.SETTINGS.shapes
    }
    assert names == classes and len(names) == 42
    assert all(len(d.scene.things) == d.scene.count == 1 for d in examples("imagenet", "train", 50, 0, 48, set()))


def test_the_truth_of_the_target_lies_apart_from_its_images(root: Path) -> None:
    scenes = load_scenes(root)
    held = {path.stem for path in (root / "imageclef").rglob("*.jpg")}
    target = {path.stem for path in (root / "target").rglob("*.jpg")}
    assert (len(held), len(target)) == (8, 32) and scenes.keys() == held | target and not held & target
    assert {path.suffix for path in (root / "target").rglob("*") if path.is_file()} == {".jpg"}
    for line in (root / "imageclef" / "sentences.txt").read_text().splitlines():
        key, caption = line.split("\t")
        assert demo.is_true(caption, scenes[key])


def test_equal_seeds_give_equal_bytes_also_in_another_process(root: Path, tmp_path: Path) -> None:
    script = "import sys; from pycap.data.demo_domains import generate; generate(sys.argv[1], share=float(sys.argv[2]))"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path / "again"), str(SHARE)]
    subprocess.run(command, check=True, env=environment)
    assert contents(tmp_path / "again") == contents(root)


def test_no_image_occurs_twice_and_other_seeds_give_others(root: Path, tmp_path: Path) -> None:
    pictures = [data for name, data in contents(root).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures)
    others = contents(generate(tmp_path / "other", share=0.001, seed=1))
    assert not set(pictures) & {data for name, data in others.items() if name.endswith(".jpg")}


def test_a_second_call_does_nothing_and_a_lost_image_means_rebuild(tmp_path: Path) -> None:
    root = generate(tmp_path / "all", share=0.001)
    whole = contents(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generate(root, share=0.001)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times
    next((root / "coco" / "train2017").iterdir()).unlink()
    assert contents(generate(root, share=0.001)) == whole


def test_another_table_means_another_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = generate(tmp_path / "all", share=0.001)
    before = json.loads((root / "domains.json").read_text())
    monkeypatch.setitem(DOMAINS, "flickr8k", DOMAINS["flickr30k"])
    generate(root, share=0.001)
    assert json.loads((root / "domains.json").read_text())["table"] != before["table"]


def test_what_is_no_drawn_set_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    with pytest.raises(DataError, match="no demo set"):
        generate(tmp_path, share=0.001)
    assert os.listdir(tmp_path) == ["coco"]


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 11.0}, {"size": 20}, {"seed": -1}])
def test_parameters_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        generate(tmp_path / "all", **wrong)  # type: ignore[arg-type]


def test_missing_and_damaged_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        load_scenes(tmp_path)
    (tmp_path / "scenes.json").write_text('{"a": {')
    with pytest.raises(DataError, match="damaged"):
        load_scenes(tmp_path)
