"""What ranks tell each other, over MPI and over TCP, in processes that a launcher starts; and launchers that do not fit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pycap import distributed
from pycap.distributed import DistributedError, sockets
from tests.conftest import ROOT
from tests.distributed.jobs import PROGRAM, Job, mpi, pmi2, slurm

LAUNCHES = [
    pytest.param(mpi, "MpiRanks", marks=pytest.mark.mpi),
    pytest.param(pmi2, "MpiRanks", marks=pytest.mark.mpi),
    (slurm, "SocketRanks"),
]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("launch", "kind"), LAUNCHES)
def test_every_exchange_on_every_rank(launch: Callable[..., Job], kind: str, size: int) -> None:
    statuses, said = launch(size, "exchange").end()
    assert set(statuses) == {0}, said
    assert sorted(said.splitlines()) == ["ended"] * size + [f"exchanged by {kind}"]


def test_a_process_alone_loads_no_mpi() -> None:
    code = "import sys; from tests.distributed.program import main; main('exchange'); print('mpi4py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["exchanged", "by", "Alone", "ended", "False"]


def test_what_leaves_the_block_leaves_one_process() -> None:
    with distributed.started() as ranks:
        assert ranks is distributed.ALONE is distributed.current()
    with pytest.raises(ValueError), distributed.started():
        raise ValueError


# Launchers that do not fit ------------------------------------------------------------------------------------------


def _alone(tmp_path: Path, module: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The program in one process with the environment of several, and another mpi4py."""
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text(module)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    environ = os.environ | variables | {"PYTHONPATH": path}
    return subprocess.run([*PROGRAM, "exchange"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30)


def test_without_mpi4py_an_error_names_the_remedy(tmp_path: Path) -> None:
    done = _alone(tmp_path, "raise ImportError('No module')", PMI_RANK="0", PMI_SIZE="2")
    assert done.returncode == 1
    assert done.stderr.startswith("error: MPICH's mpirun started this, but mpi4py does not import (No module)")
    assert 'pip install "pycap-captioning[distributed]"' in done.stderr


FAKE = """
class MPI:
    get_vendor = staticmethod(lambda: ({vendor!r}, (5, 0)))
    Is_initialized = staticmethod(lambda: True)
    class COMM_WORLD:
        size = 1
rc = lambda **options: None
"""


def test_the_mpirun_of_another_mpi_is_told(tmp_path: Path) -> None:
    done = _alone(
        tmp_path, FAKE.format(vendor="Open MPI"), PMI_RANK="0", PMI_SIZE="2", MPI_LOCALRANKID="0", MPI_LOCALNRANKS="2"
    )
    assert done.returncode == 1
    assert "this mpirun is MPICH's, and mpi4py's MPI is Open MPI, which it cannot start: start with " in done.stderr


def test_an_mpi_that_sees_fewer_processes_is_told(tmp_path: Path) -> None:
    done = _alone(tmp_path, FAKE.format(vendor="MPICH"), PMI_RANK="0", PMI_SIZE="2")
    assert done.returncode == 1 and "2 processes were started, of which it sees 1" in done.stderr


@pytest.mark.parametrize(("offered", "vendor"), [("PMI_FD", "Open MPI"), ("PMIX_RANK", "MPICH"), ("PMI_FD", "MPICH")])
def test_under_slurm_mpi_is_taken_where_srun_serves_all_of_it(tmp_path: Path, offered: str, vendor: str) -> None:
    """An MPI that speaks another language, which must not be started, and one that sees one process of two: TCP it is."""
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", offered: "3"}
    started = "True" if (offered, vendor) == ("PMI_FD", "MPICH") else "1 / 0"
    fake = FAKE.format(vendor=vendor).replace("lambda: True", f"lambda: {started}")
    done = _alone(tmp_path, fake, PYCAP_TOKEN="t", PYCAP_PORT="1x", **step)
    assert done.returncode == 1 and done.stderr.startswith("error: PYCAP_PORT='1x' is no port")


# TCP ----------------------------------------------------------------------------------------------------------------


def _gathered(listener: socket.socket, key: bytes, found: list[sockets.Link | None]) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.append(sockets.accept(listener, key)))
    thread.start()
    return thread


def test_strangers_are_refused_on_either_side() -> None:
    with sockets.listen() as listener:
        port = listener.getsockname()[1]
        found: list[sockets.Link | None] = []
        thread = _gathered(listener, b"ours", found)
        deadline = time.monotonic() + 0.5
        with pytest.raises(DistributedError, match=rf"rank 1 found no rank 0 at 127.0.0.1:{port}"):
            sockets.connect(("127.0.0.1", port), b"theirs", 1, 0, deadline)
        thread.join()
        assert found == [None]
        while time.monotonic() < deadline:  # attempts that nobody has answered
            time.sleep(0.01)
    with sockets.listen() as listener:
        thread = _gathered(listener, b"ours", found)
        link = sockets.connect(("127.0.0.1", listener.getsockname()[1]), b"ours", 1, 0, time.monotonic() + 10)
        thread.join()
        assert found[1] is not None and found[1].peer == 1
        found[1].send({"a": [1, 2]})
        assert link.receive() == {"a": [1, 2]}
        found[1].socket.close()
        with pytest.raises(DistributedError, match=r"the connection to rank 0 broke \(closed at its other end\)"):
            link.receive()
        link.socket.close()


def test_what_listens_must_know_the_key_too() -> None:
    with sockets.listen() as listener:

        def pretend() -> None:
            sock, _ = listener.accept()
            sock.sendall(bytes(32))
            sock.recv(1 << 10)
            sock.sendall(bytes(32))
            sock.close()

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(DistributedError, match="is not of this job"):
            sockets.connect(("127.0.0.1", listener.getsockname()[1]), b"ours", 1, 0, time.monotonic() + 0.1)
        thread.join()


def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "PATIENCE", 0.2)
    with pytest.raises(DistributedError, match="2 of 3 ranks did not come within 0 s .the first: rank 1.: see whether"):
        sockets.SocketRanks(0, 3, "localhost", 0, b"key")


def test_a_port_that_is_taken_is_told() -> None:
    with sockets.listen() as listener, pytest.raises(DistributedError, match="PYCAP_PORT names another one"):
        sockets.listen(listener.getsockname()[1])


def test_an_error_within_a_sum_is_raised_where_it_is_waited_for() -> None:
    with sockets.listen() as free:
        port = free.getsockname()[1]
    joined: list[sockets.SocketRanks] = []
    other = threading.Thread(target=lambda: joined.append(sockets.SocketRanks(1, 2, "127.0.0.1", port, b"key")))
    other.start()
    first = sockets.SocketRanks(0, 2, "127.0.0.1", port, b"key")
    other.join()
    constant = np.ones(4, np.float32)
    constant.flags.writeable = False
    left = joined[0].start_sum(np.ones(4, np.float32))
    with pytest.raises(ValueError, match="read-only"):
        first.start_sum(constant).wait()
    first.finalize()
    with pytest.raises(DistributedError, match="the connection to rank 0 broke"):
        left.wait()
    joined[0].finalize()
