"""The benchmark of the input pipeline: what a pass does, how it is counted, what the record says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import input as benchmark
from pycap.data import DataError, images, loader
from tests.data.fixtures import truncate, write_jpeg


class Peer:
    """A stand-in for benchmarks.peers.torch_input: it only counts files, and one of its pixels is one level off."""

    NAME = "stand-in"

    class Pipeline:
        def __init__(self, folder: Path, size: int, crop: int, batch_size: int, workers: int) -> None:
            self.files = sorted(folder.glob("*/*"))
            assert all(Image.open(file).size == (16, 16) for file in self.files) == (folder.name == "store")

        def epoch(self) -> list[int]:
            return [len(self.files)]

    @staticmethod
    def pixels(path: Path, size: int) -> np.ndarray:
        pixels = images.decode_image(path, size)
        pixels[0, 0, 0] ^= path.stem == "1"
        return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        write_jpeg(tmp_path / "photographs" / "below" / f"{i}.jpg", seed=i, height=24, width=28)
    return tmp_path / "photographs"


def run(monkeypatch: pytest.MonkeyPatch, peer: type | None, *arguments: str) -> int:
    monkeypatch.setattr(benchmark, "find_peer", lambda: peer)
    return benchmark.main([*arguments, "--resize", "16", "--images", "10", "--rounds", "2"])


def test_every_pass_decodes_each_image_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = []

    def spy(source, size, name=None, out=None):
        sources.append(type(source) is bytes)
        return images.decode_image(source, size, name, out)

    monkeypatch.setattr(loader, "decode_image", spy)
    assert run(monkeypatch, None, "--data", str(folder)) == 0
    # Into the store: from files, and from what was stored of them; then 1 and 2 threads, 2 rounds and one before.
    assert len(sources) == 20 + 60 + 60 and sum(sources) == 10 + 60
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[:-1]] == [
        ["filling", "1"], ["files", "1"], ["files", "2"], ["store", "1"], ["store", "2"]
    ]  # fmt: skip


def test_the_peer_takes_turns_and_the_record_holds_both(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "input.json"
    assert run(monkeypatch, Peer, "--data", str(folder), "--out", str(out), "--workers", "1") == 0
    found = json.loads(out.read_text())
    assert [(row["work"], row["side"], row["workers"], row["rounds"]) for row in found["rows"]] == [
        ("filling", "pycap", 1, 1),
        ("files", "pycap", 1, 2),
        ("files", "stand-in", 1, 2),
        ("store", "pycap", 1, 2),
        ("store", "stand-in", 1, 2),
    ]
    assert found["pixels"] == {
        "images": 3,
        "identical": 2,
        "largest_level": 1,
        "mean_level": round(1 / (3 * 16 * 16 * 3), 5),
    }
    assert "batches of 64" in found["what"] and found["hardware"]


def test_without_pytorch_pycap_is_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.torch_input", raising=False)
    assert benchmark.find_peer() is None
    assert "pycap alone: " in capsys.readouterr().err


def test_turns_alternate_and_the_first_round_is_forgotten() -> None:
    order: list[str] = []
    passes = [
        benchmark.Pass("files", name, 1, lambda name=name: order.append(name) or [2, 3]) for name in ("ours", "theirs")
    ]
    benchmark.take_turns(passes, 2, 5)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert [len(one.samples) for one in passes] == [2, 2]


def test_rates_are_images_over_seconds_and_over_cpu_seconds() -> None:
    one = benchmark.Pass("files", "ours", 2, tuple, [(2.0, 3.0), (1.0, 4.0), (4.0, 5.0)])
    row = benchmark.row(one, 100)
    assert (row["images_per_s"], row["images_per_core_s"]) == (50.0, 25.0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")
def test_cpu_time_of_children_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark.time, "process_time", lambda: 1.0)
    assert benchmark.cpu_seconds() == 1.0
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    monkeypatch.setattr(benchmark.multiprocessing, "active_children", lambda: [SimpleNamespace(pid="self")])
    ticks = round((benchmark.cpu_seconds() - 1.0) * benchmark.os.sysconf("SC_CLK_TCK"))
    assert 0 < int(stat[11]) + int(stat[12]) <= ticks


def test_images_that_cannot_be_read_end_the_measurement(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="ours, files: 4 images of 5"):
        benchmark.take_turns([benchmark.Pass("files", "ours", 1, lambda: [4])], 1, 5)
    truncate(folder / "below" / "1.jpg")
    assert run(monkeypatch, Peer, "--data", str(folder)) == 1
    assert "1.jpg: corrupt or cut short" in capsys.readouterr().err


def test_a_folder_without_images_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, Peer, "--data", str(tmp_path)) == 1
    assert f"{tmp_path}: no images in the folder" in capsys.readouterr().err


def test_photographs_are_drawn_where_there_are_none(tmp_path: Path) -> None:
    files = benchmark.photographs(None, tmp_path, 5)
    sizes = []
    for file in files:
        with Image.open(file) as image:
            sizes.append(image.size)
    assert sizes == [(640, 480), (480, 640), (640, 427), (640, 480), (640, 480)]
    assert 100e3 < sum(file.stat().st_size for file in files) / len(files) < 200e3
