"""A process that has imported pycap, and forks one that trains for each request: a run costs no start of Python.

It is put under `disk.c`; each child tells that layer its own plan. Requests and answers are lines of JSON on stdin and stdout.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults import shim
from tests.faults.shim import Fault

ROOT = Path(__file__).resolve().parents[2]
_PHASE_BYTES = 32
#: (module, class or "", function) -> what a run is doing meanwhile; the innermost of them counts.
PHASES = {
    ("pycap.training.run", "_Run", "__init__"): "start",
    ("pycap.training.run", "_Run", "_continue"): "resuming",
    ("pycap.training.run", "_Run", "_extract_features"): "features",
    ("pycap.training.run", "_Run", "_train_epoch"): "between steps",
    ("pycap.training.trainer", "Trainer", "launch"): "step",
    ("pycap.training.run", "_Run", "_validate"): "validation",
    ("pycap.training.captioning", "Captioning", "end"): "captions",
    ("pycap.training.record", "Record", "save"): "checkpoint",
    ("pycap.training.record", "Record", "samples"): "samples",
    ("pycap.training.record", "Record", "step"): "log",
    ("pycap.training.record", "Record", "write"): "log",
}


@dataclass(frozen=True)
class Outcome:
    """code: the exit status, -9 for SIGKILL. said: stdout and stderr. phase: what the run was doing when it ended."""

    code: int
    said: str
    seconds: float
    phase: str
    calls: list[shim.Call]

    @property
    def was_killed(self) -> bool:
        return self.code == shim.KILLED


class Server:
    """Runs `pycap.train.main`, or another function of a module, in a forked process at a time."""

    def __init__(self, scratch: Path) -> None:
        """scratch: a folder for records and what runs say."""
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        own = {**os.environ, "LD_PRELOAD": str(shim.library()), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=ROOT, env=own, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(
        self,
        arguments: list[str],
        cwd: Path,
        folder: Path,
        fault: Fault | None = None,
        kill_after: float = 0.0,
        target: str = "pycap.train:main",
    ) -> Outcome:
        """Call the target with `arguments` in `cwd`. Calls below `folder` are recorded and met by `fault`. kill_after:
        seconds until the process is killed, 0 for never."""
        said, phase, record = (self._scratch / name for name in ("said.txt", "phase", "record"))
        for path in (said, record):
            path.unlink(missing_ok=True)
        phase.write_bytes(bytes(_PHASE_BYTES))
        request = {
            "arguments": arguments, "cwd": str(cwd), "folder": os.path.realpath(folder), "said": str(said), "phase": str(phase),
            "record": str(record), "fault": asdict(fault) if fault else None, "kill_after": kill_after, "target": target,
        }  # fmt: skip
        begun = time.monotonic()
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the server ended: {self._process.wait()}"
        doing = phase.read_bytes().rstrip(b"\0").decode()
        return Outcome(json.loads(answer), said.read_text("utf-8"), time.monotonic() - begun, doing, shim.calls(record))

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _tell_phases(path: str) -> None:
    """Have this process write what it is doing into a file that outlives it."""
    import importlib

    with open(path, "r+b") as file:
        told = mmap.mmap(file.fileno(), _PHASE_BYTES)
    stack = ["start"]

    def show() -> None:
        told[:] = stack[-1].encode().ljust(_PHASE_BYTES, b"\0")

    def wrap(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            stack.append(name)
            show()
            try:
                return real(*arguments, **options)
            finally:
                stack.pop()
                show()

        return wrapped

    show()
    for (module, kind, function), name in PHASES.items():
        owner = getattr(importlib.import_module(module), kind)
        setattr(owner, function, wrap(getattr(owner, function), name))


def _child(request: dict[str, Any]) -> None:
    import importlib

    out = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.chdir(request["cwd"])
    _tell_phases(request["phase"])
    fault = Fault(**request["fault"]) if request["fault"] else Fault(0, "")
    texts = [value.encode() for value in (request["folder"], request["record"], fault.call, fault.path, fault.act)]
    ctypes.CDLL(None).faults_plan(*texts[:2], ctypes.c_long(fault.at), *texts[2:])
    module, function = request["target"].split(":")
    getattr(importlib.import_module(module), function)(request["arguments"])


def _serve() -> None:
    import pycap.bulk
    import pycap.captioner
    import pycap.training.run  # noqa: F401 - all that a run needs, once
    from pycap.config import parse_args

    # The parser's own imports, too.
    parse_args(["--stage", "coco"])
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _child(request)
                code = 0
            except SystemExit as ended:
                if isinstance(ended.code, str):
                    print(ended.code, file=sys.stderr)
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        timer = threading.Timer(request["kill_after"], os.kill, (child, signal.SIGKILL))
        if request["kill_after"]:
            timer.start()
        _, status = os.waitpid(child, 0)
        timer.cancel()
        if request["kill_after"]:
            timer.join()  # the next fork is to find one thread
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
