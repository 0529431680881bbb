"""Ranks that TCP joins, where there is no MPI: a star through rank 0 for what is small, a ring for large sums."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import queue
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from pycap.distributed.launch import DistributedError

T = TypeVar("T")

#: Seconds that ranks wait for each other at the start, and that one connection may take to show that it belongs here.
PATIENCE, _HELLO = 120.0, 10.0

_LENGTH, _RANK = struct.Struct("!Q"), struct.Struct("!I")
_NONCE = 32


class Link:
    """A connection to another rank: objects in frames of a length and a pickle, or bare bytes."""

    def __init__(self, sock: socket.socket, peer: int) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.peer = sock, peer

    def send(self, value: Any) -> None:
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        with self.naming():
            self.socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self) -> Any:
        with self.naming():
            length = _LENGTH.unpack(_exactly(self.socket, _LENGTH.size))[0]
            return pickle.loads(_exactly(self.socket, length))

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Within this a broken connection is an error that names who was at its other end."""
        try:
            yield
        except OSError as error:
            raise DistributedError(f"the connection to rank {self.peer} broke ({error})") from error


def _exactly(sock: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise ConnectionError("closed at its other end")
        view = view[got:]
    return data


# Connections that strangers do not get -------------------------------------------------------------------------------


def _proof(key: bytes, side: bytes, ours: bytes, theirs: bytes, rank: bytes) -> bytes:
    return hmac.digest(key, side + ours + theirs + rank, hashlib.sha256)


def accept(listener: socket.socket, key: bytes) -> Link | None:
    """The next connection, of a rank that knows `key`, which proves it without telling it; None for anything else."""
    sock, _ = listener.accept()
    try:
        sock.settimeout(_HELLO)
        ours = secrets.token_bytes(_NONCE)
        sock.sendall(ours)
        answer = bytes(_exactly(sock, _RANK.size + 2 * _NONCE))
        rank, theirs, proof = answer[: _RANK.size], answer[_RANK.size : -_NONCE], answer[-_NONCE:]
        if not hmac.compare_digest(proof, _proof(key, b"connects", ours, theirs, rank)):
            raise ConnectionError("not of this job")
        sock.sendall(_proof(key, b"listens", ours, theirs, rank))
    except OSError:
        sock.close()
        return None
    return Link(sock, _RANK.unpack(rank)[0])


def connect(address: tuple[str, int], key: bytes, rank: int, peer: int, deadline: float) -> Link:
    """A connection to rank `peer`, tried until `deadline` (of time.monotonic). Raises DistributedError after that."""
    reason: object = "no time was left"
    while (left := deadline - time.monotonic()) > 0:
        try:
            sock = socket.create_connection(address, timeout=min(left, _HELLO))
        except OSError as error:
            reason = error
            time.sleep(min(0.2, left))
            continue
        try:
            theirs, name = bytes(_exactly(sock, _NONCE)), _RANK.pack(rank)
            ours = secrets.token_bytes(_NONCE)
            sock.sendall(name + ours + _proof(key, b"connects", theirs, ours, name))
            if not hmac.compare_digest(_exactly(sock, _NONCE), _proof(key, b"listens", theirs, ours, name)):
                raise ConnectionError("what listens there is not of this job")
            return Link(sock, peer)
        except OSError as error:
            reason = error
            sock.close()
            time.sleep(min(0.2, left))
    raise DistributedError(
        f"rank {rank} found no rank {peer} at {address[0]}:{address[1]} ({reason}): see whether that rank has started, whether "
        "a firewall is between the machines, and whether PYCAP_TOKEN and PYCAP_PORT are the same for all"
    )


def listen(port: int = 0) -> socket.socket:
    """A socket that listens on `port` of every address of this machine (0: any that is free)."""
    try:
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise DistributedError(
            f"rank 0 cannot listen on port {port} ({error}): PYCAP_PORT names another one"
        ) from error


# The ranks ------------------------------------------------------------------------------------------------------------


class SocketRanks:
    """`Ranks` over TCP. host, port: where rank 0 listens. key: what all know and nobody else does."""

    def __init__(self, rank: int, size: int, host: str, port: int, key: bytes) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = 0, 1
        deadline = time.monotonic() + PATIENCE
        self._links: dict[int, Link] = {}
        if rank == 0:
            with listen(port) as listener:
                self._links = _gather(listener, key, set(range(1, size)), deadline)
        else:
            self._links[0] = connect((host, port), key, rank, 0, deadline)
        self._ring = _Ring(self, key)

    def each(self, value: T) -> list[T]:
        if self.rank:
            self._links[0].send(value)
            return self._links[0].receive()
        values = [value, *(self._links[rank].receive() for rank in range(1, self.size))]
        for link in self._links.values():
            link.send(values)
        return values

    def first(self, value: T) -> T:
        if self.rank:
            return self._links[0].receive()
        for link in self._links.values():
            link.send(value)
        return value

    def total(self, values: Any) -> Any:
        return np.sum(self.each(np.asarray(values)), axis=0)

    def barrier(self) -> None:
        self.each(None)

    def start_sum(self, array: np.ndarray) -> _Sum:
        return self._ring.start(array)

    def finalize(self) -> None:
        """The end of the connections, of which nothing more is awaited."""
        for link in (*self._links.values(), self._ring.after, self._ring.before):
            link.socket.close()


def _gather(listener: socket.socket, key: bytes, missing: set[int], deadline: float) -> dict[int, Link]:
    links: dict[int, Link] = {}
    while len(links) < len(missing):
        listener.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
        try:
            link = accept(listener, key)
        except TimeoutError as error:
            late = sorted(missing - links.keys())
            raise DistributedError(
                f"{len(late)} of {len(missing) + 1} ranks did not come within {PATIENCE:.0f} s (the first: rank {late[0]}): "
                f"see whether they have started, and whether they reach {socket.gethostname()}:{listener.getsockname()[1]}"
            ) from error
        if link is not None and link.peer in missing - links.keys():
            links[link.peer] = link
    return links


class _Sum:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.done = threading.Event()
        self.error: Exception | None = None

    def wait(self) -> None:
        self.done.wait()
        if self.error is not None:
            raise self.error


class _Ring:
    """Large sums, in a thread, one after another. Each rank hands on to the next: n - 1 times a part of the sum to which it has
    added its own, then n - 1 times a part that is whole, so that each link carries the array less than twice and every
    rank has the bits of whoever made a part whole."""

    def __init__(self, ranks: SocketRanks, key: bytes) -> None:
        self._rank, self._size = ranks.rank, ranks.size
        deadline = time.monotonic() + PATIENCE
        after, before = (ranks.rank + 1) % ranks.size, (ranks.rank - 1) % ranks.size
        with listen() as listener:
            homes = ranks.each((socket.gethostname(), listener.getsockname()[1]))
            if ranks.rank == 0:  # one that takes first, since each is taken only after it has been given
                self.before = _gather(listener, key, {before}, deadline)[before]
            host, port = homes[after]
            host = "127.0.0.1" if host == socket.gethostname() else host
            self.after = connect((host, port), key, ranks.rank, after, deadline)
            if ranks.rank:
                self.before = _gather(listener, key, {before}, deadline)[before]
        self._waiting: queue.SimpleQueue[_Sum] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="sums", daemon=True).start()

    def start(self, array: np.ndarray) -> _Sum:
        under_way = _Sum(array)
        self._waiting.put(under_way)
        return under_way

    def _run(self) -> None:
        while True:
            under_way = self._waiting.get()
            try:
                self._sum(under_way.array.reshape(-1))
            except Exception as error:  # raised by whoever waits for the sum
                under_way.error = error
            under_way.done.set()

    def _sum(self, flat: np.ndarray) -> None:
        n, r = self._size, self._rank
        ends = [len(flat) * part // n for part in range(n + 1)]
        parts = [flat[start:end] for start, end in pairwise(ends)]
        taken = np.empty(max(map(len, parts)), flat.dtype)
        for turn in range(n - 1):
            mine = parts[(r - turn - 1) % n]
            self._exchange(parts[(r - turn) % n], taken[: len(mine)])
            mine += taken[: len(mine)]
        for turn in range(n - 1):
            self._exchange(parts[(r - turn + 1) % n], parts[(r - turn) % n])

    def _exchange(self, out: np.ndarray, into: np.ndarray) -> None:
        """Send to the rank after while receiving from the one before: if all sent first, none would read."""
        sending, receiving = out.view(np.uint8).data, into.view(np.uint8).data
        poll = select.poll()
        if sending:
            poll.register(self.after.socket, select.POLLOUT)
        if receiving:
            poll.register(self.before.socket, select.POLLIN)
        while sending or receiving:
            for number, _ in poll.poll():
                if number == self.after.socket.fileno():
                    with self.after.naming():
                        sending = sending[self.after.socket.send(sending, socket.MSG_DONTWAIT) :]
                    if not sending:
                        poll.unregister(number)
                else:
                    with self.before.naming():
                        got = self.before.socket.recv_into(receiving)
                        if not got:
                            raise ConnectionError("closed at its other end")
                    receiving = receiving[got:]
                    if not receiving:
                        poll.unregister(number)
