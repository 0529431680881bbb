"""`make gpu` on a machine without a GPU, and how its steps run, fail, and are cut off."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Step, run


def _python(name, script, seconds=20.0, **more):
    return Step(name, (sys.executable, "-c", script), seconds, **more)


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert gpu_check.main([]) == 1
    assert "needs an NVIDIA GPU and its driver" in capsys.readouterr().err


def test_every_step_runs_and_a_failure_is_told(tmp_path, capsys):
    todo = [
        _python("first", "print('one'); raise SystemExit(3)"),
        _python("second", "import os; print(os.environ['WORD'])"),
        _python("third", "", skip="no tool"),
        Step("fourth", (str(tmp_path / "absent"),), 5.0),
    ]
    outcome = run(todo, tmp_path / "out", {**os.environ, "WORD": "two"}, 60.0)
    assert outcome["first"] == "failed: status 3" and outcome["second"] == "passed"
    assert outcome["third"] == "skipped: no tool" and "No such file" in outcome["fourth"]
    assert (tmp_path / "out" / "second.log").read_text() == "two\n"
    assert "one" in capsys.readouterr().out


def test_a_step_is_cut_off_at_its_limit_and_at_the_whole(tmp_path):
    forever = "import time; print('begun', flush=True); time.sleep(60)"
    outcome = run([_python("slow", forever, 2.0), _python("late", "")], tmp_path, os.environ, 6.5)
    assert outcome["slow"] == "failed: not done after 2 s"
    assert (tmp_path / "slow.log").read_text() == "begun\n"
    assert outcome["late"] == "skipped: the time is over"


def test_only_the_named_steps_are_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "architecture", lambda: "sm_90")
    monkeypatch.setattr(gpu_check, "steps", lambda arch, out: [_python(name, "") for name in ("build", "cuda", "lstm")])
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_check.main(["lstm", "build"]) == 0
    said = capsys.readouterr().out
    assert said.index("== build:") < said.index("== lstm:") and "cuda" not in said
    with pytest.raises(SystemExit):
        gpu_check.main(["cuda", "kuda"])
    assert "no step is called kuda; there are build, cuda, lstm" in capsys.readouterr().err


def test_cuda_kernels_are_tested_and_sanitized(tmp_path):
    by_name = {step.name: step for step in gpu_check.steps("sm_90", tmp_path)}
    files = {f"tests/kernels/{path.name}" for path in Path(__file__).parents[1].glob("kernels/test_cuda_*.py")}
    for name in ("cuda", "cuda-memcheck", "cuda-racecheck"):
        assert files <= set(by_name[name].command) and files
    assert by_name["cuda-racecheck"].command[3:5] == ("--tool", "racecheck")


@pytest.mark.parametrize(("found", "built"), [(True, None), (False, "OFF")])
def test_the_cpp_backend_is_built_where_its_library_is(monkeypatch, tmp_path, found, built):
    find, seen = importlib.util.find_spec, []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found or None if "openblas" in name else find(name))
    monkeypatch.setattr(gpu_check, "architecture", lambda: "sm_90")
    monkeypatch.setattr(gpu_check, "run", lambda todo, out, environment, limit_s: seen.append(environment) or {})
    monkeypatch.delenv("PYCAP_CPU", raising=False)
    gpu_check.main([])
    assert seen[0].get("PYCAP_CPU") == built and seen[0]["TRITON_INTERPRET"] == "0"


@pytest.mark.parametrize(("arch", "code"), [("sm_86", "sm_80"), ("sm_90", "sm_90")])
def test_kernels_are_compiled_for_the_gpu_that_is_there(tmp_path, arch, code):
    by_name = {step.name: step for step in gpu_check.steps(arch, tmp_path)}
    assert by_name["cubins"].command[-2:] == ("--arch", code)
    assert str(tmp_path / "gpu.jsonl") in by_name["benchmarks"].command


def test_whole_steps_are_compared_and_followed(tmp_path):
    by_name = {step.name: step for step in gpu_check.steps("sm_90", tmp_path)}
    joint, follows = by_name["joint"].command, by_name["trajectory"].command
    assert (
        joint[1:5] == ("-m", "benchmarks.peers.torch_joint", "--device", "cuda")
        and follows[2] == "benchmarks.trajectory"
    )
    assert joint[-1] == str(tmp_path / "joint.jsonl") and follows[-1] == str(tmp_path / "trajectory.jsonl")
