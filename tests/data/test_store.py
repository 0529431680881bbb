"""The HDF5 store: what comes back, other sizes, changed sources, corrupt files, killed writers, threads, full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from pycap.data import DataError, Example, store
from pycap.data.store import ImageStore
from tests.data.fixtures import write_jpeg

ROOT = Path(__file__).resolve().parents[2]


def make_examples(folder: Path, count: int) -> list[Example]:
    return [Example(i, f"{i}.jpg", write_jpeg(folder / f"{i}.jpg", seed=i), ("a cat",)) for i in range(count)]


def blob(example: Example, length: int = 300) -> bytes:
    """Bytes that only this example has (the store does not look into them)."""
    return np.random.default_rng(int(example.image_id)).integers(0, 256, length, dtype=np.uint8).tobytes()


def test_what_is_put_comes_back_before_and_after_closing(tmp_path):
    examples = make_examples(tmp_path / "images", 5)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        for example in examples[:3]:
            assert images.get(example) is None
            images.put(example, blob(example))
            assert images.get(example) == blob(example)
        images.flush()
        assert images.get(examples[1]) == blob(examples[1])
    with ImageStore(tmp_path / "s.h5", 72) as images:
        assert len(images) == 3
        assert [images.get(e) for e in examples] == [*map(blob, examples[:3]), None, None]
        images.put(examples[4], blob(examples[4], 17))
    with ImageStore(tmp_path / "s.h5", 72) as images:
        assert images.get(examples[4]) == blob(examples[4], 17)
        assert images.get(examples[0]) == blob(examples[0])
        assert images.report == []


def test_a_second_put_of_one_image_is_no_second_record(tmp_path):
    (example,) = make_examples(tmp_path, 1)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        images.put(example, b"one")
        images.put(example, b"two")
        images.flush()
        images.put(example, b"three")
        assert (len(images), images.get(example)) == (1, b"one")


def test_large_puts_are_written_without_being_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FLUSH_BYTES", 1000)
    examples = make_examples(tmp_path, 4)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        for example in examples:
            images.put(example, blob(example))
        assert not images._pending
        assert images._file["index"].shape == (4,)


def test_a_changed_source_is_not_served(tmp_path):
    (example,) = make_examples(tmp_path, 1)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        images.put(example, b"old")
    write_jpeg(example.path, seed=8, height=50)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        assert images.get(example) is None
        images.put(example, b"new")
        assert images.get(example) == b"new"


def test_a_source_that_has_gone_is_neither_served_nor_stored(tmp_path):
    (example,) = make_examples(tmp_path, 1)
    example.path.unlink()
    with ImageStore(tmp_path / "s.h5", 72) as images:
        images.put(example, b"x")
        assert images.get(example) is None
        assert len(images) == 0


def test_another_size_is_refused_and_the_store_kept(tmp_path):
    (example,) = make_examples(tmp_path, 1)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        images.put(example, b"x")
    with pytest.raises(DataError, match=r"s\.h5: the store holds version 2, 72 px.*256 px.*name another file"):
        ImageStore(tmp_path / "s.h5", 256)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        assert images.get(example) == b"x"


def test_two_openers_are_refused(tmp_path):
    path = tmp_path / "s.h5"
    with ImageStore(path, 72), pytest.raises(DataError, match="this process has the image store open already"):
        ImageStore(path, 72)
    ImageStore(path, 72).close()


def test_a_store_that_is_only_read_is_opened_when_it_is_and_by_several(tmp_path):
    examples = make_examples(tmp_path / "images", 2)
    reader = ImageStore(tmp_path / "s.h5", 72, writable=False)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        images.put(examples[0], blob(examples[0]))
    before = (tmp_path / "s.h5").read_bytes()
    code = "import sys; from pycap.data.store import ImageStore; from tests.data.test_store import *\n"
    code += (
        "e = [Example(0, '0.jpg', Path(sys.argv[2]), ())]; print(ImageStore(sys.argv[1], 72, writable=False).get(*e))"
    )
    with reader:
        assert reader.get(examples[0]) == blob(examples[0])
        reader.put(examples[1], blob(examples[1]))
        assert reader.get(examples[1]) is None
        command = [sys.executable, "-c", code, str(tmp_path / "s.h5"), str(examples[0].path)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.stdout == f"{blob(examples[0])!r}\n", done.stderr
    assert (tmp_path / "s.h5").read_bytes() == before


@pytest.mark.parametrize("keep", [0, 700])
def test_a_store_that_is_only_read_is_never_set_aside(tmp_path, keep):
    example = make_examples(tmp_path / "images", 1)[0]
    with ImageStore(tmp_path / "s.h5", 72) as images:
        images.put(example, blob(example))
    content = (tmp_path / "s.h5").read_bytes()[:keep]
    (tmp_path / "s.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"s\.h5: the image store is corrupt \(.*\); name another file"):
        ImageStore(tmp_path / "s.h5", 72, writable=False).get(example)
    with pytest.raises(DataError, match="no such file|No such file|unable to"):
        ImageStore(tmp_path / "none.h5", 72, writable=False).get(example)
    assert [path.name for path in tmp_path.glob("*.h5*")] == ["s.h5"] and (tmp_path / "s.h5").read_bytes() == content


def test_another_process_is_refused_not_taken_for_corruption(tmp_path):
    path = tmp_path / "s.h5"
    code = (
        "import sys; from pycap.data import DataError; from pycap.data.store import ImageStore\n"
        "try: ImageStore(sys.argv[1], 72)\nexcept DataError as error: print(error)"
    )
    with ImageStore(path, 72):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
        )
    assert "another process holds it open" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]


def test_a_closed_store_says_so(tmp_path):
    (example,) = make_examples(tmp_path, 1)
    images = ImageStore(tmp_path / "s.h5", 72)
    images.close()
    images.close()
    with pytest.raises(DataError, match="closed"):
        images.get(example)
    with pytest.raises(DataError, match="closed"):
        images.put(example, b"x")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot make the image store"):
        ImageStore(tmp_path / "no" / "s.h5", 72)


@pytest.mark.parametrize("keep", [0, 40, 700, -100])
def test_a_corrupt_file_is_set_aside_reported_and_made_anew(tmp_path, keep):
    path = tmp_path / "s.h5"
    examples = make_examples(tmp_path / "images", 3)
    with ImageStore(path, 72) as images:
        for example in examples:
            images.put(example, blob(example))
    damaged = path.read_bytes()[:keep]
    path.write_bytes(damaged)
    with ImageStore(path, 72) as images:
        assert len(images.report) == 1
        assert "corrupt" in images.report[0]
        assert str(path) in images.report[0]
        assert len(images) == 0
        images.put(examples[0], b"x")
    with ImageStore(path, 72) as images:
        assert (images.get(examples[0]), images.report) == (b"x", [])
    assert (tmp_path / "s.h5.corrupt").read_bytes() == damaged


def test_an_index_that_points_past_the_data_is_corruption(tmp_path):
    path = tmp_path / "s.h5"
    (example,) = make_examples(tmp_path, 1)
    with ImageStore(path, 72) as images:
        images.put(example, b"12345678")
    with h5py.File(path, "r+") as file:
        file["data"].resize((4,))
    with ImageStore(path, 72) as images:
        assert "byte 8 of 4" in images.report[0]
        assert images.get(example) is None


def test_a_store_without_its_index_is_corruption(tmp_path):
    path = tmp_path / "s.h5"
    ImageStore(path, 72).close()
    with h5py.File(path, "r+") as file:
        del file["index"]
    with ImageStore(path, 72) as images:
        assert "missing" in images.report[0]


def test_somebody_elses_hdf5_file_is_left_alone(tmp_path):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file["kernel"] = np.arange(5)
    before = path.read_bytes()
    with pytest.raises(DataError, match="not a pycap image store"):
        ImageStore(path, 72)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["weights.h5"]


def test_a_damaged_record_is_noticed_and_stored_again(tmp_path):
    path = tmp_path / "s.h5"
    examples = make_examples(tmp_path, 2)
    with ImageStore(path, 72) as images:
        for example in examples:
            images.put(example, blob(example))
    with h5py.File(path, "r+") as file:
        file["data"][5] ^= 1
    with ImageStore(path, 72) as images:
        assert images.get(examples[0]) is None
        assert images.get(examples[1]) == blob(examples[1])
        assert "0.jpg is damaged" in images.report[0]
        images.put(examples[0], blob(examples[0]))
    with ImageStore(path, 72) as images:
        assert images.get(examples[0]) == blob(examples[0])


def test_threads_may_share_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FLUSH_BYTES", 2000)
    examples = make_examples(tmp_path / "images", 40)
    with ImageStore(tmp_path / "s.h5", 72) as images:

        def work(example: Example) -> bool:
            images.put(example, blob(example))
            return images.get(example) == blob(example)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, examples * 3))
    with ImageStore(tmp_path / "s.h5", 72) as images:
        assert len(images) == 40
        assert all(images.get(e) == blob(e) for e in examples)


@pytest.mark.faults
def test_a_failing_write_is_reported_and_the_run_goes_on(tmp_path, monkeypatch):
    examples = make_examples(tmp_path, 2)
    with ImageStore(tmp_path / "s.h5", 72) as images:
        images.put(examples[0], b"x")
        images.flush()

        def full(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

        images.put(examples[1], b"y")
        with monkeypatch.context() as patch:
            patch.setattr(h5py.Dataset, "resize", full)
            images.flush()
        assert "No space left" in images.report[0]
        assert images.get(examples[0]) == b"x"
        assert images.get(examples[1]) is None
        images.put(examples[1], b"y")
        assert len(images) == 1
    with ImageStore(tmp_path / "s.h5", 72) as images:
        assert (images.get(examples[0]), images.report) == (b"x", [])


KILLED = """
import sys
from pathlib import Path
from pycap.data import Example, store
from tests.data.test_store import blob
store.FLUSH_BYTES = 5000
images = store.ImageStore(sys.argv[1], 72)
folder = Path(sys.argv[2])
for i in range(10**9):
    example = Example(i, f"{i % 20}-{i}.jpg", folder / f"{i % 20}.jpg", ("a cat",))
    images._keys.clear()  # twenty files stand for many
    images.put(example, blob(example))
    if i == 50:
        print("running", flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.3])
def test_a_killed_writer_leaves_a_usable_store(tmp_path, delay):
    path = tmp_path / "s.h5"
    examples = make_examples(tmp_path / "images", 20)
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(tmp_path / "images")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "running\n"
    try:
        writer.wait(delay or 0.001)
    except subprocess.TimeoutExpired:
        os.kill(writer.pid, signal.SIGKILL)
    assert writer.wait(10) == -signal.SIGKILL
    writer.stdout.close()
    with ImageStore(path, 72) as images:
        found = 0
        for i in range(50):
            example = Example(i, f"{i % 20}-{i}.jpg", examples[i % 20].path, ("a cat",))
            images._keys.clear()
            record = images.get(example)
            assert record in (None, blob(example))
            found += record is not None
        # All that was flushed is there, or the file was beyond reading, and that was said.
        assert found >= 32 or "corrupt" in images.report[0]
        images.put(examples[0], b"after")
        images.flush()
        assert images.get(examples[0]) == b"after"


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    path = tmp_path / "picks.jsonl"
    path.write_text("{}")
    with pytest.raises(DataError, match="not an HDF5 file, so no image store; name another file"):
        ImageStore(path, 72)
    assert path.read_text() == "{}" and [p.name for p in tmp_path.iterdir()] == ["picks.jsonl"]
