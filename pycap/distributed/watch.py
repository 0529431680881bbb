"""Programs beside the ranks of a job, which name the one that dies or hangs, and stop the others. Standard library alone.

    python watch.py hub       one, started by rank 0: hears of every rank, decides, and tells the terminal
    python watch.py guard     one a rank, started by it: says whether the rank is running, and kills it when the hub says so

They live in sessions of their own, so that they outlast a launcher which ends the ranks: both mpiruns wait for what still may
write to the terminal. Every rank holds a connection to the hub, its *line*, which the system closes when the rank ends, however
it ends. A launcher that sees a rank die kills all others within milliseconds: the hub reads ends of lines in the order in which
the system made them (epoll keeps it), and so the first is the one that died by itself. Within a machine lines are sockets of
the system's own, since the end of a TCP connection may be delivered late even there.

What they tell each other are lines of JSON, and on a rank's line also bare bytes, the numbers of signals that it was sent.
"""

from __future__ import annotations

import hmac
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

BEAT = 1.0  #: seconds between signs of life
GRACE = 1.0  #: seconds that ranks have to fail alike
ENDING = 10.0  #: seconds that a rank has to tell its error and end

_STOPS = (signal.SIGINT, signal.SIGTERM)
_LONGEST = 1 << 20  #: bytes of a message


class Connection:
    """A socket that is never waited for: messages in, messages out."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket, self._read = sock, b""

    def send(self, **message: Any) -> None:
        try:
            self.socket.send(json.dumps(message).encode() + b"\n")
        except OSError:  # its other end is gone, which its reading tells, or reads nothing, which its silence does
            return

    def receive(self) -> tuple[list[dict[str, Any]], bool, bool]:
        """(messages, whether a signal was among them, whether it has ended or makes no sense) since the last time."""
        signalled = ended = False
        while not ended:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            plain = bytes(byte for byte in data if byte not in _STOPS)
            signalled |= len(plain) < len(data)
            self._read += plain
            ended = not data or len(self._read) > _LONGEST
        *lines, self._read = self._read.split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines], signalled, ended
        except (ValueError, TypeError):
            return [], False, True


# The hub ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Rank:
    """What the hub knows of one rank. heard: when its guard last spoke. stopped: since when it does not run, as after SIGSTOP.
    failed: its error. left: it said that it has done its part. gone: its process has ended."""

    number: int
    name: str
    line: Connection
    guard: Connection | None = None
    heard: float = 0.0
    stopped: float | None = None
    failed: str | None = None
    left: bool = False
    gone: bool = False


class Hub:
    """silence: seconds without a sign of life after which a rank counts as lost."""

    def __init__(self, size: int, key: str, silence: float, listeners: list[socket.socket]) -> None:
        self.size, self.key, self.silence, self.listeners = size, key, silence, listeners
        self.ranks: dict[int, Rank] = {}
        self.failures: list[Rank] = []  # in the order in which they were told
        self.decision = float("inf")  # when it is decided who tells an error
        self.end = float("inf")  # when all that are left are killed
        self.teller: Rank | None = None
        self.remedy = ""
        self.signalled = False  # a rank was sent Ctrl-C or SIGTERM: that ranks end is no news
        self.over = False  # why the job ends is settled

    def run(self) -> None:
        """Until every rank has ended, or the starter has before any was there: its end of our standard input."""
        self.select = selectors.DefaultSelector()
        for file in (sys.stdin, *self.listeners):
            self.select.register(file, selectors.EVENT_READ)
        last, starting = time.monotonic(), True
        while starting or not all(rank.gone for rank in self.ranks.values()):
            for key, _ in self.select.select(max(0.0, last + BEAT - time.monotonic())):
                if key.fileobj in self.listeners:
                    sock, _ = key.fileobj.accept()
                    self.select.register(sock, selectors.EVENT_READ, Connection(sock))
                elif key.fileobj is sys.stdin:
                    self.select.unregister(sys.stdin)
                    starting = False
                else:
                    self.hear(key.data)
            now = time.monotonic()
            if now >= last + BEAT:
                self.beat(now, now - last)
                last = now
            if not self.over and self.failures:
                self.decide(now)
            if now >= self.end:
                self.guards(stop=True)
        self.guards(done=True)

    def guards(self, **message: Any) -> None:
        for rank in self.ranks.values():
            if rank.guard:
                rank.guard.send(**message)

    def hear(self, connection: Connection) -> None:
        messages, signalled, ended = connection.receive()
        for message in messages:
            rank = self.owner(connection)
            if rank:
                self.take(rank, message)
            else:
                ended |= not self.welcome(connection, message)
        rank = self.owner(connection)
        self.signalled |= signalled and rank is not None
        if not ended:
            return
        self.select.unregister(connection.socket)
        connection.socket.close()
        if rank and rank.line is connection:
            self.lost(rank)
        elif rank:
            rank.guard = None

    def owner(self, connection: Connection) -> Rank | None:
        return next((rank for rank in self.ranks.values() if connection in (rank.line, rank.guard)), None)

    def welcome(self, connection: Connection, message: dict[str, Any]) -> bool:
        """Whether it is one of ours that says hello."""
        if not hmac.compare_digest(str(message.get("hello")).encode(), self.key.encode()):
            return False
        number = message["rank"]
        if "pid" in message:
            name = f"rank {number} of {self.size} (host {message['host']}, pid {message['pid']})"
            self.ranks[number] = Rank(number, name, connection)
            connection.send(welcome=True)
        else:
            self.ranks[number].guard, self.ranks[number].heard = connection, time.monotonic()
        return True

    def take(self, rank: Rank, message: dict[str, Any]) -> None:
        now = time.monotonic()
        if "running" in message:
            rank.heard = now
            rank.stopped = None if message["running"] else rank.stopped or now
        elif "remedy" in message:
            self.remedy = message["remedy"]
        elif "left" in message:
            rank.left = True
        elif "failed" in message and self.over:
            rank.line.send(tells=None)
        elif "failed" in message:
            rank.failed = message["failed"]
            self.failures.append(rank)
            self.decision = min(self.decision, now + GRACE)

    def lost(self, rank: Rank) -> None:
        """A rank's process has ended."""
        rank.gone = True
        if rank is self.teller and not self.signalled:  # those that failed too are ending by themselves
            for other in self.ranks.values():
                if other.guard and other.failed is None:
                    other.guard.send(stop=True)
        if not (rank.left or rank.failed is not None or self.signalled or self.over):
            self.tell(
                f"{rank.name} died: killed by hand or by a system without memory, or crashed. All others are stopped."
            )

    def tell(self, text: str) -> None:
        """The end of the job, and why."""
        self.over, self.end = True, time.monotonic()
        os.write(2, f"\npycap: {text}{self.advice()}\n".encode())
        for rank in self.failures:
            rank.line.send(tells=None)

    def advice(self) -> str:
        return f" {self.remedy}" if self.remedy else ""

    def decide(self, now: float) -> None:
        """Who tells an error that ranks have reported: of those with the same as the first, the lowest."""
        waiting = sum(rank.failed is None and not rank.gone for rank in self.ranks.values())
        if waiting and now < self.decision:
            return
        self.over, self.end = True, now + (self.silence if self.signalled else ENDING)
        alike = [rank for rank in self.failures if rank.failed == self.failures[0].failed]
        self.teller = min(alike, key=lambda rank: rank.number)
        headline = f"pycap: {self.teller.name} ends with an error, and all others are stopped.{self.advice()}"
        told = "" if len(alike) == self.size or self.signalled else headline
        for rank in self.failures:
            together = len(self.failures) == self.size
            rank.line.send(tells=told if rank is self.teller else None, together=together)

    def beat(self, now: float, since: float) -> None:
        """Signs of life, given and asked for."""
        self.guards(beat=True)
        alive = [rank for rank in self.ranks.values() if rank.guard and not rank.gone]
        if since > 5 * BEAT:  # it is we who did not run: the machine, or the whole job, was suspended
            for rank in alive:
                rank.heard, rank.stopped = now, rank.stopped and now
        for rank in () if self.over else alive:
            if now - rank.heard > self.silence:
                self.tell(
                    f"{rank.name} has not been heard of for {self.silence:.0f} s: its machine or the network is lost. "
                    "All others are stopped."
                )
                return
            # Where all of them are stopped, somebody means it.
            hangs = rank.stopped is not None and now - rank.stopped > self.silence
            if hangs and any(other.stopped is None for other in alive):
                self.tell(f"{rank.name} hangs: stopped for {self.silence:.0f} s (SIGSTOP). All ranks are ended.")
                return


# The guard ------------------------------------------------------------------------------------------------------------


def guard(pid: int, rank: int, host: str, addresses: list[Any], key: str, silence: float, tells: bool) -> None:
    """Until process `pid`, our parent, has ended, or the hub says what to do. host: the hub's."""
    select = selectors.DefaultSelector()
    select.register(sys.stdin, selectors.EVENT_READ)
    sock = reach(addresses)
    if sock is None:  # it was there when we were started: it has died since, unless all have done their part meanwhile
        if not select.select(BEAT):
            lose(pid, rank, host, tells)
        return
    hub = Connection(sock)
    hub.send(hello=key, rank=rank)
    select.register(hub.socket, selectors.EVENT_READ)
    heard = last = time.monotonic()
    while os.getppid() == pid:
        files = [key.fileobj for key, _ in select.select(BEAT)]
        now = time.monotonic()
        if sys.stdin in files:
            return
        heard = now if now - last > 5 * BEAT else heard  # it is we who did not run
        last = now
        lost = now - heard > silence
        if hub.socket in files:
            messages, _, ended = hub.receive()
            heard = now
            if any("done" in message for message in messages):
                return
            if any("stop" in message for message in messages):
                os.kill(pid, signal.SIGKILL)
                return
            lost |= ended
        if lost:
            lose(pid, rank, host, tells)
            return
        hub.send(running=_runs(pid))


def lose(pid: int, rank: int, host: str, tells: bool) -> None:
    """End process `pid`, our parent, since there is no hub any more; tells: and say why."""
    if os.getppid() != pid:
        return
    if tells:
        why = f"rank {rank} and those beside it hear nothing of rank 0 (host {host}) any more, and are stopped"
        os.write(2, f"\npycap: {why}\n".encode())
    os.kill(pid, signal.SIGKILL)


def reach(addresses: list[Any]) -> socket.socket | None:
    """A connection to the first of `addresses` that takes one: [host, port] of TCP, or the name of a socket of this machine."""
    for address in addresses:
        local = isinstance(address, str)
        sock = socket.socket(socket.AF_UNIX if local else socket.AF_INET)
        try:
            sock.settimeout(10)
            sock.connect("\0" + address if local else tuple(address))
            return sock
        except OSError:
            sock.close()
    return None


def _runs(pid: int) -> bool:
    """Whether a process is not stopped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "T"
    except OSError:  # no such file system, or no such process any more, which its line tells
        return True


def main() -> None:
    # Whoever ends ranks by signal may send it to all there is of a job: the ranks decide, and we end with them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with open(0, "rb", buffering=0, closefd=False) as config:
        line = config.readline()  # and not a byte more: what is left is waited for
    if not line:
        return
    if sys.argv[1] == "guard":
        guard(**json.loads(line))
        return
    tcp = socket.create_server(("", 0), backlog=1024)
    own = socket.socket(socket.AF_UNIX)
    own.bind("")  # a name that is free, and in no folder
    own.listen(1024)
    print(json.dumps([own.getsockname()[1:].decode(), tcp.getsockname()[1]]), flush=True)
    os.close(1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two connections a rank
    Hub(listeners=[own, tcp], **json.loads(line)).run()


if __name__ == "__main__":
    main()
