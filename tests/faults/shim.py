"""Compiles `disk.c`, and says how a process is put under it."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("disk.c")
KILLED = -9  # the return code of a process that SIGKILL ended


@dataclass(frozen=True)
class Call:
    """A file call that a process made below the folder. act: what was done to it, "" for nothing."""

    number: int
    name: str
    path: str
    nbytes: int
    act: str

    @property
    def place(self) -> str:
        """What the file is, whatever its temporary name."""
        parts = [part for part in self.path.split("/") if part]
        if parts and ".pycap-" in parts[0]:
            parts[0] = "checkpoint" + parts[0][parts[0].rfind("-") :]
        elif parts and parts[0] in ("best", "last"):
            parts[0] = "checkpoint"
        if parts and parts[-1].startswith(".tmp"):
            parts[-1] = "arrays"
        return "/".join(parts) or "folder"


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th call (from 1) below the folder, or of those of one name, or with `path` in their path.

    act: as in disk.c: an errno, an errno with "+", "short", "short ERRNO", "before", "after", "middle".
    """

    at: int
    act: str
    call: str = ""
    path: str = ""


def compiler() -> list[str] | None:
    """The C compiler's command: $CC, else cc, gcc or clang; None where there is none."""
    asked = shlex.split(os.environ.get("CC", ""))
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    return asked or ([found] if found else None)


@functools.cache
def library() -> Path:
    """The compiled layer, made once a process; its folder is deleted when that ends. RuntimeError where it cannot be made."""
    command = compiler()
    if command is None:
        raise RuntimeError("there is no C compiler (cc, gcc, clang)")
    folder = tempfile.TemporaryDirectory(prefix="faults-")
    _kept.append(folder)
    made = Path(folder.name) / "disk.so"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"]
    done = subprocess.run([*command, *options, "-lpthread"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} does not compile {SOURCE.name}: {done.stderr.strip()}")
    return made


_kept: list[tempfile.TemporaryDirectory[str]] = []  # a folder is deleted with its object


def environment(folder: Path, record: Path | None = None, fault: Fault | None = None) -> dict[str, str]:
    """For a process whose calls below `folder` are to be counted, listed in `record`, and met by `fault`."""
    own = {"LD_PRELOAD": str(library()), "FAULTS_DIR": os.path.realpath(folder)}
    own |= {"FAULTS_RECORD": str(record)} if record else {}
    if fault:
        own |= {
            "FAULTS_AT": str(fault.at),
            "FAULTS_ACT": fault.act,
            "FAULTS_CALL": fault.call,
            "FAULTS_PATH": fault.path,
        }
    return {**os.environ, **own}


def calls(record: Path) -> list[Call]:
    """What a process did, as its record tells."""
    if not record.exists():
        return []
    found = []
    for line in record.read_text("utf-8").splitlines():
        number, name, path, nbytes, act = line.split("\t")
        found.append(Call(int(number), name, path, int(nbytes), act))
    return found


def kinds(made: list[Call]) -> Counter[tuple[str, str]]:
    """How many calls there were of each name at each place."""
    return Counter((call.name, call.place) for call in made)
