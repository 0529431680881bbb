"""Sets of names that take eight bytes each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pycap.bulk import names
from pycap.bulk.names import Names
from pycap.bulk.target import Target
from pycap.data import DataError
from pycap.data.items import Reference


def test_what_was_given_is_in_it_and_nothing_else() -> None:
    given = [f"images/{number}.jpg" for number in range(0, 2000, 2)] + ["caf\udce9.jpg"]
    found = Names(given)
    assert len(found) == 1001 and all(name in found for name in given)
    assert not any(f"images/{number}.jpg" in found for number in range(1, 2000, 2))
    assert "a" not in Names([])


def test_what_was_given_twice() -> None:
    again = Names(["a", "b", "a", "c", "a", "c"]).repeated()
    assert [name in again for name in "abc"] == [True, False, True] and len(again) == 2
    assert len(Names(["a", "b"]).repeated()) == len(Names([]).repeated()) == 0


def test_eight_bytes_a_name() -> None:
    found = Names(map(str, range(5000)))
    assert found._hashes.dtype == np.uint64 and found._hashes.nbytes == 8 * 5000


def test_images_whose_names_only_hash_alike_are_not_taken_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(names, "hashed", len)
    assert "cd" in Names(["ab"])
    Target(tmp_path / "a", "coco").check(lambda: map(Reference, ("a/1.jpg", "a/2.jpg", "a/3.jpg")))
    with pytest.raises(DataError, match="b/2.jpg and a/2.jpg have the same image id, '2'"):
        Target(tmp_path / "a", "coco").check(lambda: map(Reference, ("a/1.jpg", "a/2.jpg", "b/2.jpg")))
