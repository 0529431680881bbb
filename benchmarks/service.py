"""A real `pycap serve` process, and what the system and its own metrics say of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.http_client import Address, Client, get

ROOT = Path(__file__).resolve().parents[1]
START_S = 120.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_COMMAND = "import sys; from pycap.cli import main; sys.exit(main(sys.argv[1:]))"
_SAMPLE = re.compile(r"^(?P<name>[a-z_]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)


class ServiceError(RuntimeError):
    """The service does not start, has ended, or does not end; the text holds what it said last."""


@dataclass(frozen=True)
class Usage:
    """What the process holds. cpu_s: that it has used since its start, all threads."""

    rss_mib: float
    peak_mib: float
    files: int
    threads: int
    cpu_s: float


class Service:
    """`pycap serve CHECKPOINT` on a free port of this machine: started with `with`, at the end stopped by SIGTERM."""

    def __init__(self, checkpoint: Path, options: Sequence[str] = ()) -> None:
        self._command = [sys.executable, "-c", _COMMAND, "serve", str(checkpoint), "--port", "0", *options]
        self._said: deque[str] = deque(maxlen=50)
        self.tracebacks: list[str] = []  # the lines after their first ones
        self._answers = threading.Event()
        self.address: Address = ("127.0.0.1", 0)

    def __enter__(self) -> Service:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._answers.wait(START_S) or not self.address[1]:
            self._process.kill()
            raise ServiceError(f"the service did not start: {self.said()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = None
        self._reader.join(5)
        if kind is None and status != 0:
            raise ServiceError(f"the service ended with status {status} on SIGTERM: {self.said()}")

    @property
    def host(self) -> str:
        """What the header Host names it."""
        return f"{self.address[0]}:{self.address[1]}"

    def said(self) -> str:
        """The last that it printed."""
        return "".join(self._said)[-4000:]

    def usage(self) -> Usage:
        """What it holds now. ServiceError where it has ended."""
        if self._process.poll() is not None:
            raise ServiceError(f"the service ended with status {self._process.returncode}: {self.said()}")
        place = Path(f"/proc/{self._process.pid}")
        lines = dict(line.split(":", 1) for line in (place / "status").read_text("utf-8").splitlines())
        after_name = (place / "stat").read_text("utf-8").rpartition(")")[2].split()
        return Usage(
            rss_mib=int(lines["VmRSS"].split()[0]) / 2**10,
            peak_mib=int(lines["VmHWM"].split()[0]) / 2**10,
            files=len(os.listdir(place / "fd")),
            threads=int(lines["Threads"]),
            cpu_s=(int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK"),
        )

    async def metrics(self) -> dict[str, float]:
        """Its counters, by name with labels as `GET /metrics` has them."""
        async with Client(self.address) as client:
            answer = await client.ask(get("/metrics", host=self.host))
        text = answer.body.decode()
        return {
            found["name"] + (f"{{{found['labels']}}}" if found["labels"] else ""): float(found["value"])
            for found in _SAMPLE.finditer(text)
        }

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if self._said and self._said[-1].startswith("Traceback"):
                self.tracebacks.append(line.strip())
            self._said.append(line)
            if not self._answers.is_set() and (found := _ADDRESS.search(line)):
                self.address = ("127.0.0.1", int(found[1]))
                self._answers.set()
        self._answers.set()
