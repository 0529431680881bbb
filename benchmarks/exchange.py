"""How long it takes to sum the gradients of VGG16 and the LSTM over all ranks' GPUs, with nothing else to do.

    mpirun -n 8 python -m benchmarks.exchange     # with one process: that NCCL works, and what its launches cost

A row a bucket, in the order in which a step sums them, and one of all. "bus" is what nccl-tests call busbw: the bytes that a
ring moves over each GPU's link, 2 (n-1)/n of the array, by the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from pycap import backends, device, memory
from pycap.backends.dry import dry_run
from pycap.captioner import build_model
from pycap.config import TrainConfig
from pycap.distributed import started
from pycap.distributed.device_reducer import DeviceReducer
from pycap.distributed.nccl import Communicator

_WARM = 3  # rounds before those that count


def bucket_sizes(config: TrainConfig, vocabulary: int) -> list[int]:
    """How many gradients each bucket of a run has, all learning."""
    with dry_run("sm_90"):
        tensors = build_model(config, vocabulary, draw=False).named_parameters().values()
        return [bucket.flat.size for bucket in DeviceReducer(None, list(tensors), half=False).buckets]


def milliseconds(communicator: Communicator, arrays: Sequence[Any], rounds: int) -> float:
    """The median time of a round of sums, by events of the device."""
    cuda = device.module().cuda
    times = []
    for _ in range(_WARM + rounds):
        begin, end = cuda.Event(), cuda.Event()
        begin.record()
        for array in arrays:
            communicator.sum(array)
        end.record()
        end.synchronize()
        times.append(cuda.get_elapsed_time(begin, end))
    return float(np.median(times[_WARM:]))


def main(argv: Sequence[str] | None = None) -> int:
    """The table, on rank 0's standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--cnn", default="vgg16", help="default: %(default)s")
    args = parser.parse_args(argv)
    config = TrainConfig(cnn=args.cnn).validate()
    with started() as ranks:
        backends.select("cuda")
        communicator, sizes = Communicator(ranks), bucket_sizes(config, vocabulary=10_000)
        for dtype in (device.bfloat16(), np.dtype(np.float32)):
            arrays = [memory.zeros((size,), dtype) for size in sizes]
            for name, some in [*((f"bucket {n}", [a]) for n, a in enumerate(arrays, 1)), ("all", arrays)]:
                nbytes, ms = sum(array.nbytes for array in some), milliseconds(communicator, some, args.rounds)
                bus = nbytes * 2 * (ranks.size - 1) / ranks.size / ms / 1e6
                if ranks.rank == 0:
                    print(
                        f"{dtype.name:9} {name:9} {nbytes / 1e6:7.1f} MB {ms:8.3f} ms {bus:7.1f} GB/s bus", flush=True
                    )
        communicator.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
