"""Stages from their recipes to a run: several data sets, what the run tells of them, frozen or joint by a flag."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pycap
from pycap.config import TrainConfig, parse_args, stages
from pycap.data import DataError, demo_domains
from pycap.data.datasets import KINDS, STAGES
from pycap.data.vocab import Vocabulary
from tests.train.runs import lines, rows, tiny


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn sets in the layouts of COCO, Flickr8k, Flickr30k and ImageCLEF; the smallest ones."""
    return demo_domains.generate(tmp_path_factory.mktemp("domains") / "set", share=0.01, size=64)


@pytest.mark.parametrize("stage", stages())
def test_each_stage_is_joint_or_frozen_by_a_flag(stage: str) -> None:
    joint, frozen = parse_args(["--stage", stage]), parse_args(["--stage", stage, "--freeze-cnn"])
    assert joint.stage == stage and not joint.freeze_cnn
    assert frozen.freeze_cnn and frozen.finetune_cnn_after == frozen.pretrain_words == 0


def test_every_kind_but_picks_and_every_combination_has_a_recipe() -> None:
    assert {*KINDS, *STAGES} - {"picks"} <= set(stages())


@pytest.mark.parametrize("flag", ["--freeze-cnn", "--blind"])
def test_a_cnn_that_does_not_learn_goes_before_the_demo_sets_recipe(flag: str) -> None:
    config = parse_args(["--stage", "coco", flag])
    changed = pycap.config.with_recipe(config, "demo")
    assert (changed.freeze_cnn or changed.blind, changed.pretrain_words, changed.cnn) == (True, 0, "vgg_micro")
    assert parse_args(["--recipe", "demo", flag]).pretrain_words == 0
    assert pycap.config.with_recipe(parse_args(["--stage", "coco"]), "demo").pretrain_words > 0


def test_a_run_on_several_sets(domains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = (domains / "flickr8k" / "Flickr8k_text" / "Flickr_8k.devImages.txt").read_text().split()[0]
    new = next((domains / "imageclef" / "scaleconcepts16_images").rglob("*.jpg"))
    pairs = [
        {"file_name": str(new), "caption": "a zebra"},
        {"file_name": f"flickr8k/Flicker8k_Dataset/{held_out}", "caption": "a dog"},
        {"file_name": str(new)},
    ]
    picks = tmp_path / "picks.jsonl"
    picks.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    done = pycap.train(tiny(domains, tmp_path / "run", stage="selected", picks=picks, max_steps=2, val_images_use=6))
    captions = lines(done.folder / "captions.jsonl")
    kinds = [str(row["image_id"]).split("/")[0] for row in captions]
    assert kinds[:2] == ["flickr8k", "flickr30k"] and set(kinds) == {"flickr8k", "flickr30k"}
    assert len({row["image_id"] for row in captions}) == len(captions)
    assert "zebra" in Vocabulary.load(done.folder / "vocab.json").words
    skipped = {row["file"]: row for row in lines(done.folder / "skipped.jsonl")}
    assert skipped[f"picks/flickr8k/Flicker8k_Dataset/{held_out}"]["held_out_by"] == "flickr8k"
    assert skipped["picks/picks.jsonl"]["line"] == 3
    told = [row["text"] for row in rows(done.folder, "remark")]
    picked = f"picks: 1 images to train on, 0 to validate, from {picks}; 1 left out of training, which another set"
    assert len(told) == 3 and str(told[2]).startswith(picked)
    assert picked in " ".join(capsys.readouterr().out.split())


def test_a_run_on_all_of_coco_says_that_it_has_seen_what_it_is_validated_on(domains: Path, tmp_path: Path) -> None:
    done = pycap.train(tiny(domains / "coco", tmp_path / "run", stage="coco_all", max_steps=1, val_images_use=4))
    (remark,) = rows(done.folder, "remark")
    assert "trains on COCO's validation images too" in str(remark["text"])


def test_the_option_goes_before_the_stages_own_sets(domains: Path, tmp_path: Path) -> None:
    spec = f"imageclef+flickr8k={domains / 'flickr8k'}"
    config = tiny(domains, tmp_path / "run", datasets=spec, max_steps=1, val_images_use=2)
    captions = lines(pycap.train(config).folder / "captions.jsonl")
    assert [str(row["image_id"]).split("/")[0] for row in captions] == ["imageclef", "flickr8k"]


def test_a_run_folder_that_holds_one_of_the_sets_is_refused(domains: Path, tmp_path: Path) -> None:
    spec = f"imageclef+flickr8k={domains / 'flickr8k'}"
    with pytest.raises(pycap.config.ConfigError, match=r"out_dir: .*flickr8k holds .*flickr8k, which this run reads"):
        pycap.train(tiny(domains, domains / "flickr8k", datasets=spec))


def test_a_stage_without_data_says_what_it_wants_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no flickr8k in .*data/flickr8k \(wanted: .*no flickr30k in .*--data ROOT"):
        pycap.train(TrainConfig(stage="flickr"))
    with pytest.raises(DataError, match=r"data/coco: no such folder; give --data the folder that holds annotations/"):
        pycap.train(TrainConfig(stage="coco_all"))
