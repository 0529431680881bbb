"""tensorfile: what the safetensors library wrote is mapped as it stands, and what it would not read is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pycap.tensorfile import TensorFileError, map_arrays


def write(path: Path, header: object, data: bytes = b"", size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_arrays_and_metadata_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.standard_normal((3, 5), np.float32),
        "odd": rng.standard_normal(7, np.float32),
        "number": np.array(2.5),
        "none": np.empty((0, 4), np.float32),
        "half": rng.standard_normal(3).astype(np.float16),
        "ids": np.arange(5),
        "bytes": np.arange(3, dtype=np.uint8),
        "flags": np.array([True, False]),
    }
    save_file(arrays, tmp_path / "a", metadata={"save_id": "x"})
    found, metadata = map_arrays(tmp_path / "a")
    assert metadata == {"save_id": "x"}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].flags.aligned and found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name], array)


def test_writing_stays_in_memory(tmp_path: Path) -> None:
    save_file({"a": np.zeros(4096, np.float32)}, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    mine, others = map_arrays(tmp_path / "a")[0]["a"], map_arrays(tmp_path / "a")[0]["a"]
    mine += 1
    assert (mine == 1).all() and (others == 0).all()
    assert (tmp_path / "a").read_bytes() == before


def test_the_file_may_be_deleted(tmp_path: Path) -> None:
    save_file({"a": np.arange(4096, dtype=np.float32)}, tmp_path / "a")
    array = map_arrays(tmp_path / "a")[0]["a"]
    (tmp_path / "a").unlink()
    np.testing.assert_array_equal(array, np.arange(4096))


def test_arrays_that_lie_askew_are_copied(tmp_path: Path) -> None:
    value = np.array([1.5, -2.0], np.float32)
    header = json.dumps({"a": entry(0, 8, [2])}).encode()
    header += b" " * ((1 - len(header)) % 8)  # the data begins one byte off
    array = map_arrays(write(tmp_path / "a", header, value.tobytes()))[0]["a"]
    assert array.flags.aligned
    np.testing.assert_array_equal(array, value)


@pytest.mark.parametrize(
    ("header", "data", "size", "message"),
    [
        (b"{}", b"", 3, "ends at byte 11 of 10"),
        (b"{}" + b" " * (1 << 20), b"", None, "header has 1048578 bytes, and at most 1048576 are read"),
        (b"{}", b"", 1 << 62, "ends at byte"),
        (b"[]", b"", None, "no safetensors header"),
        (b"{nonsense", b"", None, "no safetensors header"),
        ({"a": [1]}, b"", None, "no safetensors header"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"1234", None, "no safetensors header .*data_offsets"),
        ({"a": entry(0, 4, [1], "F4")}, b"1234", None, "a is of dtype F4"),
        ({"a": entry(0, 4, [2])}, b"1234", None, "a, F32 .2,., is said to lie in bytes 0 to 4"),
        ({"a": entry(0, 4, [-1, -1])}, b"1234", None, "a has the shape .-1, -1., not whole numbers from 0"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"1" * 12, None, "b, .*bytes 8 to 12, after 4"),
        ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, b"1234", None, "b, .*bytes 0 to 4, after 4"),
        ({"a": entry(0, 4, [1])}, b"123", None, "take 4 bytes, and it holds 3"),
        ({"a": entry(0, 4, [1])}, b"12345", None, "take 4 bytes, and it holds 5"),
    ],
)
def test_refuses(tmp_path: Path, header: object, data: bytes, size: int | None, message: str) -> None:
    with pytest.raises(TensorFileError, match=message):
        map_arrays(write(tmp_path / "a", header, data, size))


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_refuses_files_without_a_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(TensorFileError, match="its header"):
        map_arrays(tmp_path / "a")
