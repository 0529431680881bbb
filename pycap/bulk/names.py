"""Sets of names in eight bytes each: which images a file has, and whether two have the same id."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from pycap.data.names import hashed


class Names:
    """A set of names, of which it keeps 64 bits of a hash: 80 MB for ten million.

    Among n names, one that is not in it is taken for one that is with probability n / 2**64; of a million names asked of a
    million, none is in all but one case of 18 million.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """names: gone through once; equal ones are counted each."""
        hashes = array("Q")
        for name in names:
            hashes.append(hashed(name))
        self._hashes = np.frombuffer(hashes, np.uint64) if hashes else np.empty(0, np.uint64)
        self._hashes.sort()

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, name: str) -> bool:
        own = np.uint64(hashed(name))
        place = np.searchsorted(self._hashes, own)
        return bool(place < len(self._hashes) and self._hashes[place] == own)

    def repeated(self) -> Names:
        """The names that were given more than once; a few others may be among them, whose hashes are equal."""
        again = Names(())
        again._hashes = np.unique(self._hashes[1:][self._hashes[1:] == self._hashes[:-1]])
        return again
