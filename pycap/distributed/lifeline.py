"""A rank's side of the watch (`watch.py`): starts the programs beside it, says how it ends, and hears who tells an error."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pycap.distributed.watch import reach

#: Seconds without a sign of life after which a rank counts as lost or hung.
SILENCE = 20.0

_PROGRAM = Path(__file__).with_name("watch.py")
_PATIENCE = 10.0
_LONGEST_TEXT = 10_000


class Lifeline:
    """Started before the rank knows any other (`__init__`), joined to the others' when it does (`join`), and ended once: by
    `leave`, or by `fail`, or with the process."""

    def __init__(self, first: bool) -> None:
        """first: rank 0's."""
        self._hub = _start("hub", subprocess.PIPE) if first else None
        self._guard = _start("guard", subprocess.DEVNULL)
        self._line: socket.socket | None = None

    def join(self, ranks: Any) -> None:
        """Together with all others: the hub is told of us, and our guard of the hub."""
        hub: dict[str, Any] = {}
        if self._hub:
            hub = {"key": secrets.token_hex(16), "host": socket.gethostname()}
            _write(self._hub, size=ranks.size, key=hub["key"], silence=SILENCE)
            own, port = json.loads(self._hub.stdout.readline())  # type: ignore[union-attr]
            hub["homes"] = [own, *([home, port] for home in addresses())]
        hub = ranks.first(hub)
        here = hub["host"] == socket.gethostname()
        homes = hub["homes"] if here else hub["homes"][1:]
        sock = reach(homes)
        if sock is None:
            print(
                f"pycap: rank {ranks.rank} on {socket.gethostname()} reaches rank 0's machine by none of {homes}: nobody sees "
                "whether it hangs. PYCAP_HOST may name another address of that machine.",
                file=sys.stderr,
            )
        else:
            # A process that ends closes its files from the highest number down: before the launcher, which kills the others,
            # hears of it by files of its own.
            most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 14)
            self._line = socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, most - 16))
            sock.close()
            self._line.settimeout(_PATIENCE)  # which also makes its file one that a signal's number may be written to
            self._send(hello=hub["key"], rank=ranks.rank, host=socket.gethostname(), pid=os.getpid())
            self._answer("welcome")
            _write(
                self._guard,
                pid=os.getpid(), rank=ranks.rank, host=hub["host"], addresses=homes, key=hub["key"], silence=SILENCE,
                tells=ranks.local_rank == 0,
            )  # fmt: skip
        ranks.barrier()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within this the hub hears of Ctrl-C and SIGTERM even where Python does not yet, in a wait of MPI, or because a
        launcher leaves it no time; and SIGTERM ends the rank as an error does."""
        if self._line is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before, plain = signal.set_wakeup_fd(self._line.fileno()), signal.getsignal(signal.SIGTERM)
        if plain == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, plain)
            signal.set_wakeup_fd(before)

    def advise(self, remedy: str) -> None:
        """What whoever reads of a rank's end can do then."""
        self._send(remedy=remedy)

    def fail(self, text: str) -> tuple[str | None, bool]:
        """This rank ends with an error. (None where another rank tells it or has told another, else what to say before it;
        whether all ranks have failed, and so end together)."""
        self._send(failed=text[:_LONGEST_TEXT])
        answer = self._answer("tells")
        return answer.get("tells", ""), answer.get("together", False)

    def leave(self) -> None:
        """This rank has done its part."""
        self._send(left=True)
        self.close()

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        for process in (self._guard, self._hub):
            if process:
                process.stdin.close()  # type: ignore[union-attr]
        self._guard.wait()

    def _send(self, **message: Any) -> None:
        if self._line is not None:
            try:
                self._line.sendall(json.dumps(message).encode() + b"\n")
            except OSError:  # the hub is gone, and the guard acts on that
                return

    def _answer(self, name: str) -> dict[str, Any]:
        """The hub's next message that holds `name`; nothing where it is gone."""
        read = b""
        while self._line is not None:
            try:
                data = self._line.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            read += data
            for line in read.split(b"\n")[:-1]:
                message: dict[str, Any] = json.loads(line)
                if name in message:
                    return message
        return {}


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _start(program: str, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_PROGRAM), program],
        stdin=subprocess.PIPE, stdout=stdout, start_new_session=True,
    )  # fmt: skip


def _write(process: subprocess.Popen[bytes], **config: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode() + b"\n")
    process.stdin.flush()


def addresses() -> list[str]:
    """How other machines may reach this one, the likeliest first: PYCAP_HOST alone where it is set."""
    if os.environ.get("PYCAP_HOST"):
        return [os.environ["PYCAP_HOST"]]
    found = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                ("192.0.2.1", 9)
            )  # sends nothing, and shows the address that packets to the world would carry
            found.append(probe.getsockname()[0])
        except OSError:
            return found
    return found
