"""What is to be captioned: folders, lists, their order, and reading ahead."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from pycap.data import DataError, Example, features, items, store
from pycap.data.features import FeatureStore
from pycap.data.images import decode_image
from pycap.data.inputs import find, images_below
from pycap.data.items import Item, read_ahead
from pycap.data.store import ImageStore
from tests.data.fixtures import truncate, write_jpeg
from tests.data.test_features import ORIGIN, vectors
from tests.data.test_store import ROOT, blob, make_examples


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(*paths: str | Path) -> list[str]:
    return [item.name for item in find(paths)]


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_sorted_recursive_and_knows_images(tmp_path):
    touch(tmp_path, "b.jpg", "a/z.PNG", "a/c.jpeg", "a/.hidden.jpg", "a-b/1.jpg", "a.jpg", "notes.md", "model.h5")
    inside = [str(tmp_path / name) for name in ("a/c.jpeg", "a/z.PNG", "a-b/1.jpg", "a.jpg", "b.jpg")]
    assert inside == [str(path) for path in sorted(map(Path, inside))]  # by their parts
    assert names(tmp_path) == inside
    assert names(str(tmp_path / "notes.md"), tmp_path) == [str(tmp_path / "notes.md"), *inside]
    assert list(images_below(tmp_path)) == [os.path.relpath(path, tmp_path) for path in inside]


def test_many_names_are_merged_from_their_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("pycap.data.inputs._BLOCK_NAMES", 3)
    wanted = sorted(f"{i * 7919 % 1000:03}.jpg" for i in range(50))
    touch(tmp_path, *wanted)
    assert list(images_below(tmp_path)) == wanted


def test_the_current_folder_is_not_part_of_a_name(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "in/b.jpg")
    monkeypatch.chdir(tmp_path)
    assert names(".") == ["a.jpg", "in/b.jpg"]
    assert names("./in/") == ["in/b.jpg"]


def test_links_are_followed_to_files_and_not_to_folders(tmp_path):
    touch(tmp_path, "a.jpg", "in/b.jpg")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "folder.jpg").symlink_to("in")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    assert list(images_below(tmp_path)) == ["a.jpg", "in/b.jpg", "itself.jpg", "link.jpg"]


def test_a_folder_that_cannot_be_listed_is_told_in_its_place(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "lost+found/2.jpg", "z.jpg")
    scan = os.scandir

    def refused(path: str) -> Iterator[os.DirEntry[str]]:
        if path.endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert names(tmp_path) == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/lost+found/", f"{tmp_path}/z.jpg"]


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"gone.jpg: no such file or folder"):
        find([tmp_path / "gone.jpg"])
    with pytest.raises(DataError, match="no images in the folder"):
        find([tmp_path])
    assert [item.name for item in find([tmp_path / "gone.jpg"], strict=False)] == [str(tmp_path / "gone.jpg")]


# -- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_has_a_path_on_each_line(tmp_path):
    text = tmp_path / "list.txt"
    text.write_bytes("\ufeffa.jpg\r\n\n#1.jpg\n  \n b c.jpg\nd\u00e9j\u00e0.jpg".encode())
    assert names(text) == ["a.jpg", "#1.jpg", " b c.jpg", "d\u00e9j\u00e0.jpg"]
    inputs = find([text])
    assert inputs.count() == 4 and list(inputs) == list(inputs)


def test_what_is_no_list_is_told(tmp_path):
    text = tmp_path / "list.txt"
    text.write_bytes(b"a.jpg\nb\0c.jpg\n")
    with pytest.raises(DataError, match=r"list.txt: line 2 is no path"):
        names(text)


def test_standard_input_is_a_list_that_can_be_gone_through_again(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b.jpg\na.jpg\n")))
    inputs = find(["-"])
    assert [item.name for item in inputs] == [item.name for item in inputs] == ["b.jpg", "a.jpg"]


# -- stores -----------------------------------------------------------------------------------------------------------


def image_store(tmp_path: Path, count: int = 5) -> tuple[Path, list[bytes]]:
    examples = make_examples(tmp_path / "images", count)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        for example in examples:
            images.put(example, blob(example))
    return tmp_path / "s.h5", [blob(example) for example in examples]


def test_an_image_store_is_read_in_its_order_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_READ_ROWS", 2)
    path, blobs = image_store(tmp_path)
    inputs = find([path])
    assert list(inputs) == [(f"{path}/{number}.jpg", data) for number, data in enumerate(blobs)]
    assert inputs.count() == 5
    assert inputs.stores() == [(str(path), 72)]


def test_features_are_read_in_their_order_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_READ_ROWS", 2)
    path, examples = tmp_path / "f.h5", make_examples(tmp_path / "images", 5)
    with FeatureStore(path, ORIGIN) as vectors_of:
        vectors_of.add(examples, vectors(examples))
    inputs = find([path])
    assert [item.name for item in inputs] == [f"{path}/{i}.jpg" for i in range(5)]
    assert np.array_equal([item.source for item in inputs], vectors(examples))
    assert inputs.count() == 5 and inputs.stores() == [(str(path), ORIGIN)]
    (batch,) = read_ahead(inputs, [40, 64], 9)
    assert all(np.array_equal(batch.arrays[size], vectors(examples)) for size in (40, 64))


def test_names_that_a_store_cannot_hold_whole_still_tell_what_they_are(tmp_path):
    odd = [os.fsdecode(b"caf\xe9.jpg"), "ä" * 200 + ".jpg"]  # no UTF-8; 404 bytes, of which half a letter is cut off
    examples = [Example(i, name, write_jpeg(tmp_path / f"{i}.jpg", seed=i), ("a cat",)) for i, name in enumerate(odd)]
    with ImageStore(tmp_path / "s.h5", 72) as images, FeatureStore(tmp_path / "f.h5", ORIGIN) as vectors_of:
        for example in examples:
            images.put(example, blob(example))
        vectors_of.add(examples, vectors(examples))
        assert len(images) == len(vectors_of) == 2
    for path in (tmp_path / "s.h5", tmp_path / "f.h5"):
        assert [os.fsencode(item.name)[len(os.fsencode(f"{path}/")) :] for item in find([path])] == [
            b"caf\xe9.jpg",
            ("ä" * 200).encode()[:255],
        ]


def test_a_damaged_row_is_an_item_that_cannot_be_read(tmp_path):
    path, blobs = image_store(tmp_path)
    with h5py.File(path, "r+") as file:
        file["data"][2 * 300 + 7] ^= 1
        file["index"][3] = (*list(file["index"][3])[:2], 10**9, 300, 1)
    sources = [item.source for item in find([path])]
    assert [sources[i] for i in (0, 1, 4)] == [blobs[i] for i in (0, 1, 4)]
    assert [str(sources[i]) for i in (2, 3)] == [f"{path}/{i}.jpg: damaged in its store" for i in (2, 3)]
    examples = make_examples(tmp_path / "images", 3)
    with FeatureStore(tmp_path / "f.h5", ORIGIN) as vectors_of:
        vectors_of.add(examples, vectors(examples))
        vectors_of._data[1, 0] += 1
    found = [item.source for item in find([tmp_path / "f.h5"])]
    assert np.array_equal(found[0], vectors(examples)[0]) and np.array_equal(found[2], vectors(examples)[2])
    assert str(found[1]) == f"{tmp_path}/f.h5/1.jpg: its features are damaged; make them anew"


def test_a_file_that_is_no_store_is_told(tmp_path):
    (tmp_path / "text.h5").write_bytes(b"a.jpg")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = [1]
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.attrs["format"] = ImageStore.format
    with pytest.raises(DataError, match=r"text\.h5: cannot be read as an HDF5 file"):
        names(tmp_path / "text.h5")
    with pytest.raises(DataError, match=r"other\.h5: an HDF5 file, but none of pycap-image-store, pycap-features"):
        names(tmp_path / "other.h5")
    with pytest.raises(DataError, match=r"empty\.h5: corrupt \(.*index"):
        names(tmp_path / "empty.h5")
    with pytest.raises(DataError, match=r"empty\.h5: corrupt \(.*size"):
        find([tmp_path / "empty.h5"]).stores()


READ = "import sys; from pycap.data.inputs import find; print(*(item.name for item in find([sys.argv[1]])))"


def test_several_processes_read_a_store_and_none_while_it_is_written(tmp_path):
    path, _ = image_store(tmp_path)

    def elsewhere() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, cwd=ROOT)

    reading = iter(find([path]))
    next(reading)
    assert elsewhere().stdout.split() == [item.name for item in find([path])]
    reading.close()
    with ImageStore(path, 72):
        assert f"DataError: {path}: another process is writing to it; wait until it has ended" in elsewhere().stderr
    assert len(elsewhere().stdout.split()) == 5


# -- all of them ------------------------------------------------------------------------------------------------------


def test_every_iteration_gives_the_same(tmp_path):
    touch(tmp_path, *(f"{i}.jpg" for i in range(7)))
    inputs = find([tmp_path, tmp_path / "3.jpg"])
    every = list(inputs)
    one, other = iter(inputs), iter(inputs)  # at the same time
    assert [(next(one), next(other)) for _ in every] == [(item, item) for item in every]
    assert inputs.count() == len(every) == 8
    assert [reference.name for reference in inputs.references()] == [item.name for item in every]


def test_the_digest_is_of_what_was_named(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg")
    digest = find([tmp_path / "a", tmp_path / "b"]).digest()
    assert digest == find([str(tmp_path / "a/"), tmp_path / "b"]).digest()
    assert digest != find([tmp_path / "b", tmp_path / "a"]).digest() != find([tmp_path / "b"]).digest()


# -- reading ahead ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_reading_keeps_the_order_and_reports_bad_ones(tmp_path, workers):
    paths = [str(write_jpeg(tmp_path / f"{i}.jpg", seed=i)) for i in range(7)]
    for bad in (1, 6):
        truncate(Path(paths[bad]))
    batches = list(read_ahead(find(paths), [20, 16, 20], batch_size=3, workers=workers))
    assert [batch.names for batch in batches] == [paths[:3], paths[3:6], paths[6:]]
    assert [batch.arrays[20].shape for batch in batches] == [(2, 20, 20, 3), (3, 20, 20, 3), (0, 20, 20, 3)]
    assert [batch.arrays[16].shape for batch in batches] == [(2, 16, 16, 3), (3, 16, 16, 3), (0, 16, 16, 3)]
    assert [[e and e.file for e in batch.errors] for batch in batches] == [
        [None, paths[1], None],
        [None] * 3,
        [paths[6]],
    ]
    assert batches[0].arrays[20][1].tolist() == decode_image(paths[2], 20).tolist()
    assert batches[0].arrays[16][1].tolist() == decode_image(paths[2], 16).tolist()


def test_reading_closes_its_threads(tmp_path):
    paths = [write_jpeg(tmp_path / f"{i}.jpg", seed=i) for i in range(8)]
    batches = read_ahead(find(paths), [20], batch_size=1, workers=2)
    next(batches)
    assert any(t.name.startswith("pycap-data") for t in threading.enumerate())
    batches.close()
    assert not any(t.name.startswith("pycap-data") for t in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_inputs_or_of_memory_ends_reading(tmp_path, monkeypatch, workers):
    paths = [write_jpeg(tmp_path / f"{i}.jpg", seed=i) for i in range(4)]
    (tmp_path / "list.txt").write_bytes(b"%s\n\0" % os.fsencode(paths[0]))
    with pytest.raises(DataError, match="line 2 is no path"):
        list(read_ahead(find([*paths, tmp_path / "list.txt"]), [20], 2, workers))

    def full(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(items, "decode_image", full)
    with pytest.raises(MemoryError, match="no room") as caught:
        list(read_ahead(find(paths), [20], 1, workers))
    assert caught.tb is not None  # it holds what was going on
    assert not any(t.name.startswith("pycap-data") for t in threading.enumerate())


def test_reading_refuses_no_batch():
    with pytest.raises(DataError, match="batch size 0"):
        next(read_ahead(iter([Item("a", "a")]), [20], 0))
