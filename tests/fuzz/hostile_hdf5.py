"""HDF5 files that are sound as such, and say what no file of pycap's or Keras' does: links out of it, huge shapes, bombs."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import h5py
import numpy as np

#: Bytes that the bombs say that they unpack to: more than any reader may take.
HUGE = 1 << 33


def edited(data: bytes, change: Callable[[h5py.File], None]) -> bytes:
    """A file after a change by h5py."""
    memory = io.BytesIO(data)
    with h5py.File(memory, "r+") as file:
        change(file)
    return memory.getvalue()


def hostile(data: bytes, names: tuple[str, ...]) -> Mapping[str, bytes]:
    """By what is wrong with it, the file with one of its datasets replaced."""

    def replaced(name: str, make: Callable[[h5py.File, str], None]) -> bytes:
        def change(file: h5py.File) -> None:
            del file[name]
            make(file, name)

        return edited(data, change)

    def bomb(file: h5py.File, name: str) -> None:
        made = file.create_dataset(name, (HUGE,), np.uint8, chunks=(1 << 22,), compression="gzip", compression_opts=9)
        made.id.write_direct_chunk((0,), _zeros(1 << 22))

    def one_chunk(file: h5py.File, name: str) -> None:
        made = file.create_dataset(name, (1 << 31,), np.uint8, chunks=(1 << 31,), compression="gzip")
        made.id.write_direct_chunk((0,), _zeros(1 << 22))

    makers: dict[str, Callable[[h5py.File, str], None]] = {
        "external link": lambda file, name: file.__setitem__(name, h5py.ExternalLink("/etc/passwd", "/x")),
        "link to itself": lambda file, name: file.__setitem__(name, h5py.SoftLink(f"/{name}")),
        "external data": lambda file, name: file.create_dataset(
            name, (16,), np.uint8, external=[("/etc/passwd", 0, 16)]
        ) and None,
        "virtual": _virtual,
        "no data": lambda file, name: file.create_dataset(name, (HUGE,), np.uint8, chunks=(1 << 20,)) and None,
        "no data, contiguous": lambda file, name: file.create_dataset(name, (1 << 20, 1 << 20), np.float32) and None,
        "bomb": bomb,
        "bomb of one chunk": one_chunk,
        "references": lambda file, name: file.create_dataset(name, data=np.array([file.ref] * 3, h5py.ref_dtype)) and None,
        "texts": lambda file, name: file.create_dataset(name, data=["a", "b" * 999], dtype=h5py.string_dtype()) and None,
        "empty": lambda file, name: file.create_dataset(name, data=h5py.Empty("f4")) and None,
        "group": lambda file, name: file.create_group(name) and None,
        "a ring": lambda file, name: file.__setitem__(name, file["/"]),
        "complex": lambda file, name: file.create_dataset(name, data=np.zeros((3, 3), np.complex128)) and None,
        "not aligned": lambda file, name: file.create_dataset(name, data=np.zeros(3, [("a", "i1"), ("b", "f8",
        (3,))])) and None,
        "named type": lambda file, name: file.__setitem__(name, np.dtype("f4")),
    }  # fmt: skip
    return {f"{name}: {what}": replaced(name, make) for name in names for what, make in makers.items()}


def _virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((16,), np.uint8)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (16,))
    file.create_virtual_dataset(name, layout)


def _zeros(size: int) -> bytes:
    import zlib

    return zlib.compress(bytes(size), 9)
