"""Disks, memory and threads as `pycap doctor` tells them: what a run needs there, and what it would fail with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pycap
from pycap import device
from pycap.cli import main
from pycap.config import ConfigError, TrainConfig, parse_args
from pycap.data import demo
from pycap.doctor import disk, machine
from pycap.training.folder import make_room
from tests.train.runs import tiny

SMALL: dict[str, Any] = {
    "cnn": "vgg_micro", "image_size": 64, "fc_size": 64, "rnn_size": 32, "input_encoding_size": 32, "stage": "flickr8k",
}  # fmt: skip


def usage(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, used=0, free=free))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny(demo.generate(folder / "demo", train=8, val=2, size=64), folder / "out", max_steps=1)
    return config, pycap.train(config).folder


def test_a_checkpoint_takes_what_is_told(run: tuple[TrainConfig, Path]) -> None:
    config, folder = run
    words = len(json.loads((folder / "vocab.json").read_text())["words"])
    told = disk.needs(config, words)
    took = {name: sum(file.stat().st_size for file in (folder / name).iterdir()) for name in ("best", "last")}
    assert took["last"] <= told["checkpoint"] <= took["last"] + disk._STATE
    arrays = sum(file.stat().st_size for file in (folder / "last").glob("*.safetensors"))
    assert 0 <= arrays - (told["checkpoint"] - disk._STATE) < 1 << 15  # their headers
    assert took["best"] + 2 * took["last"] <= told["checkpoints"] <= took["best"] + 2 * took["last"] + 3 * disk._STATE
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) <= told["log"]


def test_stores_and_features_are_counted_where_a_run_makes_them(tmp_path: Path) -> None:
    config = TrainConfig(stage="coco", **{k: v for k, v in SMALL.items() if k != "stage"})
    side = config.resize_to
    assert disk.needs(config, 100)["store"] == round(123_287 * side * side * 0.6)
    assert disk.needs(TrainConfig(**SMALL), 100)["store"] == 0  # fits into memory
    assert disk.needs(TrainConfig(**SMALL, store="some.h5"), 100)["store"] > 0
    frozen = TrainConfig(**SMALL, features="auto", freeze_cnn=True)
    assert disk.needs(frozen, 100)["features"] == 8000 * 64 * 4 and disk.needs(frozen, 100)["store"] == 0
    named = disk.places(TrainConfig(**SMALL, store=str(tmp_path / "some.h5"), out_dir=tmp_path / "runs" / "x"))
    assert [place["for"] for place in named] == ["run", "store", "data", "cache"]


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (lambda one, all: one - 1, "the run would end at its first"),
        (lambda one, all: all - 1, "it would end half way"),
        (lambda one, all: all, ""),
    ],
)
def test_a_full_disk_is_told_before_the_run(monkeypatch, tmp_path, capsys, room, said) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    options += ["--store", "none"]
    wanted = disk.needs(parse_args(options), 10_000)
    usage(monkeypatch, room(wanted["checkpoint"], wanted["checkpoints"] + wanted["log"]))
    with pytest.raises(SystemExit) as exit:
        main(["doctor", "--plan", "--json", "--device", "cpu", "--out-dir", str(tmp_path / "run"), *options])
    planned = json.loads(capsys.readouterr().out)
    assert planned["bytes"].keys() == {"weights", "optimizer"} and planned["no_gpu"] == "--device cpu"
    found = planned["disk"]["findings"]
    assert exit.value.code == int(bool(said))
    assert [said in finding["what"] and "free space" in finding["remedy"] for finding in found] == [True] * bool(said)


def test_a_folder_in_memory_or_far_away_is_told(monkeypatch, tmp_path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/vda rw\n"
        f"2 1 0:5 / {tmp_path}/quick rw - tmpfs none rw\n"
        f"3 1 0:6 / {tmp_path}/far\\040away rw shared:1 - nfs4 server:/x rw\n"
    )
    monkeypatch.setattr(disk, "_MOUNTS", mounts)
    usage(monkeypatch, 1 << 40)
    kinds = {}
    for name in ("quick", "far away", "quicker"):
        (tmp_path / name).mkdir()
        config = TrainConfig(**SMALL, out_dir=tmp_path / name / "run")
        found = disk.check(config, 100)
        kinds[name] = found["places"][0]["kind"], [finding["what"] for finding in found["findings"]]
    assert kinds["quick"][0] == "tmpfs" and "lies in memory (tmpfs)" in kinds["quick"][1][0]
    assert kinds["far away"][0] == "nfs4" and "network disk (nfs4)" in kinds["far away"][1][0]
    assert kinds["quicker"] == ("ext4", [])


def test_a_folder_that_holds_other_things_is_told(monkeypatch, tmp_path) -> None:
    usage(monkeypatch, 1 << 40)
    config = TrainConfig(**SMALL, out_dir=tmp_path)
    assert disk.check(config, 100)["findings"] == []
    (tmp_path / "notes.txt").write_text("mine")
    (found,) = disk.check(config, 100)["findings"]
    assert found["severity"] == "error" and "no run starts there" in found["what"]
    with pytest.raises(ConfigError, match="holds other things than an earlier run"):  # as training says it
        make_room(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    assert disk.check(config, 100)["findings"] == []


def test_few_files_left_and_no_right_to_write(monkeypatch, tmp_path) -> None:
    place = {"for": "run", "path": "runs/x", "kind": "ext4", "free_inodes": 12, "writable": False}
    first, second = disk.remarks([place, {**place, "for": "data"}])
    assert first["severity"] == "error" and "runs/x (run) cannot be written" in first["what"]
    assert second["severity"] == "warning" and "room for 12 more files only" in second["what"]
    assert disk.remarks([{**place, "writable": True, "free_inodes": None}]) == []


def test_what_a_container_allows(monkeypatch, tmp_path) -> None:
    """Control groups of version 2, one within the other, and of version 1."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable:   32000000 kB\n")
    monkeypatch.setattr(machine, "_PROC", proc)
    monkeypatch.setattr(machine, "_CGROUPS", groups)
    (proc / "self" / "cgroup").write_text("0::/one/two\n")
    assert machine.memory()["limit_bytes"] is None
    assert machine.memory()["available_bytes"] == 32_000_000 * 1024
    inner = groups / "one" / "two"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (groups / "one" / "memory.max").write_text(f"{4 << 30}\n")
    (groups / "one" / "memory.current").write_text(f"{3 << 30}\n")
    (groups / "one" / "memory.stat").write_text(f"anon 7\ninactive_file {1 << 30}\n")
    assert machine.memory()["limit_bytes"] == 4 << 30 and machine.memory()["available_bytes"] == 2 << 30
    (inner / "memory.max").write_text(f"{3 << 30}\n")
    (inner / "memory.current").write_text(f"{1 << 30}\n")
    assert machine.memory()["limit_bytes"] == 3 << 30 and machine.memory()["available_bytes"] == 2 << 30
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/elsewhere\n5:memory:/old\n")
    old = groups / "memory" / "old"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text(f"{9223372036854771712}\n")
    assert machine.memory()["limit_bytes"] is None  # how version 1 writes that there is none
    (groups / "memory" / "memory.limit_in_bytes").write_text(f"{8 << 30}\n")
    (groups / "memory" / "memory.usage_in_bytes").write_text(f"{1 << 30}\n")
    assert machine.memory()["limit_bytes"] == 8 << 30 and machine.memory()["available_bytes"] == 7 << 30


def test_more_threads_than_cpus(monkeypatch) -> None:
    monkeypatch.setattr(device, "allowed_cpus", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    (finding,) = machine._thread_findings()
    assert "OMP_NUM_THREADS=8" in finding["what"] and "set it to 3" in finding["remedy"]
    for value in ("3", "", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert machine._thread_findings() == []
