"""benchmarks/results/faults.json: each part of it as the proof that is under way has it, beside the other parts."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from pycap.data.disk import write_whole
from tests.faults.server import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "faults.json"


class Part:
    """One part. What is kept last stands in the file, also where the proof is then interrupted: "complete" is false there."""

    def __init__(self, name: str, module: str, path: Path = RESULTS) -> None:
        """name: of the part, "a/b" for b inside a. module: what runs, with this process's arguments."""
        self._name, self._path, self._begun = name, path, time.monotonic()
        self._origin = {
            "command": " ".join(["python", "-m", module, *sys.argv[1:]]),
            "commit": machine.commit(), "cpu": machine.cpu_name(), "cpus": os.cpu_count(),
            "versions": machine.versions(("numpy", "h5py", "safetensors")),
        }  # fmt: skip

    def begin(self) -> None:
        """Seconds count from here."""
        self._begun = time.monotonic()

    def keep(self, result: dict[str, Any], *, complete: bool) -> None:
        """Put the part into the file, over what stood there of it."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # two proofs may run at once
            whole: dict[str, Any] = json.loads(self._path.read_text("utf-8")) if self._path.exists() else {}
            *outer, name = self._name.split("/")
            inside = whole
            for key in outer:
                inside = inside.setdefault(key, {})
            seconds = round(time.monotonic() - self._begun)
            inside[name] = {**self._origin, "complete": complete, "seconds": seconds, **result}
            write_whole(self._path, json.dumps(whole, indent=1) + "\n")
        finally:
            os.close(folder)
