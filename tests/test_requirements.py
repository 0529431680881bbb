"""PYCAP_REQUIRE turns what is missing into a failure, and the markers `peers`, `realdata`, `browser` skip with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest


def test_what_is_there_is_no_problem() -> None:
    assert conftest.missing_requirements("") == []
    assert conftest.missing_requirements(" reference, ") == []


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    (problem,) = conftest.missing_requirements("reference,quantum")
    assert "'quantum'" in problem
    assert "reference, cpp, triton-interpret, cuda-emu, mpi, onnx, peers, onnxruntime, browser" in problem


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [("peers", "torch", "make test PEERS=1"), ("cuda-emu", "pycap._cuda_emu", "make emulation")],
)
def test_a_missing_module_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (problem,) = conftest.missing_requirements(name)
    assert f"{module} does not import" in problem and remedy in problem


def test_a_missing_program_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "selenium", sys)  # there, as far as an import can tell
    for program in ("chromium", "chromedriver"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert conftest.missing_requirements("browser") == []
    (tmp_path / "chromedriver").unlink()
    (problem,) = conftest.missing_requirements("browser")
    assert "there is no chromedriver" in problem and "apt-get install chromium chromium-driver" in problem


def test_data_is_found_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYCAP_DATA", str(tmp_path))
    assert conftest.find_data() == tmp_path
    monkeypatch.setenv("PYCAP_DATA", str(tmp_path / "absent"))
    assert conftest.find_data() is None


_WANTS_DATA = "@pytest.mark.realdata\ndef test_it(data_root): assert data_root\n"


def _pytest(tmp_path: Path, test: str = _WANTS_DATA, **variables: str) -> subprocess.CompletedProcess[str]:
    """A pytest of its own, with this conftest.py, over one test."""
    root = conftest.ROOT
    (tmp_path / "conftest.py").write_text((root / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(f"import pytest\n{test}")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-c", str(root / "pyproject.toml")]
    return subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYCAP_REQUIRE": "", **variables},
    )


def test_a_missing_requirement_stops_the_run(tmp_path: Path) -> None:
    done = _pytest(tmp_path, PYCAP_REQUIRE="quantum")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "PYCAP_REQUIRE names 'quantum'" in done.stdout + done.stderr


def test_real_data_is_used_or_skipped_with_a_reason(tmp_path: Path) -> None:
    assert "1 passed" in _pytest(tmp_path, PYCAP_DATA=str(tmp_path)).stdout
    skipped = _pytest(tmp_path, PYCAP_DATA=str(tmp_path / "absent"))
    assert skipped.returncode == 0
    assert "set PYCAP_DATA" in skipped.stdout


def test_what_needs_a_browser_is_skipped_where_there_is_none(tmp_path: Path) -> None:
    skipped = _pytest(tmp_path, test="@pytest.mark.browser\ndef test_it(): assert False\n", PATH=str(tmp_path))
    assert skipped.returncode == 0
    assert "there is no chromium on the PATH" in skipped.stdout
