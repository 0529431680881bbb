"""`make sanitize` does what it says, as far as seconds show: flags, tests, regions, and that a silent sanitizer is noticed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.faults import results
from tests.sanitizers import builds, mutants, run
from tests.sanitizers.builds import ADDRESS, BUILDS, ROOT, THREAD, Build, Missing


def test_the_kernels_are_built_with_the_flags(tmp_path: Path) -> None:
    """All of them, for all instruction sets, whatever this CPU has and an earlier build left; none in a normal build."""
    if shutil.which("cmake") is None or importlib.util.find_spec("pybind11") is None:
        pytest.skip("building needs cmake and pybind11")
    (tmp_path / "CMakeCache.txt").write_text("PYCAP_CPU:BOOL=OFF\n")
    done = subprocess.run(ADDRESS.configure(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = json.loads((tmp_path / "compile_commands.json").read_text("utf-8"))
    by_isa: dict[str, set[str]] = {}
    for entry in commands:
        assert "-fsanitize=address,undefined" in entry["command"], entry["file"]
        assert "-fno-sanitize-recover=all" in entry["command"] and "-mavx512" not in entry["command"]
        if found := re.search(r"kernels_(\w+)\.dir", entry["command"]):
            isa = found[1]
            by_isa.setdefault(isa, set()).add(Path(entry["file"]).name)
    sources = {path.name for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
    assert by_isa["v4"] == by_isa["v3"] == by_isa["v1"] and by_isa["v3"] | by_isa["v4_amx"] == sources
    assert "planted.cpp" in {Path(entry["file"]).name for entry in commands}
    assert "SANITIZE" not in (ROOT / "setup.py").read_text("utf-8")


def test_a_build_stays_away_from_the_package() -> None:
    for build in BUILDS.values():
        assert build.modules.is_relative_to(ROOT / "build") and (ROOT / "pycap") not in build.modules.parents


def test_the_tests_are_there() -> None:
    """Each file and test by its name; the kernels' own in every run."""
    for build in BUILDS.values():
        assert {one.isa for one in build.runs} == {"v1", "v3", "v4"}
        for one in build.runs:
            assert one.threads > 1 and set(builds.KERNELS) <= set(one.tests)
            for path, _, name in (test.partition("::") for test in one.tests):
                assert (ROOT / path).exists() and (not name or f"def {name}(" in (ROOT / path).read_text("utf-8")), path
    listed = {path.name for path in (ROOT / "tests/ops").glob("test_*.py")}
    assert len(listed) > 12 and {"test_conv2d.py", "test_lstm.py", "test_optimiser_steps.py"} <= listed


def test_every_fault_is_asked_for() -> None:
    source = (ROOT / "csrc" / "sanitize" / "planted.cpp").read_text("utf-8")
    asked = {fault for build in BUILDS.values() for fault in build.faults} | {"none"}
    assert {line.split('"')[1] for line in source.splitlines() if 'is("' in line} == asked


def test_faults_for_the_kernels_have_their_place(tmp_path: Path) -> None:
    """Each once, in a copy; a fault that no code has any more is an error, as is one that no tests would meet."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    assert mutants.MUTANTS.keys() == BUILDS.keys()
    for mutant in (mutant for made in mutants.MUTANTS.values() for mutant in made):
        path, sound = mutants.plant(tmp_path, mutant)
        assert path.read_text("utf-8") != sound == (ROOT / path.relative_to(tmp_path)).read_text("utf-8")
        assert mutant.threads > 1 and all((ROOT / test).exists() for test in mutant.tests.split())
        path.write_text(sound, "utf-8")
    with pytest.raises(ValueError, match="optim.cpp has 0 places for 'none'"):
        mutants.plant(tmp_path, mutant._replace(what="none", old="no such code"))


def test_a_sanitizer_that_says_nothing_is_noticed(tmp_path: Path) -> None:
    """The planted faults built without one: none may pass for reported."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or pytest.skip("there is no compiler")
    library = tmp_path / "planted.so"
    source = ROOT / "csrc" / "sanitize" / "planted.cpp"
    subprocess.run([compiler, "-std=c++17", "-O1", "-fopenmp", "-shared", "-fPIC", source, "-o", library], check=True)
    faults = {name: ADDRESS.faults[name] for name in ("signed overflow", "index out of bounds")} | {"no such": "-"}

    class Silent(Build):
        reports = tmp_path

    build = Silent("silent", compiler, "", faults, ())
    wrong = run.self_test(build, library, {**os.environ, "PYTHONPATH": str(ROOT)}, 2)
    assert len(wrong) == 3, wrong
    assert all("was not reported" in line for line in wrong[:2]) and "has no fault" in wrong[2]


def test_a_report_where_nothing_is_wrong_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PLANT", "")
    monkeypatch.setattr(Build, "reports", tmp_path)
    (tmp_path / "report.1").write_text("WARNING: ThreadSanitizer: data race")
    build = dataclasses.replace(THREAD, faults={})
    (wrong,) = run.self_test(build, tmp_path / "planted.so", os.environ, 2)
    assert "reported though nothing is wrong" in wrong and "data race" in wrong
    assert not run.reports(tmp_path)


def test_memory_that_was_refused_is_no_report(tmp_path: Path) -> None:
    """Wrong arguments ask for terabytes; what follows in the same file is a report."""
    refused = "==6281==WARNING: AddressSanitizer failed to allocate 0x40000000000 bytes\n"
    (tmp_path / "report.6281").write_text(refused)
    assert not run.reports(tmp_path)
    (tmp_path / "report.6281").write_text(refused + "==6281==ERROR: AddressSanitizer: heap-buffer-overflow\n")
    assert run.reports(tmp_path) == "==6281==ERROR: AddressSanitizer: heap-buffer-overflow"


def test_regions_that_ran_are_counted(tmp_path: Path) -> None:
    regions = run.parallel_regions()
    written = subprocess.run(
        ["grep", "-rhc", "pragma omp parallel", str(ROOT / "csrc" / "cpu")], capture_output=True, text=True
    )
    assert len(regions) == sum(map(int, written.stdout.split())) > 30
    (tmp_path / "regions-2").write_text("/a/csrc/cpu/gemm.h:7 2 9\n/a/csrc/cpu/pool.cpp:9 1 4\n")
    (tmp_path / "regions-3").write_text("/a/csrc/cpu/gemm.h:7 3 1\n")
    assert run.regions_run(tmp_path) == {"csrc/cpu/gemm.h:7": {2, 3}}


def test_the_figures_are_those_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that passes, and one that a report ends before pytest can count."""

    class Made(Build):
        folder = tmp_path

        def make(self, jobs: int) -> None:
            pass

        def environment(self, isa: str = "", threads: int = 2) -> dict[str, str]:
            return {"isa": isa}

    def pytest_runs(
        command: list[str], env: dict[str, str], cwd: Path, stderr: BinaryIO
    ) -> subprocess.CompletedProcess[str]:
        assert "--capture=sys" in command  # or pytest would take what is said to the grave
        if env["isa"] == "v4":
            stderr.write(b"a warning of something else\ncsrc/cpu/pool.cpp:9:1: runtime error: shift exponent 32\n")
            return subprocess.CompletedProcess(command, 99)
        stderr.write(b"a warning of something else\n")
        if env["isa"] == "v1":
            (tmp_path / "reports" / "report.7").write_text("SUMMARY: AddressSanitizer: heap-buffer-overflow")
            return subprocess.CompletedProcess(command, 99)
        junit = '<testsuites><testsuite tests="5" failures="0" errors="0" skipped="2"/></testsuites>'
        (tmp_path / "reports" / "junit.xml").write_text(junit)
        return subprocess.CompletedProcess(command, 0)

    made = Made("made", "", "address", {}, tuple(builds.Run(isa, 2, ("tests/ops",)) for isa in ("v3", "v1", "v4")))
    monkeypatch.setattr(run, "BUILDS", {"made": made})
    monkeypatch.setattr(run, "compiler", lambda build: "g++ 1")
    monkeypatch.setattr(run, "self_test", lambda *arguments: [])
    monkeypatch.setattr(run.subprocess, "run", pytest_runs)
    monkeypatch.setattr(results.machine, "commit", lambda: "c0ffee")
    assert run.main(["--json", str(tmp_path / "figures.json")]) == 1
    written = json.loads((tmp_path / "figures.json").read_text())["made"]
    assert written["complete"] and written["commit"] == "c0ffee" and written["compiler"] == "g++ 1"
    first, second, third = written["runs"]
    assert (first["tests"], first["skipped"], first["reports"], first["status"]) == (5, 2, 0, 0)
    assert "tests" not in second and (second["reports"], second["status"]) == (1, 99)
    assert (third["reports"], third["status"]) == (1, 99)
    assert written["problems"] == [
        "made, v1, 2 threads: 1 reports, above",
        "made, v1, 2 threads: pytest ended with status 99",
        "made, v4, 2 threads: 1 reports, above",
        "made, v4, 2 threads: pytest ended with status 99",
    ]


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Missing, match=r"needs clang\+\+. Debian/Ubuntu: sudo apt-get install"):
        builds.resolved("clang++", "libomp.so.5")
