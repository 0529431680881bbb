"""The command: its options, red tests that refuse a timing, and rows that outlive Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure, run, verify
from benchmarks.cases import registry, select
from benchmarks.results import read
from tests.benchmarks.stubs import StubRemote


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sides without processes, and short turns; returns the options of the stubs by side."""
    options: dict[str, Any] = {"pycap": {}, "torch": {}}
    monkeypatch.setattr(measure, "Remote", lambda name, *_: StubRemote(name, 0.25, **options[name]))
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")  # the command sets them; they are put back
    return options


ONE = ["--case", "conv3_2-b8/forward/float32", "--short", "--peers", "torch"]


def test_rows_and_tables(stubbed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    assert run.main([*ONE, "--no-verify", "--json", str(file)]) == 0
    [row] = read(file)
    assert (row["op"], row["case"], row["ratio"], row["peer"]) == ("conv2d", "conv3_2-b8", 1.0, "torch 1.0")
    assert row["ceiling_pct"] is not None and file.with_suffix(".csv").exists()
    shown = capsys.readouterr().out
    assert "sgemm 4096^3" in shown and "1.00x" in shown


def test_red_tests_refuse_the_timing(
    stubbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    monkeypatch.setattr(run, "failures", lambda cases: {"ops/test_conv2d.py": "1 failed"})
    both = ["--case", "b1/forward/float32", "--op", "conv2d,linear", "--short", "--peers", "torch"]
    assert run.main([*both, "--json", str(file)]) == 1
    assert {row["op"] for row in read(file)} == {"linear"}
    assert "tests/ops/test_conv2d.py fails" in capsys.readouterr().out


def test_ctrl_c_keeps_the_rows(
    stubbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    measured: list[str] = []

    def run_case(case: Any, *arguments: Any) -> Any:
        measured.append(case.id)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure.run_case(case, *arguments)

    monkeypatch.setattr(run, "run_case", run_case)
    assert run.main(["--op", "lstm", "--short", "--no-verify", "--peers", "torch", "--json", str(file)]) == 130
    assert len(read(file)) == 2 and file.with_suffix(".csv").exists()
    assert "2 rows are kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--op", "conv"], "--op conv: choose from"),
        (["--peers", "pycap"], "--peers pycap: choose from"),
        (["--dtype", "float16"], "--dtype float16"),
        (["--case", "nothing like it"], "--list shows all"),
        (["--threads", "0"], "at least 1"),
    ],
)
def test_wrong_options_are_named(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(options)
    assert said in capsys.readouterr().err


def test_list_shows_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list", "--op", "lstm", "--mode", "forward"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["lstm/T20-b64/forward/float32", "lstm/T20-b320/forward/float32"]


def test_verify_finds_the_red_file(tmp_path: Path) -> None:
    tests = tmp_path / "tests" / "ops"
    tests.mkdir(parents=True)
    (tests / "test_pool.py").write_text("def test_one():\n    assert True\n")
    (tests / "test_conv2d.py").write_text("def test_two():\n    assert 1 == 2\n")
    cases = select(registry(), ops=["pool"])
    assert verify.failures(cases, tmp_path / "tests") == {}
    cases += select(registry(), ops=["conv2d"])
    [(path, said)] = verify.failures(cases, tmp_path / "tests").items()
    assert path == "ops/test_conv2d.py" and "assert 1 == 2" in said
    cases = select(registry(), ops=["lstm"])
    assert "no such test file" in verify.failures(cases, tmp_path / "tests")["ops/test_lstm.py"]
