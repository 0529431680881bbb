"""Several processes that a launcher started: each captions its share, and the first one puts them together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MPIRUN, ROOT


def together(count: int, *argv: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from pycap.cli import main; main()", *map(str, argv)]
    launcher = [str(MPIRUN), "-n", str(count)] if count > 1 else []
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*launcher, *program], capture_output=True, text=True, env=environ, timeout=60)


def test_a_reader_that_has_enough_is_no_error(trained: Path, data: Path) -> None:
    program = [
        sys.executable,
        "-c",
        "from pycap.cli import main; main()",
        "caption",
        str(trained),
        str(data / "val2017"),
    ]
    pipe, end = os.pipe()
    os.close(pipe)
    done = subprocess.run(
        program, stdout=end, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60
    )
    os.close(end)
    assert done.returncode == 141 and b"rror" not in done.stderr, done.stderr


@pytest.mark.mpi
def test_two_processes_write_what_one_does(trained: Path, data: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(data / "val2017", images)
    (images / "000001000003.jpg").write_bytes(b"no image")
    command = ["caption", trained, images, "--batch-size", 2, "--threads", 1, "--output"]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert together(1, *command, one).returncode == 1
    done = together(2, *command, two)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == f"9 captions of 2 shards: {two}"
    assert "shard-2-of-2" not in done.stdout and "1 of 10 images could not be read" in done.stderr
    assert two.read_bytes() == one.read_bytes()
    again = together(2, *command, two, "--resume")
    assert again.returncode == 0 and again.stdout.count("is complete") == 1
    assert not list(tmp_path.glob("*.shard-*"))
    both = together(2, *command, tmp_path / "three.jsonl", "--shard", "1/2")
    assert both.returncode and "--shard 1/2: of 2 processes of a launcher each is a shard; leave it out" in both.stderr
