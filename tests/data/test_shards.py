"""Images in tar archives: their order and names, and what is told of damage and of what does not belong in one."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pycap.data import shards
from pycap.data.images import ImageError
from pycap.data.inputs import find
from tests.data.fixtures import write_jpeg

CONTENTS = {f"{i:03}.jpg": bytes([i]) * (700 + i) for i in range(6)}


def write(path: Path, members: dict[str, bytes], mode: str = "w", form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, mode, format=form) as archive:
        for name, data in members.items():
            add(archive, name, data)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    archive.addfile(member, io.BytesIO(data))


def read(path: Path) -> dict[str, bytes | str]:
    """{name in the archive (empty: the archive itself): bytes, or why there are none}."""
    found: dict[str, bytes | str] = {}
    for name, source in find([path]):
        assert name.startswith(str(path)) and not isinstance(source, str)
        if isinstance(source, ImageError):
            assert source.file == name
        found[name[len(str(path)) + 1 :]] = source.reason if isinstance(source, ImageError) else source
    return found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".TGZ", "w:gz"), (".tar", "w:gz")])
def test_images_come_in_the_archives_order(tmp_path, suffix, mode, form):
    images = {"z.jpg": b"1" * 511, "a/b.PNG": b"2" * 512, "m.jpeg": b"", "l" * 90 + "/" + "n" * 90 + ".jpg": b"3" * 513}
    members = {}
    for name, data in images.items():
        members |= {name.rpartition(".")[0] + ".json": b"{}", name: data, name.rpartition(".")[0] + ".txt": b"a cat"}
    path = write(tmp_path / f"shard{suffix}", members, mode, form)
    assert list(read(path).items()) == list(images.items())
    inputs = find([path])
    assert inputs.count() == (None if mode == "w:gz" else 4)
    second = [reference.item() for reference in islice(inputs.references(), 1, None, 2)]
    assert [item.name for item in second] == [f"{path}/{name}" for name in list(images)[1::2]]
    assert [item.source for item in second] == list(images.values())[1::2]


def test_what_is_left_out_is_not_read(tmp_path, monkeypatch):
    path = write(tmp_path / "shard.tar", CONTENTS)
    load, loaded = shards._load, []

    def counted(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes | ImageError:
        loaded.append(member.name)
        return load(archive, member, name)

    monkeypatch.setattr(shards, "_load", counted)
    inputs = find([path])
    wanted = [each.item().source for each in inputs.references() if each.name.endswith(("3.jpg", "5.jpg"))]
    assert wanted == [CONTENTS["003.jpg"], CONTENTS["005.jpg"]]
    assert inputs.count() == 6 and loaded == ["003.jpg", "005.jpg"]


def test_names_stay_inside_the_archive(tmp_path):
    members = {
        "./a.jpg": b"1",
        "/etc/b.jpg": b"2",
        "../../c.jpg": b"3",
        "d/../e.jpg": b"4",
        "._f.jpg": b"5",
        "g/.h.jpg": b"6",
    }
    path = write(tmp_path / "shard.tar", members)
    assert read(path) == {"a.jpg": b"1", "etc/b.jpg": b"2", "c.jpg": b"3", "d/e.jpg": b"4"}
    assert sorted(tmp_path.iterdir()) == [path]


def test_links_and_devices_are_no_images(tmp_path):
    path = tmp_path / "shard.tar"
    kinds = {
        "s.jpg": (tarfile.SYMTYPE, "/etc/passwd"),
        "h.jpg": (tarfile.LNKTYPE, "a.jpg"),
        "d.jpg": (tarfile.CHRTYPE, ""),
        "f.jpg": (tarfile.FIFOTYPE, ""),
    }
    with tarfile.open(path, "w") as archive:
        add(archive, "a.jpg", b"1")
        add(archive, "folder.jpg", kind=tarfile.DIRTYPE)
        for name, (kind, link) in kinds.items():
            add(archive, name, kind=kind, link=link)
        add(archive, "z.jpg", b"2")
    found = read(path)
    assert list(found) == ["a.jpg", *kinds, "z.jpg"] and (found["a.jpg"], found["z.jpg"]) == (b"1", b"2")
    assert all("a link or a device" in str(found[name]) for name in kinds)


def test_a_member_too_large_for_memory_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_BYTES", 703)
    found = read(write(tmp_path / "shard.tar", CONTENTS))
    assert (
        found["003.jpg"] == CONTENTS["003.jpg"]
        and found["005.jpg"] == "705 bytes are more than 703; shrink the image first"
    )


# -- damage -----------------------------------------------------------------------------------------------------------

# Of CONTENTS in an archive: a header of 512 bytes, then 1,024 of data, six times; then zeros.
STEP = 512 + 1024


@pytest.mark.parametrize(
    ("cut", "images", "partial", "at"),
    [
        (STEP * 2 + 512 + 100, 2, "002.jpg", 3 * STEP),  # in an image
        (STEP * 2 + 512, 2, "002.jpg", 3 * STEP),  # behind a header
        (STEP * 2 + 200, 2, "", 2 * STEP),  # in a header
        (STEP * 2, 2, "", 2 * STEP),  # between two
        (STEP * 6, 6, "", 6 * STEP),  # only the end is missing
        (512 + 200, 0, "000.jpg", STEP),
    ],
)
def test_an_archive_that_is_cut_short_gives_what_it_has(tmp_path, cut, images, partial, at):
    path = write(tmp_path / "shard.tar", CONTENTS)
    path.write_bytes(path.read_bytes()[:cut])
    found = read(path)
    whole = {name: data for name, data in found.items() if isinstance(data, bytes)}
    assert whole == dict(list(CONTENTS.items())[:images])
    assert list(found)[images:] == [*([partial] if partial else []), ""]
    if partial:
        assert "cut" in str(found[partial]) or "unexpected end" in str(found[partial])
    seen = images + bool(partial)
    why = f"at byte {at:,}, after {seen} images (its end is missing)"
    assert found[""] == f"the archive is corrupt or cut short {why}; fetch it again"
    assert [reference.name for reference in find([path]).references()] == [item.name for item in find([path])]
    assert find([path]).count() == len(found)


def test_a_corrupt_header_is_not_the_archives_end(tmp_path):
    path = write(tmp_path / "shard.tar", CONTENTS)
    data = bytearray(path.read_bytes())
    data[4 * STEP + 3] ^= 1  # a name: the checksum is of another
    path.write_bytes(data)
    found = read(path)
    assert list(found) == ["000.jpg", "001.jpg", "002.jpg", "003.jpg", ""]
    assert f"at byte {4 * STEP:,}, after 4 images (bad checksum)" in str(found[""])


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_compressed_archive_that_is_cut_short_gives_what_it_has(tmp_path, keep):
    noise = {name: np.random.default_rng(i).bytes(16_000) for i, name in enumerate(CONTENTS)}
    path = write(tmp_path / "shard.tgz", noise, "w:gz")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    found = read(path)
    whole = {name: data for name, data in found.items() if isinstance(data, bytes)}
    assert 0 < len(whole) < 6 and whole == dict(list(noise.items())[: len(whole)])
    assert list(found)[-1] == "" and "of what it unpacks to" in str(found[""])
    assert [reference.name for reference in find([path]).references()] == [item.name for item in find([path])]


def test_a_corrupt_compressed_archive_gives_what_it_has(tmp_path):
    """But for what stands within a buffer, 8 or 128 KiB, of the damage."""
    noise = {name: np.random.default_rng(i).bytes(200_000) for i, name in enumerate(CONTENTS)}
    sound = write(tmp_path / "shard.tar", noise).read_bytes()
    packing, path = zlib.compressobj(1, wbits=31), tmp_path / "shard.tgz"
    path.write_bytes(packing.compress(sound[:700_000]) + packing.flush(zlib.Z_FULL_FLUSH) + b"\x07no such block")
    found = read(path)
    whole = {name: data for name, data in found.items() if isinstance(data, bytes)}
    assert 2 <= len(whole) <= 3 and whole == dict(list(noise.items())[: len(whole)])
    assert "of what it unpacks to" in str(found[""]) and "Error -3 while decompressing" in str(found[""])


def test_a_compressed_archive_is_checked_at_its_end(tmp_path):
    path = tmp_path / "shard.tar.gz"
    plain = write(tmp_path / "shard.tar", CONTENTS).read_bytes()
    packed = bytearray(gzip.compress(plain))
    packed[-8] ^= 1  # the CRC
    path.write_bytes(packed)
    found = read(path)
    assert {name: found[name] for name in CONTENTS} == CONTENTS
    assert "CRC check failed" in str(found[""])


@pytest.mark.parametrize("data", [b"", b"not a tar" * 200, b"\x1f\x8b" + b"x" * 600])
def test_what_is_no_archive_is_told(tmp_path, data):
    path = tmp_path / "shard.tar"
    path.write_bytes(data)
    assert list(read(path)) == [""]


def test_no_damage_hangs_or_is_an_error_of_another_kind(tmp_path):
    path = write(tmp_path / "shard.tar", {"a" * 120 + ".jpg": b"1" * 600} | CONTENTS, form=tarfile.PAX_FORMAT)
    sound = path.read_bytes()
    for place in range(0, 4 * 512):
        data = bytearray(sound)
        data[place] ^= 0xFF
        path.write_bytes(data)
        assert len(read(path)) >= 1


def test_a_size_that_leads_backwards_is_damage(tmp_path):
    path = write(tmp_path / "shard.tar", CONTENTS)
    data = bytearray(path.read_bytes())
    data[STEP + 124 : STEP + 136] = b"\xff" * 10 + b"\xf0\x00"  # base 256: -4,096
    header = data[STEP : STEP + 512]
    header[148:156] = b" " * 8
    data[STEP + 148 : STEP + 156] = b"%06o\0 " % sum(header)
    path.write_bytes(data)
    found = read(path)
    assert list(found) == ["000.jpg", ""] and "negative size" in str(found[""])


# -- archives among other inputs --------------------------------------------------------------------------------------


def test_a_list_may_name_archives(tmp_path):
    shard = write(tmp_path / "shard.tar", CONTENTS)
    photo = write_jpeg(tmp_path / "photo.jpg")
    text = tmp_path / "list.txt"
    text.write_text(f"{photo}\n{tmp_path}/gone.tar\n{shard}\n{tmp_path}/gone.jpg\n")
    inputs = find([text])
    wanted = [str(photo), f"{tmp_path}/gone.tar", *(f"{shard}/{name}" for name in CONTENTS), f"{tmp_path}/gone.jpg"]
    assert [item.name for item in inputs] == wanted
    assert inputs.count() == len(wanted)
    missing = next(islice(inputs, 1, None)).source
    assert isinstance(missing, ImageError) and missing.reason == "no such file"
    text.write_text(f"{photo}\n{write(tmp_path / 'packed.tgz', CONTENTS, 'w:gz')}\n")
    assert inputs.count() is None
