"""What the ranks of a test's job do: `python -m tests.distributed.program DEED [FOLDER] [RANK] [SILENCE]`.

RANK is the one that does something else than the others; FOLDER takes each rank's number of its process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from pycap import distributed
from pycap.distributed import DistributedError, Ranks, lifeline


def say(line: str) -> None:
    """One write for a line: print's two, where Python does not buffer, let another rank's line between them."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def exchange(ranks: Ranks) -> None:
    """Everything that ranks can exchange, checked by each of them; rank 0 says so."""
    own, size = ranks.rank, ranks.size
    assert ranks is distributed.current()
    assert ranks.each({"rank": own}) == [{"rank": rank} for rank in range(size)]
    assert ranks.first(f"of {own}") == "of 0"
    assert ranks.total(np.array([own + 1, 0.5])).tolist() == [size * (size + 1) / 2, size / 2]
    assert (ranks.local_rank, ranks.local_size) == (own, size)
    for dtype, count in ((np.float32, 1_000_003), (np.float64, 7), (np.float32, 1), (np.float32, 0)):
        parts = [np.random.default_rng(rank).standard_normal(count).astype(dtype) for rank in range(size)]
        exact = np.sum(np.asarray(parts, np.float64), axis=0)
        # Any order of size - 1 additions errs by at most (size - 1) roundings of what is no more than the sum of sizes.
        bound = (size - 1) * np.finfo(dtype).eps * np.abs(parts).sum(axis=0)
        arrays = [parts[own].copy(), np.full((3, 5), own, dtype)]
        under_way = [ranks.start_sum(array) for array in arrays]
        for one in under_way:
            one.wait()
        assert (np.abs(arrays[0] - exact) <= bound).all()
        assert (arrays[1] == sum(range(size))).all()
        assert len(set(ranks.each(arrays[0].tobytes()))) == 1, "not the same bits everywhere"
    ranks.barrier()
    if own == 0:
        say(f"exchanged by {type(ranks).__name__}")


def do(deed: str, ranks: Ranks, folder: Path, mine: bool) -> None:
    if deed == "exchange":
        exchange(ranks)
    elif deed in ("wait", "deaf"):  # to be killed, or stopped, or interrupted
        if deed == "deaf":  # as in a wait of MPI, which Python's handlers do not end
            signal.signal(signal.SIGINT, lambda number, frame: None)
        distributed.advise("Go on with --resume.")
        ranks.barrier()
        (folder / f"{ranks.rank}.new").write_text(str(os.getpid()))
        (folder / f"{ranks.rank}.new").rename(folder / f"{ranks.rank}.pid")
        if mine:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    elif deed == "fail" and mine:
        raise ValueError(f"rank {ranks.rank} lacks its data")
    elif deed == "fail alike":
        raise ValueError("the data is not there")
    elif (deed == "exit" and mine) or deed == "exit alike":
        with distributed.alike():
            print("usage: that was a wrong option", file=sys.stderr)
            sys.exit(2)
    elif deed == "help":
        with distributed.alike():
            print("this is help")
            sys.exit(0)
    elif deed == "desert" and mine:  # leaves the others in an exchange
        os._exit(0)
    if deed in ("fail", "exit", "desert"):
        ranks.barrier()


def main(deed: str, folder: str = ".", rank: str = "-1", silence: str = "20") -> None:
    lifeline.SILENCE = float(silence)
    try:
        with distributed.started() as ranks:
            do(deed, ranks, Path(folder), ranks.rank == int(rank))
        say("ended")
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, DistributedError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
