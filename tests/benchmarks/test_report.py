"""The headline table: one line a work, a column a peer; README's block is replaced and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.results import KEYS


def row(**values: Any) -> dict[str, Any]:
    base = {
        "versions": {"python": "3.11", "torch": "2.13"},
        "hardware": "a CPU, 2 threads",
        "commit": "abc",
        "note": "",
    }
    return {**dict.fromkeys(KEYS), **base, **values}


ROWS = [
    row(label="VGG16", peer="torch 2.13", median_s=0.5, peer_median_s=1.25, ratio=2.5),
    row(label="VGG16", peer="openvino 2026", median_s=0.5, note="openvino: openvino is not installed"),
    row(label="LSTM", peer="torch 2.13", peer_median_s=0.0021, note="pycap: no kernel"),
    row(label="", op="pool", peer="torch 2.13", median_s=1.0, peer_median_s=2.0, ratio=2.0),
]


def test_headline() -> None:
    heading, vgg16, lstm = report.headline(ROWS)
    assert heading[:3] == ["work", "pycap", "PyTorch"]
    assert vgg16[:3] == ["VGG16", "500 ms", "1.25 s (2.50x)"]
    assert lstm[:3] == ["LSTM", "-", "2.1 ms"]
    assert len(heading) == len(vgg16) == len(lstm)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (12.34, "12.3 s"), (1.0, "1 s"), (0.2345, "234 ms"), (0.0213, "21.3 ms"), (4.5e-5, "45 us")],
)
def test_times_for_people(value: float | None, text: str) -> None:
    assert report.seconds(value) == text


def test_what_is_missing_is_told_once() -> None:
    assert report.notes([*ROWS, ROWS[2]]) == [
        "openvino: openvino is not installed (1 row)",
        "pycap: no kernel (2 rows)",
    ]


def test_readme_keeps_all_but_the_block(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    picture = tmp_path / "results" / "headline.svg"
    picture.parent.mkdir()
    picture.write_text("<svg/>")
    report.update_readme(ROWS, picture, readme)
    text = readme.read_text()
    assert text.startswith("# before\n") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text and "| VGG16 | 500 ms | 1.25 s (2.50x) |" in text
    assert "(results/headline.svg)" in text and "a CPU, 2 threads" in text
    report.update_readme(ROWS, tmp_path / "none.svg", readme)
    assert "svg" not in readme.read_text(), "no link to a picture that is not there"


def test_the_joint_steps_memory_stands_below_the_table() -> None:
    joint = row(op="joint", label="joint", peer="torch 2.13", dtype="float32", peak_mib=2665.4, peer_peak_mib=3113.6)
    text = report.markdown([*ROWS, joint], None)
    assert "Peak memory of the joint step: 2665 MiB (PyTorch 3114 MiB) in float32." in text
    assert "Peak memory" not in report.markdown(ROWS, None)


@pytest.mark.parametrize("text", ["no markers", f"{report.END}\n{report.BEGIN}", f"{report.BEGIN} only"])
def test_a_readme_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"README\.md: needs one line"):
        report.replace_block(text, "block")


def test_this_repository_has_the_markers() -> None:
    text = (report.ROOT / "README.md").read_text("utf-8")
    assert "new" in report.replace_block(text, "new")
