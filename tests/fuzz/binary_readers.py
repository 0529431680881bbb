"""The readers of binary files: images, tar archives, HDF5 stores, weights in every form, checkpoints."""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.mutations import SIDE
from benchmarks.mutations import seeds as images
from pycap.data import Example, shards
from pycap.data.features import FeatureStore, Origin
from pycap.data.images import FORMATS, PreprocessSpec, decode_image, image_format, preview
from pycap.data.inputs import find
from pycap.data.items import Item, read_ahead
from pycap.data.store import ImageStore
from tests.fuzz import changes
from tests.fuzz.hostile_hdf5 import edited, hostile
from tests.fuzz.target import BINARY_MIB, Target, require

#: An image of 80 million pixels takes 240 MB as RGB, beside what its decoder holds.
IMAGE_MIB = 640
#: Of a member `shards.MAX_BYTES`, and as much again while it is unpacked.
ARCHIVE_MIB = 2 * shards.MAX_BYTES // 2**20 + 64


def made(write: Callable[[Path], object]) -> bytes:
    """What a writer writes into a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made"
        write(path)
        return next(each for each in sorted(Path(folder).iterdir())).read_bytes()


# Images ---------------------------------------------------------------------------------------------------------------


def _image_read(folder: Path) -> tuple[np.ndarray, bytes, str]:
    path = folder / "image"
    return decode_image(path, 32), preview(path, 48), image_format(path)


def _sound_image(found: tuple[np.ndarray, bytes, str]) -> None:
    pixels, small, form = found
    require(pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8, f"pixels {pixels.shape} of {pixels.dtype}")
    require(decode_image(small, 16).shape == (16, 16, 3), "a preview that is no image")
    require(form in FORMATS, f"the format {form}")


def _more_images() -> Mapping[str, bytes]:
    """Those of the service's test, and the formats that only files come in."""
    from PIL import Image

    scene = Image.open(io.BytesIO(images()["plain.png"])).convert("RGB")
    found = dict(images())
    for name, form, image, how in (
        ("plain.tiff", "TIFF", scene, {}),
        ("packed.tiff", "TIFF", scene, {"compression": "tiff_adobe_deflate"}),
        ("fax.tiff", "TIFF", scene.convert("1"), {"compression": "group4"}),
        ("plain.ppm", "PPM", scene, {}),
        ("deep.ppm", "PPM", Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)), {}),
    ):
        file = io.BytesIO()
        image.save(file, form, **how)  # type: ignore[arg-type]
        found[name] = file.getvalue()
    require(scene.width == SIDE, "the seeds' size")
    return found


# Archives -------------------------------------------------------------------------------------------------------------

_MEMBERS = ("00.jpg", "a/01.jpg", "a/01.txt", "b/é.png", "n" * 120 + ".jpg")


def _tar(form: int, names: Iterable[str] = _MEMBERS) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            data = images()["plain.jpeg"]
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo("link.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return file.getvalue()


def _tar_seeds() -> Mapping[str, bytes]:
    return {
        "gnu": _tar(tarfile.GNU_FORMAT),
        "pax": _tar(tarfile.PAX_FORMAT),
        "ustar": _tar(tarfile.USTAR_FORMAT, _MEMBERS[:4]),
    }


def _tgz_seeds() -> Mapping[str, bytes]:
    return {
        "gnu": gzip.compress(_tar(tarfile.GNU_FORMAT), 6, mtime=0),
        "twice": gzip.compress(b"", mtime=0) * 2 + gzip.compress(_tar(tarfile.GNU_FORMAT), 1, mtime=0),
    }


def _again(data: bytearray, rng: Any, files: Mapping[str, bytes]) -> None:
    """A change to what is compressed."""
    try:
        inner = bytearray(gzip.decompress(bytes(data)))
    except (OSError, EOFError, ValueError, __import__("zlib").error):  # changed before: no gzip any more
        return
    rng.choice(list(changes.TAR.values()))(inner, rng, files)
    data[:] = gzip.compress(bytes(inner), 1, mtime=0)


def _archive_read(name: str) -> Callable[[Path], list[Any]]:
    def read(folder: Path) -> list[Any]:
        items = find([folder / name])
        names = [item.name for item in items]
        items.count()
        for batch in read_ahead(items, (16,), 3, 0):
            for error in batch.errors:
                require(error is None or name in str(error), f"an error without the archive's name: {error}")
        require(all(str(folder / name) in each for each in names), f"names {names}")
        require(not any(".." in Path(each).parts for each in names), f"names that lead out: {names}")
        return names

    return read


def _archive_same(seed: str, names: list[str]) -> None:
    count = {"ustar": 6}.get(seed, 7)
    require(len(names) == count, f"{seed}: {len(names)} items, wanted are {count}")


# Stores ---------------------------------------------------------------------------------------------------------------

_ORIGIN = Origin("vgg16", "ab" * 32, PreprocessSpec(), 6)
_VECTORS = np.arange(24, dtype=np.float32).reshape(4, 6)


def _examples(folder: Path) -> list[Example]:
    """Images whose size and time are always the same: the stores' keys are made of these."""
    import os

    found = []
    for i in range(4):
        path = folder / f"im{i}.jpg"
        if not path.exists():
            path.write_bytes(images()["plain.jpeg"])
            os.utime(path, ns=(1_700_000_000_000_000_000,) * 2)
        found.append(Example(i, path.name, path, ("a cat",)))
    return found


def _new(folder: Path) -> Example:
    """One that no store has."""
    (folder / "new.jpg").write_bytes(b"new")
    return Example(9, "new.jpg", folder / "new.jpg", ("a cat",))


def _small(data: bytes) -> bytes:
    """The same file with small chunks: most of it is what HDF5 says of the data then, not the data."""

    def change(file: h5py.File) -> None:
        for name in ("data", "index"):
            values, old = file[name][:], file[name]
            chunks = tuple(min(n, 512) for n in old.shape)
            del file[name]
            file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=chunks)

    return made(lambda path: _copied(edited(data, change), path))


def _copied(data: bytes, path: Path) -> None:
    """What can be reached in a file, in a new one."""
    with h5py.File(io.BytesIO(data), "r") as file, h5py.File(path, "w") as new:
        for name in file:
            file.copy(file[name], new, name)
        for name, value in file.attrs.items():
            new.attrs[name] = value


@cache
def _image_store() -> bytes:
    def write(path: Path) -> None:
        with ImageStore(path, 32) as store:
            for example in _examples(path.parent.parent):
                store.put(example, images()["grey.jpeg"])

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "store").mkdir()
        write(Path(folder) / "store/made.h5")
        return (Path(folder) / "store/made.h5").read_bytes()


@cache
def _feature_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.h5"
        with FeatureStore(path, _ORIGIN) as store:
            store.add(_examples(Path(folder)), _VECTORS)
        return path.read_bytes()


def _newer(data: bytes) -> bytes:
    """In the newest form of HDF5, whose headers have sums."""

    def write(path: Path) -> None:
        with h5py.File(io.BytesIO(data), "r") as file, h5py.File(path, "w", libver="latest") as new:
            for name in file:
                new.create_dataset(
                    name, data=file[name][:], maxshape=(None, *file[name].shape[1:]), chunks=file[name].chunks
                )
            for name, value in file.attrs.items():
                new.attrs[name] = value

    return made(write)


def _store_seeds(whole: Callable[[], bytes]) -> Callable[[], Mapping[str, bytes]]:
    def seeds() -> Mapping[str, bytes]:
        small = _small(whole())
        return {"whole": whole(), "small": small, "newer": _newer(small)}

    return seeds


def _store_hostile(whole: Callable[[], bytes]) -> Callable[[], Mapping[str, bytes]]:
    return lambda: hostile(_small(whole()), ("data", "index"))


def _image_store_read(folder: Path) -> tuple[list[Item], int, list[bytes | None]]:
    """As `pycap caption` reads it, as training does, and continued."""
    path = folder / "store.h5"
    examples = _examples(folder)
    inputs = find([path])
    ((_, size),) = inputs.stores()
    found = []
    for item in inputs:
        require(path.name in item.name, f"the name {item.name!r}")
        if isinstance(item.source, bytes):
            require(len(item.source) < 1 << 20, f"an image of {len(item.source):,} bytes")
        found.append(item)
    got: list[bytes | None] = []
    for writable in (False, True):
        with ImageStore(path, 32, writable) as store:
            got += [store.get(example) for example in examples]
            if writable:
                new = _new(folder)
                store.put(new, b"new")
                store.flush()
                require(store.get(new) == b"new", "what was stored is not there")
    return found, size, got


def _image_store_same(seed: str, found: tuple[list[Item], int, list[bytes | None]]) -> None:
    items, size, got = found
    require(
        [item.source for item in items] == [images()["grey.jpeg"]] * 4 and size == 32, f"{seed}: {len(items)} items"
    )
    require(got == [images()["grey.jpeg"]] * 8, f"{seed}: what training reads")


def _stored_only(found: tuple[list[Item], int, list[bytes | None]]) -> None:
    require(all(each in (None, images()["grey.jpeg"]) for each in found[2]), "an image that was not stored")


def _feature_store_read(folder: Path) -> tuple[list[Item], list[np.ndarray]]:
    path = folder / "features.h5"
    examples = _examples(folder)
    inputs = find([path])
    ((_, origin),) = inputs.stores()
    require(isinstance(origin, Origin) and 0 < origin.size < 1 << 20, f"the origin {origin}")
    items = list(inputs)
    got = []
    for writable in (False, True):
        with FeatureStore(path, _ORIGIN, writable) as store:
            if not writable:
                store._require_open()
            absent = store.missing(examples)
            got += [store.get(example) for example in examples if example not in absent]
            if writable:
                new = _new(folder)
                store.add([new], _VECTORS[:1] + 1)
                require(bool((store.get(new) == _VECTORS[0] + 1).all()), "what was added is not there")
    return items, got


def _feature_store_same(seed: str, found: tuple[list[Item], list[np.ndarray]]) -> None:
    items, got = found
    require(np.array_equal(np.array([item.source for item in items]), _VECTORS), f"{seed}: {items}")
    require(np.array_equal(np.array(got), np.concatenate([_VECTORS] * 2)), f"{seed}: what training reads")


def _features_only(found: tuple[list[Item], list[np.ndarray]]) -> None:
    for vector in (*found[1], *(item.source for item in found[0] if isinstance(item.source, np.ndarray))):
        require(any(np.array_equal(vector, row) for row in _VECTORS), f"a vector that was not stored: {vector}")


BINARY = (
    Target("image", "image", _image_read, _more_images, "binary", check=_sound_image, memory_mib=IMAGE_MIB),
    Target("archive", "a.tar", _archive_read("a.tar"), _tar_seeds, "binary", same=_archive_same, structure=changes.TAR,
           memory_mib=ARCHIVE_MIB),
    Target("archive-gz", "a.tar.gz", _archive_read("a.tar.gz"), _tgz_seeds, "binary", same=_archive_same,
           structure={"tar, compressed again": _again}, memory_mib=ARCHIVE_MIB),
    Target("image-store", "store.h5", _image_store_read, _store_seeds(_image_store), "binary", check=_stored_only,
           same=_image_store_same, structure=changes.HDF5, memory_mib=BINARY_MIB, hostile=_store_hostile(_image_store)),
    Target("feature-store", "features.h5", _feature_store_read, _store_seeds(_feature_store), "binary", check=_features_only,
           same=_feature_store_same, structure=changes.HDF5, memory_mib=BINARY_MIB, hostile=_store_hostile(_feature_store)),
)  # fmt: skip
