"""A rank that dies, hangs, fails or is interrupted: all of them end, and the terminal says what happened, once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycap.distributed import watch
from tests.distributed.jobs import Job, mpi, slurm, waiting

LAUNCHES = [pytest.param(mpi, id="mpi", marks=pytest.mark.mpi), pytest.param(slurm, id="slurm")]
launched = pytest.mark.parametrize("launch", LAUNCHES)


def told(said: str) -> list[str]:
    """What is ours of what a launcher and its ranks said."""
    return [line for line in said.splitlines() if line.startswith(("pycap:", "error:", "usage:", "Traceback"))]


def name(rank: int, size: int, pids: list[int]) -> str:
    return f"pycap: rank {rank} of {size} (host {socket.gethostname()}, pid {pids[rank]})"


@pytest.mark.faults
@launched
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_rank_that_dies_is_named_and_ends_all(launch: Callable[..., Job], victim: int, tmp_path: Path) -> None:
    with waiting(launch, 3, tmp_path) as (job, pids):
        os.kill(pids[victim], signal.SIGKILL)
        statuses, said = job.end()
    (line,) = told(said)
    assert line == (
        f"{name(victim, 3, pids)} died: killed by hand or by a system without memory, or crashed. All others are stopped. "
        "Go on with --resume."
    )
    assert 0 not in statuses and "ended" not in said.split()


@pytest.mark.faults
@launched
def test_a_rank_that_is_stopped_is_named_and_ends_all(launch: Callable[..., Job], tmp_path: Path) -> None:
    with waiting(launch, 2, tmp_path, 1, 2) as (job, pids):
        statuses, said = job.end()
    assert told(said) == [
        f"{name(1, 2, pids)} hangs: stopped for 2 s (SIGSTOP). All ranks are ended. Go on with --resume."
    ]
    assert 0 not in statuses


@launched
def test_ctrl_c_is_no_death(launch: Callable[..., Job], tmp_path: Path) -> None:
    with waiting(launch, 2, tmp_path) as (job, _):
        for process in job.processes:
            process.send_signal(signal.SIGINT)
        statuses, said = job.end()
    assert told(said) == [] and set(statuses) == {130}


@launched
def test_an_end_by_sigterm_is_no_death(launch: Callable[..., Job], tmp_path: Path) -> None:
    with waiting(launch, 2, tmp_path) as (job, _):
        for process in job.processes:
            process.send_signal(signal.SIGTERM)
        statuses, said = job.end()
    assert told(said) == [] and set(statuses) == {128 + signal.SIGTERM}


def test_ranks_that_are_killed_after_ctrl_c_did_not_die(tmp_path: Path) -> None:
    with waiting(slurm, 2, tmp_path, deed="deaf") as (job, pids):
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.5)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        statuses, said = job.end()
    assert told(said) == [] and set(statuses) == {-signal.SIGKILL}


@launched
def test_the_error_of_one_rank_ends_all_and_is_told_by_it(launch: Callable[..., Job]) -> None:
    statuses, said = launch(3, "fail", ".", 1).end()
    headline, error = told(said)
    assert headline.startswith("pycap: rank 1 of 3 (host ")
    assert headline.endswith("ends with an error, and all others are stopped.")
    assert error == "error: rank 1 lacks its data"
    assert 0 not in statuses and "ended" not in said.split()


@launched
@pytest.mark.parametrize(
    ("deed", "line", "status"),
    [("fail alike", "error: the data is not there", 1), ("exit alike", "usage: that was a wrong option", 2)],
)
def test_the_same_error_of_all_is_told_once(launch: Callable[..., Job], deed: str, line: str, status: int) -> None:
    statuses, said = launch(3, deed).end()
    assert told(said) == [line] and set(statuses) == {status}


def test_a_wrong_option_of_one_rank_is_told_by_it() -> None:
    statuses, said = slurm(2, "exit", ".", 1).end()
    headline, error = told(said)
    assert headline.startswith("pycap: rank 1 of 2 ") and error == "usage: that was a wrong option"
    assert statuses[1] == 2 and statuses[0] not in (0, 2)


def test_help_is_shown_once() -> None:
    statuses, said = slurm(3, "help").end()
    assert sorted(said.split("\n")) == ["", "ended", "ended", "ended", "this is help"] and set(statuses) == {0}


def test_a_rank_that_goes_without_a_word_died_whatever_its_status() -> None:
    statuses, said = slurm(2, "desert", ".", 1).end()
    assert told(said)[0].startswith("pycap: rank 1 of 2 ") and "died" in told(said)[0] and len(told(said)) == 1
    assert statuses[1] == 0 and statuses[0] != 0


# The hub and the guard themselves -----------------------------------------------------------------------------------


class Hub:
    """A hub of two ranks, and connections to it."""

    def __init__(self, silence: float = 30.0) -> None:
        program = [sys.executable, "-I", "-S", watch.__file__, "hub"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(program, text=True, **pipes)
        assert self.process.stdin and self.process.stdout
        print(json.dumps({"size": 2, "key": "k", "silence": silence}), file=self.process.stdin, flush=True)
        self.own, self.port = json.loads(self.process.stdout.readline())

    def join(self, rank: int, **more: object) -> watch.Connection:
        sock = watch.reach([self.own])
        assert sock is not None
        connection = watch.Connection(sock)
        connection.send(hello="k", rank=rank, **more)
        if more:
            assert self.answer(connection) == {"welcome": True}
        return connection

    def line(self, rank: int) -> watch.Connection:
        return self.join(rank, host=f"h{rank}", pid=rank)

    def answer(self, connection: watch.Connection, key: str = "welcome") -> dict[str, object]:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            messages, _, ended = connection.receive()
            for message in messages:
                if key in message:
                    return message
            if ended:
                return {}
            time.sleep(0.01)
        raise AssertionError(f"no {key}")

    def end(self) -> str:
        return self.process.communicate(timeout=10)[1]


@pytest.fixture
def hub() -> Iterator[Hub]:
    started = Hub()
    yield started
    started.process.kill()
    started.process.communicate()


def test_a_hub_is_left_when_all_have_done_their_part(hub: Hub) -> None:
    lines = [hub.line(0), hub.line(1)]
    guard = hub.join(0)
    hub.answer(guard, "beat")  # it knows the guard
    for line in lines:
        line.send(left=True)
        line.socket.close()
    assert hub.process.stdin
    hub.process.stdin.close()
    hub.process.stdin = None
    assert hub.answer(guard, "done") == {"done": True}
    assert hub.end() == "" and hub.process.returncode == 0


def test_strangers_are_shut_out_and_do_no_harm(hub: Hub) -> None:
    for words in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"[1]\n",
        b'{"hello": "other", "rank": 0}\n',
        b'{"failed": "x"}\n',
        b"\xff\n",
    ):
        with socket.create_connection(("127.0.0.1", hub.port), timeout=10) as stranger:
            stranger.sendall(words)
            assert stranger.recv(100) == b"", words
    lines = [hub.line(0), hub.line(1)]
    lines[1].socket.close()
    lines[0].socket.close()
    assert hub.end().split("\n")[1].startswith("pycap: rank 1 of 2 (host h1, pid 1) died")


def test_of_several_ends_the_first_counts(hub: Hub) -> None:
    lines = [hub.line(0), hub.line(1)]
    hub.process.send_signal(signal.SIGSTOP)  # it sees them at once, later
    lines[1].socket.close()
    lines[0].socket.close()
    hub.process.send_signal(signal.SIGCONT)
    said = hub.end()
    assert "rank 1 of 2" in said and "rank 0" not in said


def test_a_rank_that_was_interrupted_may_go(hub: Hub) -> None:
    lines = [hub.line(0), hub.line(1)]
    lines[0].socket.send(bytes([signal.SIGINT]))
    for line in lines:
        line.socket.close()
    assert hub.end() == ""


def test_a_guard_that_falls_silent_is_a_machine_that_is_lost() -> None:
    hub = Hub(silence=1.0)
    lines, guards = [hub.line(0), hub.line(1)], [hub.join(0), hub.join(1)]
    deadline = time.monotonic() + 10
    stop = False
    while not stop and time.monotonic() < deadline:
        guards[0].send(running=True)
        stop = any("stop" in message for message in guards[0].receive()[0])
        time.sleep(0.1)
    assert stop
    for line in lines:
        line.socket.close()
    assert hub.end().strip() == (
        "pycap: rank 1 of 2 (host h1, pid 1) has not been heard of for 1 s: its machine or the network is lost. "
        "All others are stopped."
    )


def test_ranks_that_are_all_stopped_are_left_alone() -> None:
    hub = Hub(silence=0.5)
    lines, guards = [hub.line(0), hub.line(1)], [hub.join(0), hub.join(1)]
    until = time.monotonic() + 3
    while time.monotonic() < until:
        for guard in guards:
            guard.send(running=False)
            assert not any("stop" in message for message in guard.receive()[0])
        time.sleep(0.1)
    for line in lines:
        line.send(left=True)
        line.socket.close()
    assert hub.end() == ""


@pytest.mark.faults
def test_a_rank_does_not_outlive_the_hub(tmp_path: Path) -> None:
    with waiting(slurm, 2, tmp_path) as (job, pids):
        children = Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()
        (hub,) = [pid for pid in children if "hub" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
        os.kill(int(hub), signal.SIGKILL)
        statuses, said = job.end()
    assert set(statuses) == {-signal.SIGKILL}
    assert f"hear nothing of rank 0 (host {socket.gethostname()}) any more" in told(said)[0]


@pytest.mark.parametrize("ends", [False, True])
def test_a_guard_that_finds_no_hub_ends_its_rank(ends: bool) -> None:
    """The hub may die, or be done, before a guard that starts late has reached it. A rank that has done its part waits for
    its guard with the guard's input closed, and is left alone."""
    rank = (
        "import json, os, subprocess, sys, time\n"
        f"guard = subprocess.Popen([sys.executable, '-I', '-S', {watch.__file__!r}, 'guard'], stdin=subprocess.PIPE)\n"
        "config = dict(pid=os.getpid(), rank=1, host='h0', addresses=['nobody listens'], key='k', silence=20, tells=True)\n"
        "guard.stdin.write(json.dumps(config).encode() + b'\\n')\n"
        "guard.stdin.flush()\n"
        f"guard.stdin.close() if {ends} else time.sleep(60)\n"
        "sys.exit(guard.wait())\n"
    )
    done = subprocess.run([sys.executable, "-c", rank], capture_output=True, text=True, timeout=30)
    told = "\npycap: rank 1 and those beside it hear nothing of rank 0 (host h0) any more, and are stopped\n"
    assert (done.returncode, done.stderr) == ((0, "") if ends else (-signal.SIGKILL, told))
