"""HDF5 files that would take a process down are refused by one that looks at them first."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pycap.data import DataError, growing, hdf5
from pycap.data.store import ImageStore
from tests.fuzz.readers import TARGETS


def _file(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(9)
    return path


def test_a_sound_file_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path / "a.h5")
    asked: list[str] = []
    monkeypatch.setattr(hdf5, "_asked", lambda real: asked.append(real) or "")
    hdf5.require_sound(path)
    hdf5.require_sound(path)
    assert asked == [os.path.realpath(path)]
    os.utime(path, ns=(1, 1))
    hdf5.require_sound(path)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no data", "bytes from a file of"),
        ("external link", "is a link"),
        ("external data", "in other files"),
        ("virtual", "in other files"),
    ],
)
def test_what_is_not_in_the_file_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if name == "no data":
            file.create_dataset("data", (1 << 40,), np.uint8, chunks=(1 << 16,))
        elif name == "external link":
            file["data"] = h5py.ExternalLink("/etc/passwd", "/x")
        elif name == "external data":
            file.create_dataset("data", (16,), np.uint8, external=[("/etc/passwd", 0, 16)])
        else:
            layout = h5py.VirtualLayout((16,), np.uint8)
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", (16,))
            file.create_virtual_dataset("data", layout)
    with pytest.raises(DataError, match=said) as caught:
        hdf5.require_sound(tmp_path / "a.h5")
    assert "a.h5" in str(caught.value)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("while True: pass", "takes for ever"),
        ("os.kill(os.getpid(), 11)", "crashes on it, with SIGSEGV"),
        ("bytearray(1 << 40)", "more memory"),
    ],
)
def test_a_process_that_is_taken_down_is_told(what: str, said: str, tmp_path: Path) -> None:
    """What HDF5's library may do, done in its place, in the process that forks for each file."""
    import subprocess
    import sys

    planted = f"def look_through(path, size):\n    {what}\nhdf5.look_through = look_through\n"
    program = f"import os\nfrom pycap.data import hdf5\n{planted}hdf5.serve()"
    line = f'"{_file(tmp_path / "a.h5")}"\n'.encode()
    done = subprocess.run([sys.executable, "-c", program], input=line * 2, capture_output=True, check=True, timeout=60)
    assert done.stdout.count(said.encode()) == 2


def test_the_process_that_looks_may_be_killed(tmp_path: Path) -> None:
    hdf5.require_sound(_file(tmp_path / "a.h5"))
    looker = hdf5._looker
    assert looker is not None
    looker.kill()
    looker.wait()
    hdf5.require_sound(_file(tmp_path / "b.h5"))


def test_an_offset_that_wraps_around_is_beyond_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    ImageStore(path, 32).close()
    with h5py.File(path, "r+") as file:
        index = file["index"]
        index.resize((1,))
        row = np.zeros(1, index.dtype)
        row["offset"], row["length"] = (1 << 64) - 10, 20
        index[:] = row
    with pytest.raises(DataError, match="corrupt"), ImageStore(path, 32, writable=False) as store:
        store._require_open()


def test_what_only_writing_meets_is_found_before(tmp_path: Path) -> None:
    """Three bytes of a store that can be read, and on which HDF5 crashes as a row is added."""
    data = bytearray(TARGETS["feature-store"].seeds["small"])
    data[20], data[5544], data[5545] = 1, 255, 255
    path = tmp_path / "features.h5"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"features\.h5: corrupt"):
        hdf5.require_sound(path)
    path.write_bytes(TARGETS["feature-store"].seeds["small"])
    hdf5.require_sound(path)
    assert path.read_bytes() == TARGETS["feature-store"].seeds["small"]


def test_numbers_stored_with_fewer_bits_are_refused(tmp_path: Path) -> None:
    """NumPy calls them float32, and what is added would come back rounded."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(31, 23, 8, 0, 22)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((2, 3), (h5py.h5s.UNLIMITED, 3))
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_chunk((2, 3))
        h5py.h5d.create(file.id, b"data", kind, space, create)
        file.create_dataset("index", (2,), np.int64, maxshape=(None,))
        with pytest.raises(growing.Corrupt, match="/data is stored as another type than float32"):
            growing.tables(file, file["data"].dtype, 2, np.dtype(np.int64))
