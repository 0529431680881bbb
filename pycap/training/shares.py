"""What a process has of a batch, and how what the ranks made of their shares is put together again."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pycap.device import to_host
from pycap.distributed import DistributedError, Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """This rank's part of a step's batch. first: the number of its first image in the whole batch, of which rank 0 has the
    first images. images, tokens: of the whole batch; tokens that count in the loss, which is their mean."""

    first: int
    images: int
    tokens: int


def share(ranks: Ranks, images: int, tokens: int) -> Share:
    """The share of a rank that has so many images with so many tokens of the next batch; each rank calls this."""
    counts = np.zeros((ranks.size, 2), np.int64)
    counts[ranks.rank] = images, tokens
    counts = ranks.total(counts)
    return Share(int(counts[: ranks.rank, 0].sum()), int(counts[:, 0].sum()), int(counts[:, 1].sum()))


def gather(ranks: Ranks, made: Sequence[tuple[int, T]], most: int | None = None) -> list[T]:
    """What all ranks made of their shares of some batches, in the order in which one process would have made it.

    made: (the batch's index, what was made of an image), in the images' order. most: only so many, the first ones.
    """
    if most is not None:
        told = enumerate(ranks.each([index for index, _ in made[:most]]))
        wanted = sorted((index, rank, k) for rank, indices in told for k, index in enumerate(indices))[:most]
        made = [made[k] for _, rank, k in wanted if rank == ranks.rank]
    pairs = [pair for own in ranks.each(list(made)) for pair in own]
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


def differing(ranks: Ranks, arrays: Mapping[str, Any]) -> list[int]:
    """The ranks whose arrays are not, bit for bit, those of rank 0; the same list on all."""
    if ranks.size == 1:
        return []
    told = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(to_host(arrays[name]))
        told.update(f"{name} {array.dtype} {array.shape}".encode())
        told.update(array.data)
    digests = ranks.each(told.digest())
    return [rank for rank, own in enumerate(digests) if own != digests[0]]


def require_same(ranks: Ranks, arrays: Mapping[str, Any]) -> None:
    """DistributedError, on all ranks, where one begins with other weights, or another state of the optimiser, than the first:
    their sums of gradients would be of different models."""
    if others := differing(ranks, arrays):
        raise DistributedError(
            f"rank {others[0]} begins with other weights than rank 0: give all ranks the same files, as in a folder that all "
            "machines see, and the same version of pycap"
        )


def led(ranks: Ranks, work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank; the others wait for it. Its error is an error of all of them."""
    value, failed = None, None
    if ranks.rank == 0:
        try:
            value = work()
        except Exception as error:
            failed = error
    value, told = ranks.first((value, failed and _portable(failed)))
    if told is not None:
        raise failed or told
    return value  # type: ignore[return-value]


def _portable(error: Exception) -> Exception:
    """The error, or if pickle cannot take it to another rank, one of the same text."""
    try:
        same = str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:  # whatever its parts raise
        same = False
    return error if same else DistributedError(str(error))
