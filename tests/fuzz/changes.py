"""Changes to the structure of files: HDF5's, zip's, tar's, safetensors' and pickles' lengths, addresses, names, sums and
opcodes.

Each changes a file in place, with a random generator, as those of images do (`benchmarks.mutations`). What a reader of the form
checks first is made right again where that takes no more than a sum, so that changes reach the code behind it.
"""

from __future__ import annotations

import json
import random
import struct
import tarfile
import zlib
from collections.abc import Mapping

from benchmarks.mutations import Change

#: Numbers at which sizes and addresses go wrong.
ODD = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32,
       1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip

Files = Mapping[str, bytes]


def _number(rng: random.Random, width: int, before: int) -> bytes:
    """An odd number, or one near to what was there, in so many bytes."""
    value = rng.choice(
        (*ODD, before + 1, before - 1, before * 2, before ^ (1 << rng.randrange(8 * width)), before << 8)
    )
    return (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def put_number(data: bytearray, at: int, width: int, rng: random.Random) -> None:
    """An odd little-endian number in the place of the one at `at`."""
    if 0 <= at and at + width <= len(data):
        data[at : at + width] = _number(rng, width, int.from_bytes(data[at : at + width], "little"))


def _places(data: bytes, *marks: bytes) -> list[int]:
    found = []
    for mark in marks:
        at = data.find(mark)
        while at >= 0:
            found.append(at)
            at = data.find(mark, at + 1)
    return found


# HDF5 -----------------------------------------------------------------------------------------------------------------

_HDF5 = (b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"BTHD", b"BTLF")
_BLOCK = 64  # bytes behind a mark among which a field is looked for


def _hdf5_field(data: bytearray, rng: random.Random, files: Files) -> None:
    """A field behind one of the marks of HDF5's structures."""
    if places := _places(data, *_HDF5):
        width = rng.choice((1, 1, 2, 4, 8, 8))
        put_number(data, rng.choice(places) + 4 + rng.randrange(_BLOCK), width, rng)
        _sums(data)


def _hdf5_header(data: bytearray, rng: random.Random, files: Files) -> None:
    """A field of an object's header, which has no mark in older files: it begins with version 1, and 8-byte aligned. Behind it
    come messages: kind, size, flags, and what they say: shapes, types, layouts, filters, fill values, attributes, links."""
    starts = [
        at for at in range(0, len(data) - 16, 8)
        if data[at] == 1 and data[at + 1] == 0 and 0 < data[at + 2] < 64 and data[at + 3] == 0 and data[at + 4] in (1, 2)
    ] + _places(data, b"OHDR")  # fmt: skip
    if starts:
        start = rng.choice(starts)
        size = int.from_bytes(data[start + 8 : start + 12], "little") if data[start] == 1 else 256
        for _ in range(rng.choice((1, 1, 2))):
            width = rng.choice((1, 1, 1, 2, 4, 8))
            put_number(data, start + rng.randrange(max(16 + min(size, 1024) - width, 1)), width, rng)
        _sums(data)


def _hdf5_message(data: bytearray, rng: random.Random, files: Files) -> None:
    """A header's message replaced by another of the file, of whatever kind."""
    starts = [
        at for at in range(16, len(data) - 24, 8) if 0 < data[at] < 0x18 and not data[at + 1] and data[at + 2] % 8 == 0
    ]
    if len(starts) > 1:
        one, other = rng.choice(starts), rng.choice(starts)
        size = 8 + int.from_bytes(data[other + 2 : other + 4], "little")
        piece = bytes(data[other : other + min(size, 128)])
        data[one : one + len(piece)] = piece


def _sums(data: bytearray) -> None:
    """The sums of newer headers made right."""
    if data[8:9] in (b"\2", b"\3") and len(data) >= 48:
        struct.pack_into("<I", data, 44, lookup3(bytes(data[:44])))
    for start in _places(data, b"OHDR"):
        flags = data[start + 5] if start + 5 < len(data) else 0
        at = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        end = at + width + int.from_bytes(data[at : at + width], "little")
        if end + 4 <= len(data) and end - start < 1 << 16:
            struct.pack_into("<I", data, end, lookup3(bytes(data[start:end])))


def lookup3(key: bytes) -> int:
    """Bob Jenkins' hash, with which HDF5's metadata is checked: http://burtleburtle.net/bob/c/lookup3.c (hashlittle, from
    0)."""
    mask = 0xFFFFFFFF

    def rot(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & mask

    a = b = c = (0xDEADBEEF + len(key)) & mask
    if not key:
        return c
    whole = (len(key) - 1) // 12 * 12  # the last block, full or not, is mixed otherwise
    words = struct.unpack(f"<{whole // 4}I", key[:whole])
    for i in range(0, len(words), 3):
        a, b, c = (a + words[i]) & mask, (b + words[i + 1]) & mask, (c + words[i + 2]) & mask
        a = (a - c) & mask ^ rot(c, 4)
        c = (c + b) & mask
        b = (b - a) & mask ^ rot(a, 6)
        a = (a + c) & mask
        c = (c - b) & mask ^ rot(b, 8)
        b = (b + a) & mask
        a = (a - c) & mask ^ rot(c, 16)
        c = (c + b) & mask
        b = (b - a) & mask ^ rot(a, 19)
        a = (a + c) & mask
        c = (c - b) & mask ^ rot(b, 4)
        b = (b + a) & mask
    one, two, three = struct.unpack("<3I", key[whole:].ljust(12, b"\0"))
    a, b, c = (a + one) & mask, (b + two) & mask, (c + three) & mask
    for first, second, k in (
        ("c", "b", 14),
        ("a", "c", 11),
        ("b", "a", 25),
        ("c", "b", 16),
        ("a", "c", 4),
        ("b", "a", 14),
        ("c", "b", 24),
    ):
        value = {"a": a, "b": b, "c": c}
        new = ((value[first] ^ value[second]) - rot(value[second], k)) & mask
        a, b, c = (new if first == name else value[name] for name in "abc")
    return c


HDF5: dict[str, Change] = {
    "HDF5 field": _hdf5_field,
    "HDF5 header": _hdf5_header,
    "HDF5 message": _hdf5_message,
}

# zip ------------------------------------------------------------------------------------------------------------------

_LOCAL = {4: 2, 6: 2, 8: 2, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2}
_CENTRAL = {4: 2, 6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 34: 2, 42: 4}
_END = {8: 2, 10: 2, 12: 4, 16: 4, 20: 2}


def _zip_field(data: bytearray, rng: random.Random, files: Files) -> None:
    """A version, flag, method, sum, size, offset or length in one of zip's headers."""
    places = [(at, _LOCAL) for at in _places(data, b"PK\3\4")] + [(at, _CENTRAL) for at in _places(data, b"PK\1\2")]
    places += [(at, _END) for at in _places(data, b"PK\5\6")]
    if places:
        at, fields = rng.choice(places)
        offset, width = rng.choice(sorted(fields.items()))
        put_number(data, at + offset, width, rng)


def _zip_sums(data: bytearray, rng: random.Random, files: Files) -> None:
    """A byte of what a stored member holds, half of them near its beginning, its sum made right in both of its headers."""
    entries = _places(data, b"PK\1\2")
    if not entries:
        return
    at = rng.choice(entries)
    size, name, _, local = _unpacked(data, at)
    start = local + 30 + name + int.from_bytes(data[local + 28 : local + 30], "little")
    if not size or data[at + 10] or start + size > len(data):
        return
    for _ in range(rng.choice((1, 1, 2, 8))):
        near = min(size, 128) if rng.randrange(2) else size
        place = start + rng.randrange(near)
        if rng.randrange(2):
            data[place] = rng.randrange(256)
        else:
            put_number(data, place, min(4, start + size - place), rng)
    total = struct.pack("<I", zlib.crc32(data[start : start + size]))
    data[at + 16 : at + 20] = total
    data[local + 14 : local + 18] = total


def _unpacked(data: bytearray, at: int) -> tuple[int, int, int, int]:
    """(size, length of the name, method, offset of the local header) of a central header."""
    size, name = struct.unpack_from("<IH", data, at + 24) if at + 46 <= len(data) else (0, 0)
    method, local = data[at + 10] if at + 46 <= len(data) else 0, int.from_bytes(data[at + 42 : at + 46], "little")
    return size, name, method, local


ZIP: dict[str, Change] = {"zip field": _zip_field, "zip member": _zip_sums}

# pickles --------------------------------------------------------------------------------------------------------------

# Opcodes with what makes them dangerous: names, calls, long texts, deep nesting, memos of any number, sets, buffers.
_OPCODES = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"R", b"b",
    b"Q", b"u", b"s",
    b"e", b"a", b"(", b"t", b"d", b"l", b"}", b"]", b")", b"0", b"1", b"2", b"N", b"\x88", b"\x8f", b"\x90", b"\x91", b"\x92",
    b"\x93", b"\x94", b"\x95" + b"\xff" * 8, b"\x8a\xff", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 7 + b"\x0f",
    b"X\xff\xff\xff\x7f", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x0f", b"r\xff\xff\xff\x07", b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"p99999999\n", b"g7\n", b"I" + b"9" * 5000 + b"\n", b"L" + b"9" * 5000 + b"L\n", b"F1e999\n", b"\x82\x01",
    b"P7\n", b"S'x'\n",
    b"V\\ud800\n", b"\x85" * 1000, b"]" * 1000, b"\x85" * 200_000, b"(" * 1000, b"K\x01" + b"\x86" * 50, b"2" * 100,
    b"2\x86" * 60, b"\x80\x05", b".", b"\x96\xff\xff\xff\x7f\0\0\0\0", b"\x97", b"\x98",
)  # fmt: skip


def _pickle_opcode(data: bytearray, rng: random.Random, files: Files) -> None:
    """An opcode put in, in a zip with the member's sizes and sums as they were: of a row of pickles it shifts the rest."""
    start = data.find(b"\x80\x02")
    end = data.find(b"PK", start + 2) if data[:2] == b"PK" else len(data)
    if 0 <= start < end:
        piece = rng.choice(_OPCODES)
        at = rng.randrange(start + 2, max(end, start + 3))
        data[at : at + (len(piece) if rng.randrange(2) else 0)] = piece


def _zip_again(data: bytearray, rng: random.Random, files: Files) -> None:
    """An opcode put into data.pkl, and the zip file made anew around it."""
    import io
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # what was changed before may be no zip file any more
        return _pickle_opcode(data, rng, files)
    name = next((name for name in members if name.endswith("data.pkl")), None)
    if name is None:
        return None
    inner = bytearray(members[name])
    _pickle_opcode(inner, rng, files)
    members[name] = bytes(inner)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    data[:] = made.getvalue()
    return None


PICKLE: dict[str, Change] = {"pickle opcode": _pickle_opcode, "pickle opcode, zipped again": _zip_again}

# tar ------------------------------------------------------------------------------------------------------------------

_TAR = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "time": (136, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
}
_TEXTS = (
    b"/etc/passwd", b"../../x.jpg", b"x.jpg\0y", b"\xff.jpg", b"a/" * 49, b"0", b"-1", b"77777777777", b"\x80" + b"\xff" * 11,
    b"\xff" * 12, b"\x80" + b"\0" * 6 + b"\x01\0\0\0\0", b"99999999999", b"        ", b"ustar  \0", b"GNUtar ",
)  # fmt: skip
_TYPES = b"01234567LKxgSNVX\0DMA"


def _tar_field(data: bytearray, rng: random.Random, files: Files) -> None:
    """A field of a member's header, its sum made right."""
    heads = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return
    at = rng.choice(heads)
    name, (offset, width) = rng.choice(sorted(_TAR.items()))
    if name == "type":
        value = bytes([rng.choice(_TYPES)])
    elif rng.randrange(2):
        value = rng.choice(_TEXTS)
    else:
        value = f"{rng.choice(ODD):o}".encode()[:width]
    data[at + offset : at + offset + width] = value[:width].ljust(width, b"\0")
    _tar_sum(data, at)


def _tar_sparse(data: bytearray, rng: random.Random, files: Files) -> None:
    """A member made sparse: pieces here and there of a file said to be large."""
    heads = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if heads:
        at = rng.choice(heads)
        data[at + 156] = ord("S")
        for place in range(386, 482, 12):
            data[at + place : at + place + 12] = f"{rng.choice(ODD) & 0o77777777777:011o}\0".encode()
        data[at + 482] = rng.randrange(2)
        data[at + 483 : at + 495] = f"{rng.choice(ODD) & 0o77777777777:011o}\0".encode()
        _tar_sum(data, at)


def _tar_pax(data: bytearray, rng: random.Random, files: Files) -> None:
    """A header of pax put before a member, with a record that says something odd."""
    key = rng.choice(
        (
            "size",
            "path",
            "linkpath",
            "GNU.sparse.size",
            "GNU.sparse.map",
            "GNU.sparse.major",
            "mtime",
            "hdrcharset",
            "uid",
        )
    )
    value = rng.choice(
        ("0", "-1", str(rng.choice(ODD)), "9" * 5000, "x.jpg", "/etc/passwd", "1,2,3", "\u00fc", "nan", "1e999")
    )
    record = f" {key}={value}\n".encode()
    length = len(record) + len(str(len(record) + 4))
    body = str(rng.choice((length, length, length, 5, 10**9, -3))).encode() + record
    member = tarfile.TarInfo("pax")
    member.type, member.size = rng.choice((b"x", b"g", b"L")), rng.choice((len(body), len(body), 1 << 32, 1 << 60))
    head = member.tobuf(tarfile.GNU_FORMAT)
    at = rng.randrange(0, len(data) + 1, 512)
    data[at:at] = head + body.ljust(-(-len(body) // 512) * 512, b"\0")


def _tar_sum(data: bytearray, at: int) -> None:
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()


TAR: dict[str, Change] = {"tar field": _tar_field, "tar sparse": _tar_sparse, "pax header": _tar_pax}

# safetensors ----------------------------------------------------------------------------------------------------------

_SHAPES = (
    [],
    [0],
    [-1],
    [1 << 40],
    [1 << 63, 1 << 63],
    [0, 1 << 62],
    [True],
    ["3"],
    [3.0],
    None,
    "333",
    [[3]],
    [1] * 70,
    {},
)


def _safetensors_header(data: bytearray, rng: random.Random, files: Files) -> None:
    """An entry's shape, dtype or offsets, or another name for it; the header's length is made right."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(bytes(data[8 : 8 + size]))
        name = rng.choice(sorted(header))
        entry = header[name]
        match rng.randrange(7):
            case 0:
                entry["shape"] = rng.choice(_SHAPES)
            case 1:
                entry["dtype"] = rng.choice(
                    ("F32", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "", None, 3, ["F32"])
                )
            case 2:
                entry["data_offsets"] = rng.choice(
                    ([0, 0], [-4, 0], [0, 1 << 63], [1.0, 2.0], ["0", "4"], [0], [0, 4, 8], None, {})
                )
            case 3:
                entry["data_offsets"][rng.randrange(2)] += rng.choice((-4, -1, 1, 4, 1 << 40))
            case 4:
                header[rng.choice(("", "\0", "\ud800", "__metadata__", "conv1_1.weight", "x" * 9000))] = header.pop(
                    name
                )
            case 5:
                header["__metadata__"] = rng.choice(
                    ([], "x", {"a": 1}, {"format": "pycap-vgg"}, {"save_id": []}, None, {"a": {"b": {}}})
                )
            case _:
                header[name] = rng.choice((None, [], {}, "x", 7, {"shape": [], "dtype": "F32", "data_offsets": [0, 4]}))
        text = json.dumps(header, separators=(",", ":")).encode()
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ):  # what was changed before broke the header
        put_number(data, 0, min(8, len(data)), rng)
        return
    if rng.randrange(12) == 0:
        text = rng.choice(
            (
                b"[" * 100_000,
                b'{"a":' * 100_000,
                b'{"a":' + b"9" * 5000 + b"}",
                b"\xff" + text,
                text + b" " * 7,
                b"{}",
                b"null",
            )
        )
    data[: 8 + size] = struct.pack("<Q", len(text)) + text


SAFETENSORS: dict[str, Change] = {"safetensors header": _safetensors_header}
