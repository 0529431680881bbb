"""Disks of the kernel's own that are full or cannot be written: a tmpfs in a mount namespace, without privileges."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults import runs

pytestmark = pytest.mark.faults


def in_a_namespace(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare (util-linux) to make a mount namespace")
    folder = tmp_path_factory.mktemp("disk")
    if (tried := in_a_namespace("mount -t tmpfs none .", folder)).returncode:
        pytest.skip(f"no mount namespace without privileges here: {tried.stderr.strip()}")
    return runs.make_data(folder / "set")


# What befalls a disk of 64 MB and 200 files, what mends it, and what the message must hold.
FAILURES = {
    "no room": ("head -c 63500000 /dev/zero > disk/other", "rm disk/other", "a checkpoint needs 4."),
    "no more files": ("(while : > disk/other$((i += 1)); do :; done); rm disk/other1 disk/other2 disk/other3 disk/other4",
                      "rm disk/other*", "run/last: the disk is full"),
    "read-only": ("mount -o remount,ro disk", "mount -o remount,rw disk",
                  "run/log.jsonl: cannot be written (Read-only file system)"),
}  # fmt: skip


def test_a_disk_that_fails_keeps_the_checkpoint_and_the_run_goes_on(data: Path, tmp_path: Path) -> None:
    """A step, then the disk fails the resumed run in one way after the other, is mended each time, and the run goes on."""
    train = shlex.join([sys.executable, str(ROOT / "train.py")])
    options = shlex.join([*runs.options("stopped", data), "--out-dir", "disk/run"])
    more = f"{train} --resume disk/run --max-steps 7"
    steps = [
        f"""{fail}
        {more} > failed{i}.txt 2>&1; echo $? > status{i}
        cp -a disk/run failed{i}
        {mend}"""
        for i, (fail, mend, _) in enumerate(FAILURES.values())
    ]
    done = in_a_namespace(
        f"""mkdir disk && mount -t tmpfs -o size=64m,nr_inodes=200 none disk || exit 9
        {train} {options} --max-steps 1 > first.txt 2>&1 || exit 8
        {" ; ".join(steps)}
        {more} > mended.txt 2>&1 || exit 7
        cp -a disk/run run""",
        tmp_path,
    )
    said = {path.stem: path.read_text("utf-8").strip()[-600:] for path in sorted(tmp_path.glob("*.txt"))}
    assert done.returncode == 0, (done.stderr, said)
    for i, (_, _, told) in enumerate(FAILURES.values()):
        assert (tmp_path / f"status{i}").read_text() == "1\n", said
        last = said[f"failed{i}"].splitlines()[-1]
        assert told in last and "--resume disk/run" in last and "Traceback" not in said[f"failed{i}"]
        assert runs.is_resumable(tmp_path / f"failed{i}")
    assert runs.is_resumable(tmp_path / "run") and len(list((tmp_path / "run").glob(".*"))) == 0
