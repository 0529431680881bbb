"""The loader on bad images, with a store and a cache, and the clean end of its threads."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from pycap.data import DataError, loader
from pycap.data.images import decode_image, encode_jpeg
from pycap.data.store import ImageStore
from tests.data.fixtures import truncate
from tests.data.loading import SPEC, all_same, caption_columns, data_threads, make_examples, make_loader

# -- images that cannot be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 3])
def test_bad_images_are_skipped_counted_and_listed_once(tmp_path, workers):
    examples = make_examples(tmp_path, 10)
    truncate(examples[2].path, 0.9)
    examples[7].path.unlink()
    listed = tmp_path / "skipped.jsonl"
    source = make_loader(examples, workers=workers, skipped_path=listed)
    for epoch in range(2):
        ids = [i for b in source.epoch(epoch) for i in b.image_ids]
        assert sorted(ids) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert set(source.skipped) == {"2.jpg", "7.jpg"}
    assert "truncated" in source.skipped["2.jpg"]
    assert source.skipped["7.jpg"] == "no such file"
    rows = {row["file_name"]: row for row in map(json.loads, listed.read_text().splitlines())}
    assert len(listed.read_text().splitlines()) == 2
    assert rows["2.jpg"] == {"file_name": "2.jpg", "path": str(examples[2].path), "reason": source.skipped["2.jpg"]}
    list(make_loader(examples, workers=workers, skipped_path=listed).epoch(0))  # a resumed run
    assert len(listed.read_text().splitlines()) == 2


def test_bad_images_leave_no_gap_among_the_pixels(tmp_path):
    examples = make_examples(tmp_path, 8)
    truncate(examples[0].path, 0.9)
    truncate(examples[2].path, 0.9)
    first, second = make_loader(examples, train=False).epoch(0)
    for batch in (first, second):
        assert len(batch.images) == len(batch)
        for pixels, example in zip(batch.images, batch.examples, strict=True):
            assert np.array_equal(pixels, decode_image(example.path, 20)), example.file_name
    assert first.file_names == ("1.jpg", "3.jpg")


def test_half_a_line_of_the_list_of_skipped_images_is_dropped(tmp_path):
    examples = make_examples(tmp_path, 4)
    examples[1].path.unlink()
    listed = tmp_path / "run" / "skipped.jsonl"
    list(make_loader(examples, skipped_path=listed).epoch(0))
    whole = listed.read_text()
    listed.write_text(whole[:20])
    list(make_loader(examples, skipped_path=listed).epoch(0))
    assert listed.read_text() == whole


def test_a_bad_image_leaves_the_others_augmentation_as_it_was(tmp_path):
    examples = make_examples(tmp_path, 10)

    def drawn() -> dict:
        batches = make_loader(examples).epoch(0)
        return {
            image_id: (crop.tolist(), captions)
            for batch in batches
            for image_id, crop, captions in zip(batch.image_ids, batch.crops, caption_columns(batch, 5), strict=True)
        }

    before = drawn()
    truncate(examples[4].path, 0.9)
    after = drawn()
    before.pop(4)
    assert after == before


def test_a_batch_without_an_image_is_not_yielded_and_the_rest_keep_their_index(tmp_path):
    examples = make_examples(tmp_path, 6)
    for example in examples[2:4]:
        truncate(example.path, 0.9)
    batches = list(make_loader(examples, train=False, batch_size=2).epoch(0))
    assert [(b.index, b.image_ids) for b in batches] == [(0, (0, 1)), (2, (4, 5))]


def test_no_image_at_all_is_an_error(tmp_path):
    examples = make_examples(tmp_path, 5)
    for example in examples:
        truncate(example.path, 0.9)
    source = make_loader(examples)
    for epoch in range(2):
        with pytest.raises(DataError, match=r"none of 5 images can be read \(first: \d.jpg: .*truncated"):
            list(source.epoch(epoch))
    assert data_threads() == []


# -- the store and the cache ------------------------------------------------------------------------------------------


def test_a_store_gives_the_same_pixels_in_the_first_epoch_and_ever_after(tmp_path):
    examples = make_examples(tmp_path, 6)
    path = tmp_path / "store.h5"
    with ImageStore(path, SPEC.resize) as images:
        source = make_loader(examples, store=images, cache_bytes=0)
        first = list(source.epoch(0))
        assert all_same(list(source.epoch(0)), first)
    with ImageStore(path, SPEC.resize) as images:
        assert len(images) == 6
        assert all_same(list(make_loader(examples, store=images, workers=0).epoch(0)), first)
    example, pixels = first[0].examples[0], first[0].images[0]
    assert pixels.tolist() == decode_image(encode_jpeg(decode_image(example.path, 20)), 20).tolist()


def test_a_store_saves_reading_the_files(tmp_path, monkeypatch):
    examples = make_examples(tmp_path, 6)
    with ImageStore(tmp_path / "store.h5", SPEC.resize) as images:
        first = list(make_loader(examples, store=images).epoch(0))
    opened = []

    def spy(source, size, name=None, out=None):
        opened.append(source)
        return decode_image(source, size, name, out)

    monkeypatch.setattr(loader, "decode_image", spy)
    with ImageStore(tmp_path / "store.h5", SPEC.resize) as images:
        assert all_same(list(make_loader(examples, store=images).epoch(0)), first)
    assert len(opened) == 6
    assert all(isinstance(source, bytes) for source in opened)


def test_a_bad_image_is_skipped_with_a_store_too(tmp_path):
    examples = make_examples(tmp_path, 6)
    truncate(examples[3].path, 0.9)
    with ImageStore(tmp_path / "store.h5", SPEC.resize) as images:
        source = make_loader(examples, store=images)
        assert sum(len(b) for b in source.epoch(0)) == 5
        assert len(images) == 5
    assert list(source.skipped) == ["3.jpg"]


@pytest.mark.parametrize(("room", "decoded"), [(0, 12), (2 * 1200, 10), (1 << 20, 6)])
def test_decoded_images_stay_in_memory_up_to_the_limit(tmp_path, monkeypatch, room, decoded):
    calls = []

    def spy(source, size, name=None, out=None):
        calls.append(source)
        return decode_image(source, size, name, out)

    monkeypatch.setattr(loader, "decode_image", spy)
    source = make_loader(make_examples(tmp_path, 6), cache_bytes=room)
    for epoch in range(2):
        list(source.epoch(epoch))
    assert len(calls) == decoded


# -- threads ----------------------------------------------------------------------------------------------------------


def test_threads_start_at_the_first_batch_and_end_with_the_epoch(tmp_path):
    batches = make_loader(make_examples(tmp_path, 12), batch_size=1).epoch(0)
    assert data_threads() == []
    next(batches)
    assert 1 <= len(data_threads()) <= 2
    assert len(list(batches)) == 11
    assert data_threads() == []


def test_closing_early_ends_the_threads(tmp_path):
    batches = make_loader(make_examples(tmp_path, 12), batch_size=1, prefetch=8).epoch(0)
    next(batches)
    batches.close()
    assert data_threads() == []


def test_closing_early_drops_the_batches_that_wait(tmp_path, monkeypatch):
    calls = []

    def slow(source, size, name=None, out=None):
        calls.append(source)
        threading.Event().wait(0.01)
        return decode_image(source, size, name, out)

    monkeypatch.setattr(loader, "decode_image", slow)
    batches = make_loader(make_examples(tmp_path, 12), batch_size=1, workers=1, prefetch=12).epoch(0)
    next(batches)
    batches.close()
    assert len(calls) < 12


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_exception_in_the_training_loop_ends_the_threads(tmp_path, kind):
    def train():
        for batch in make_loader(make_examples(tmp_path, 12), batch_size=1).epoch(0):
            raise kind(batch.index)

    with pytest.raises(kind) as caught:
        train()
    caught.value.__traceback__ = None  # the traceback keeps the loop's frame alive, and with it the iterator
    del caught
    assert data_threads() == []


def test_an_unforeseen_error_in_a_thread_reaches_the_caller(tmp_path, monkeypatch):
    def broken(source, size, name=None, out=None):
        raise RuntimeError("a bug")

    monkeypatch.setattr(loader, "decode_image", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(make_loader(make_examples(tmp_path, 12), batch_size=1).epoch(0))
    assert data_threads() == []


def test_prefetch_is_bounded(tmp_path, monkeypatch):
    calls = []

    def spy(source, size, name=None, out=None):
        calls.append(source)
        return decode_image(source, size, name, out)

    monkeypatch.setattr(loader, "decode_image", spy)
    batches = make_loader(make_examples(tmp_path, 12), batch_size=1, workers=2, prefetch=3).epoch(0)
    next(batches)
    for _ in range(50):
        threading.Event().wait(0.002)
    assert len(calls) <= 3
    batches.close()
