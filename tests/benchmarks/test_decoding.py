"""The benchmark of decoding: each pass decodes all images, and says where it was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import decoding
from benchmarks.machine import cpu_name
from pycap.data import images, loader
from tests.data.fixtures import write_jpeg


def test_every_pass_decodes_each_image_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        write_jpeg(tmp_path / "below" / f"{i}.jpg", seed=i, height=24, width=28)
    sources = []

    def spy(source: object, size: int, name: str | None = None) -> images.Pixels:
        sources.append(type(source) is bytes)
        return images.decode_image(source, size, name)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "decode_image", spy)
    how = ["--threads", "1", "2", "--resize", "16", "--batch-size", "4", "--images", "10"]
    assert decoding.main([str(tmp_path), *how]) == 0
    # From files; from files and then from what was stored of them; from the store.
    assert len(sources) == 2 * (10 + 20 + 10) and sum(sources) == 2 * (10 + 10)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == f"{cpu_name()}; 10 images to 16 px, batches of 4"
    assert [row.partition("  ")[0] for row in rows] == ["1 threads"] * 3 + ["2 threads"] * 3
    for row, name in zip(rows, decoding.PASSES * 2, strict=True):
        assert f"  {name} " in row and row.endswith("a thread")
        whole, each = (float(part.split()[-1]) for part in row.removesuffix(" a thread").split("images/s"))
        assert whole > 0 and each == pytest.approx(whole / int(row[0]), abs=1)


def test_a_folder_without_images_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert decoding.main([str(tmp_path)]) == 1
    assert f"{tmp_path}: no images in the folder" in capsys.readouterr().err
