"""What a record tells of this pycap and this machine is read off them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycap import provenance


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a Python file, a compiled module, something else, and the kernels beside the package."""
    folder = tmp_path / "pycap"
    (folder / "ops").mkdir(parents=True)
    (tmp_path / "kernels").mkdir()
    for name in ("pycap/a.py", "pycap/ops/b.py", "pycap/_cpu.so", "pycap/notes.txt", "kernels/k.py"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(provenance, "_HOME", folder)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "sources", "compiled"),
    [
        ("pycap/a.py", True, False),
        ("pycap/ops/b.py", True, False),
        ("kernels/k.py", True, False),
        ("pycap/_cpu.so", False, True),
        ("pycap/notes.txt", False, False),
        ("kernels/notes.txt", False, False),
    ],
)
def test_digests_are_of_sources_and_of_compiled_modules(home: Path, file: str, sources: bool, compiled: bool) -> None:
    before = provenance._installed()
    assert provenance._installed() == before and before[0] != before[1]
    path = home / file
    path.write_text(path.read_text()[::-1] if path.exists() else "new")  # as many letters
    after = provenance._installed()
    assert (after[0] != before[0], after[1] != before[1]) == (sources, compiled)


def test_names_count_and_kernels_within_a_wheel_are_counted_once(home: Path) -> None:
    before = provenance._installed()
    (home / "pycap" / "a.py").rename(home / "pycap" / "c.py")
    moved = provenance._installed()
    assert moved[0] != before[0]
    (home / "kernels").rename(home / "pycap" / "kernels")
    wheel = provenance._installed()
    assert wheel[0] == moved[0]  # where they lie is told alike
    (home / "kernels").mkdir()
    (home / "kernels" / "another.py").write_text("of somebody else")
    assert provenance._installed() == wheel


def test_the_cpus_features_are_those_it_has() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("the system tells of no flags")
    lines = info.read_text().splitlines()
    flags = next(line for line in lines if line.startswith(("flags", "Features"))).partition(":")[2].split()
    _, features = provenance.cpu()
    assert set(features) == {known for flag, known in provenance.FEATURES.items() if flag in flags}
