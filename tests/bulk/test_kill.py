"""Processes that are killed at any moment, and what the next ones make of what they left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pycap.bulk.job import run
from pycap.bulk.merge import merge
from tests.bulk.jobs import folder, job

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]


def started(*arguments: object) -> subprocess.Popen[str]:
    """The process, once it has begun."""
    command = [sys.executable, "-m", "tests.bulk.jobs", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ
    )
    assert process.stdout and process.stdout.readline() == "begins\n"
    return process


def rows(file: Path) -> int:
    return max(file.read_bytes().count(b"\n") - 1, 0) if file.exists() else 0


@pytest.mark.parametrize(("form", "shard"), [("jsonl", ""), ("coco", "2/3")])
def test_killed_and_continued_is_byte_for_byte_what_was_never_killed(tmp_path: Path, form: str, shard: str) -> None:
    images = folder(tmp_path / "images", 900 if shard else 400)
    whole = tmp_path / "whole"
    run(job(images, whole, form))
    output = tmp_path / "killed"
    random.seed(8)
    journal = tmp_path / ("killed.shard-2-of-3" if shard else "killed.partial")
    for kill in range(4):
        process = started(images, output, form, shard)
        before = rows(journal)
        # Every other kill comes after some progress, however busy the machine is.
        while kill % 2 and rows(journal) <= before:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(random.uniform(0.0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert rows(journal) >= 2 * 5
    assert started(images, output, form, shard).wait() == 0
    if shard:
        for other in ("1/3", "3/3"):
            assert started(images, output, form, other).wait() == 0
        merge(output)
    assert output.read_bytes() == whole.read_bytes()
    assert (tmp_path / "killed.failed.jsonl").read_bytes() == (tmp_path / "whole.failed.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images", "killed", "killed.failed.jsonl", "whole", "whole.failed.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done(tmp_path: Path, number: signal.Signals) -> None:
    images = folder(tmp_path / "images", 1000)
    process = started(images, tmp_path / "a", "jsonl", "")
    partial = tmp_path / "a.partial"
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size > 2000):
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 1, "ended by `Stopped`, not by the signal"
    assert not (tmp_path / "a").exists()
    assert partial.read_bytes().endswith(b"\n") and (partial.read_bytes().count(b"\n") - 1) % 5 == 0
