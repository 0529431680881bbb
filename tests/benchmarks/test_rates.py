"""The rates of this machine: each is found on small things, and a file of them is what the simulation reads."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import jpegs, rates, scale
from benchmarks.rates import MEASURES, Where

#: Those of VGG16 take minutes and a GiB; `benchmarks.run` has tests of what they time.
LIGHT = [name for name in MEASURES if not name.startswith(("caption", "whole", "beam", "train", "start"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number, size in enumerate(((500, 420), (420, 500), (90, 60))):
        coarse = Image.fromarray(rng.integers(0, 255, (40, 40, 3)).astype(np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=95)
    return folder


@pytest.mark.parametrize("name", LIGHT)
def test_a_rate_is_found(name: str, data: Path, tmp_path: Path) -> None:
    where = Where(data, tmp_path, seconds=0.01, threads=1, files=30, rows=64, members=20)
    assert 0 < MEASURES[name].find(where) < 1e9


def test_a_rate_is_things_a_second_and_the_first_pass_is_not_counted(tmp_path: Path) -> None:
    passes = []

    def once() -> int:
        time.sleep(0.02 if passes else 0.2)
        passes.append(1)
        return 10

    found = rates.rate(Where(tmp_path, tmp_path, 0.0, 1), once)
    assert len(passes) == 4 and found <= 10 / 0.02


def test_photographs_are_made_of_what_is_large_enough_at_the_size_asked_for(data: Path, tmp_path: Path) -> None:
    files = jpegs.photographs(data, (320, 240), 30e3)
    assert len(files) == 2
    sizes = [abs(len(one) + len(two) - 60e3) for one, two in (files, jpegs.photographs(data, (320, 240), 5e3))]
    assert sizes[0] < sizes[1]
    with pytest.raises(ValueError, match="no photographs of 400 pixels"):
        (tmp_path / "small.jpg").write_bytes((data / "2.jpg").read_bytes())
        jpegs.photographs(tmp_path, (320, 240), 30e3)


def test_a_file_of_rates_is_completed_and_is_what_the_simulation_reads(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "rates.json"
    how = ["--data", str(data), "--out", str(out), "--seconds", "0.01", "--threads", "1", "--only"]
    assert rates.main([*how, "row_bytes"]) == 0 and rates.main([*how, "store_bytes"]) == 0
    found = json.loads(out.read_text("utf-8"))
    assert list(found["rates"]) == ["store_bytes", "row_bytes"] and found["threads"] == 1
    read = scale.load(out)
    assert read["row_bytes"].value == found["rates"]["row_bytes"]["value"] > 300
    assert read["row_bytes"].source.startswith("measured: ")


def test_every_rate_that_was_measured_is_there_and_no_other() -> None:
    assert set(scale.load()) == set(MEASURES) | set(scale.ASSUMED)


def test_a_joint_steps_batch_is_one_that_a_trainer_takes() -> None:
    for case in rates.registry():
        if case.op == "joint":
            assert len(rates.case_values.batch(case)) == case.shape["B"] == 4
