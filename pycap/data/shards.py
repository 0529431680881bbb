"""Images in tar archives, as WebDataset's shards hold them: read in their order, nothing is unpacked to disk."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial

from pycap.data.images import ImageError
from pycap.data.items import Reference, failure
from pycap.data.layout import is_image_name

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_BYTES = (
    1 << 29
)  # of a member, which is held in memory; the largest image that is decoded, uncompressed, has half of it
_MOST_HEADER = 1 << 20  # of bytes that say what the next member is called, and the like
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
_GZIP = b"\x1f\x8b"
# What reading an archive raises on bytes that are not what they should be.
_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, LookupError, OverflowError, RecursionError)


def is_compressed(path: str) -> bool:
    """Whether an archive is compressed, whatever its name says; False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_GZIP)) == _GZIP
    except OSError:
        return False


def images_in(path: str) -> Iterator[Reference]:
    """The images of an archive, named PATH/MEMBER, in the archive's order: other members, folders and hidden files are left
    out, and so are leading slashes and `..` in the names. Links and devices are images that cannot be read.

    Of a damaged archive comes what can be read, and then an item of the archive's own name that says where the damage is. An
    archive that is not there is such an item.
    """
    at, images = 0, 0
    try:
        with open(path, "rb") as raw, gzip.GzipFile(fileobj=raw) if is_compressed(path) else raw as stream:
            # Reads the first header, and so tells what is no archive.
            archive = tarfile.TarFile(path, fileobj=stream, tarinfo=_Member)
            archive.offset = 0
            while True:
                at = archive.offset
                member = _next(archive, stream)
                if member is None:
                    return
                name = "/".join(part for part in member.name.split("/") if part not in ("", ".", ".."))
                if is_image_name(os.path.basename(name)) and not member.isdir():
                    images += 1
                    whole = f"{path}/{name}"
                    yield Reference(whole, partial(_load, archive, member, whole))
    except FileNotFoundError:
        yield failure(path, "no such file")
    except _ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        where = f"at byte {at:,}{' of what it unpacks to' if is_compressed(path) else ''}, after {images:,} images"
        yield failure(path, f"the archive is corrupt or cut short {where} ({reason}); fetch it again")


class _Member(tarfile.TarInfo):
    """A header, which may have headers before it: of long names, or with any keys. These are read as a whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]


def _next(archive: tarfile.TarFile, stream: gzip.GzipFile | io.BufferedReader) -> tarfile.TarInfo | None:
    """The next member's header; None at the archive's end. Raises _ERRORS.

    `TarFile.next` takes a broken header for the archive's end, and keeps every header.
    """
    at = archive.offset
    stream.seek(at)
    try:
        member = _Member.fromtarfile(archive)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        while stream.read(1 << 20):  # what follows is padding; a compressed archive is checked at its end
            pass
        return None
    except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
        raise tarfile.ReadError("its end is missing") from error
    if archive.offset <= at:
        raise tarfile.ReadError("a member of negative size")
    return member


def _load(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes | ImageError:
    """A member's bytes, or why there are none."""
    if not member.isreg():
        return ImageError(name, "a link or a device, not an image; what a link in an archive points at is not followed")
    if member.issparse():  # a few bytes of such stand for any number of zeros
        return ImageError(
            name, "stored in pieces with holes between, as no image is; make the archive without --sparse"
        )
    if member.size > MAX_BYTES:
        return ImageError(name, f"{member.size:,} bytes are more than {MAX_BYTES:,}; shrink the image first")
    try:
        with archive.extractfile(member) as file:  # type: ignore[union-attr]
            data = file.read()
    except _ERRORS as error:
        return ImageError(name, f"cannot be read from its archive ({error})")
    if len(data) != member.size:
        return ImageError(name, f"cut short: its archive ends after {len(data):,} of its {member.size:,} bytes")
    return data
