"""The loader: tokens, crops, determinism across threads and resumes, bad images, the store, clean shutdown."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pycap.data import DataError, Example, load_split, loader
from pycap.data.images import ImageError, PreprocessSpec, decode_image, encode_jpeg
from pycap.data.loader import Batch, Loader
from pycap.data.store import ImageStore
from pycap.data.vocab import END, PAD, START, UNK, Vocabulary, tokenize
from tests.data.fixtures import make_coco, truncate, write_jpeg

SPEC = PreprocessSpec(20, 16)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


def make_examples(folder: Path, count: int, captions: int = 5) -> list[Example]:
    """Image i has captions `cat IN-WORDS`, `cat IN-WORDS is`, `cat IN-WORDS is is`, ..."""
    return [
        Example(
            i,
            f"{i}.jpg",
            write_jpeg(folder / f"{i}.jpg", seed=i, height=24, width=28),
            tuple(" ".join(["cat", NUMBERS[i], *["is"] * k]) for k in range(captions)),
        )
        for i in range(count)
    ]


VOCAB = Vocabulary.build(["cat is is " + " ".join(NUMBERS)], 1)


def make_loader(examples, **options) -> Loader:
    return Loader(examples, VOCAB, SPEC, **({"batch_size": 4, "train": True, "seed": 7, "workers": 2} | options))


def same(a: Batch, b: Batch) -> bool:
    arrays = ((a.images, b.images), (a.crops, b.crops), (a.tokens, b.tokens))
    return (
        all(x.dtype == y.dtype and x.shape == y.shape and (x == y).all() for x, y in arrays)
        and (a.image_ids, a.file_names, a.examples) == (b.image_ids, b.file_names, b.examples)
        and (a.epoch, a.index) == (b.epoch, b.index)
    )


def all_same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def caption_columns(batch: Batch, per_image: int) -> list[list[str]]:
    """The captions of each image, as text."""
    columns = [VOCAB.decode(batch.tokens[:, c]) for c in range(batch.tokens.shape[1])]
    return [columns[i * per_image : (i + 1) * per_image] for i in range(len(batch))]


def data_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("pycap-data")]


# -- what a batch holds -----------------------------------------------------------------------------------------------


def test_evaluation_batches_keep_the_order_and_are_not_augmented(tmp_path):
    examples = make_examples(tmp_path, 10)
    source = make_loader(examples, train=False)
    batches = list(source.epoch(0))
    assert len(source) == 3
    assert [len(b) for b in batches] == [4, 4, 2]
    assert [b.index for b in batches] == [0, 1, 2]
    assert sum((b.image_ids for b in batches), ()) == tuple(range(10))
    first = batches[0]
    assert (first.images.dtype, first.images.shape) == (np.uint8, (4, 20, 20, 3))
    assert first.images[2].tolist() == decode_image(examples[2].path, 20).tolist()
    assert (first.crops.dtype, first.crops.tolist()) == (np.int32, [[2, 2, 0]] * 4)
    assert first.file_names == ("0.jpg", "1.jpg", "2.jpg", "3.jpg")
    assert first.examples == tuple(examples[:4])
    assert caption_columns(first, 5)[1] == list(examples[1].captions)


def test_tokens_are_time_major_padded_and_trimmed(tmp_path):
    examples = make_examples(tmp_path, 2, captions=3)
    (batch,) = make_loader(examples, train=False, seq_per_img=3).epoch(0)
    cat, zero, one, words_is = (VOCAB.ids[w] for w in ("cat", "zero", "one", "is"))
    assert batch.tokens.dtype == np.int32
    assert batch.tokens.T.tolist() == [
        [START, cat, zero, END, PAD, PAD],
        [START, cat, zero, words_is, END, PAD],
        [START, cat, zero, words_is, words_is, END],
        [START, cat, one, END, PAD, PAD],
        [START, cat, one, words_is, END, PAD],
        [START, cat, one, words_is, words_is, END],
    ]


def test_captions_are_cut_at_max_length_and_strangers_are_unk(tmp_path):
    (example,) = make_examples(tmp_path, 1, captions=1)
    example = replace(example, captions=("cat zebra is is is is",))
    (batch,) = make_loader([example], train=False, seq_per_img=1, max_length=4).epoch(0)
    assert batch.tokens[:, 0].tolist() == [START, VOCAB.ids["cat"], UNK, VOCAB.ids["is"], VOCAB.ids["is"], END]


def test_fewer_captions_than_asked_repeat_and_all_occur(tmp_path):
    examples = make_examples(tmp_path, 6, captions=2)
    for batch in make_loader(examples).epoch(3):
        for example, captions in zip(batch.examples, caption_columns(batch, 5), strict=True):
            assert set(captions) == set(example.captions)
            assert sorted(captions.count(c) for c in example.captions) == [2, 3]


def test_more_captions_than_asked_are_sampled_without_replacement(tmp_path):
    examples = make_examples(tmp_path, 4, captions=7)
    source = make_loader(examples, seq_per_img=3)
    seen: dict[int | str, set[str]] = {e.image_id: set() for e in examples}
    for epoch in range(12):
        (batch,) = source.epoch(epoch)
        for example, captions in zip(batch.examples, caption_columns(batch, 3), strict=True):
            assert len(set(captions)) == 3
            seen[example.image_id].update(captions)
    assert all(seen[e.image_id] == set(e.captions) for e in examples)


def test_evaluation_takes_the_first_captions(tmp_path):
    examples = make_examples(tmp_path, 2, captions=7)
    (batch,) = make_loader(examples, train=False, seq_per_img=3).epoch(0)
    assert caption_columns(batch, 3) == [list(e.captions[:3]) for e in examples]


def test_training_shuffles_crops_and_flips(tmp_path):
    examples = make_examples(tmp_path, 12)
    source = make_loader(examples, batch_size=12)
    epochs = [next(source.epoch(epoch)) for epoch in range(20)]
    orders = {b.image_ids for b in epochs}
    assert len(orders) == 20
    assert all(sorted(order) == list(range(12)) for order in orders)
    crops = np.concatenate([b.crops for b in epochs])
    assert set(crops[:, 0]) == set(crops[:, 1]) == set(range(5))  # 20 - 16 + 1 places
    assert 0.35 < crops[:, 2].mean() < 0.65
    assert set(crops[:, 2]) == {0, 1}
    for axis in (0, 1):
        assert abs(np.corrcoef(crops[:, axis], crops[:, 2])[0, 1]) < 0.25


def test_flip_can_be_off(tmp_path):
    examples = make_examples(tmp_path, 8)
    on, off = (list(make_loader(examples, flip=flip).epoch(0)) for flip in (True, False))
    assert all((b.crops[:, 2] == 0).all() for b in off)
    assert all((a.crops[:, :2] == b.crops[:, :2]).all() for a, b in zip(on, off, strict=True))


# -- determinism ------------------------------------------------------------------------------------------------------


def test_same_batches_whatever_the_threads_prefetch_and_cache(tmp_path):
    examples = make_examples(tmp_path, 11, captions=6)
    expected = list(make_loader(examples, workers=0).epoch(2))
    for options in ({"workers": 1}, {"workers": 4, "prefetch": 1}, {"workers": 3, "prefetch": 9}, {"cache_bytes": 0}):
        source = make_loader(examples, **options)
        assert all_same(list(source.epoch(2)), expected), options
        assert all_same(list(source.epoch(2)), expected), options


def test_seed_and_epoch_change_the_batches(tmp_path):
    examples = make_examples(tmp_path, 11)
    base = list(make_loader(examples).epoch(0))
    assert not all_same(list(make_loader(examples).epoch(1)), base)
    assert not all_same(list(make_loader(examples, seed=8).epoch(0)), base)


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_resuming_in_mid_epoch_gives_the_rest_of_it(tmp_path, start):
    examples = make_examples(tmp_path, 11, captions=6)
    whole = list(make_loader(examples).epoch(5))
    assert all_same(list(make_loader(examples).epoch(5, start_batch=start)), whole[start:])


def test_random_numbers_are_pinned(tmp_path):
    """A changed stream would break the resumption of runs that an earlier version began."""
    (batch,) = make_loader(make_examples(tmp_path, 4)).epoch(1)
    assert batch.image_ids == (3, 1, 0, 2)
    assert batch.crops.tolist() == [[3, 4, 1], [2, 0, 0], [4, 1, 0], [4, 0, 0]]


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 4)])
def test_places_outside_are_refused(tmp_path, epoch, start):
    with pytest.raises(DataError, match=f"epoch {epoch}, batch {start}"):
        make_loader(make_examples(tmp_path, 11)).epoch(epoch, start)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_images_go_where_they_are_told_whole_batches_in_size(tmp_path, workers):
    examples = make_examples(tmp_path, 11, captions=6)
    expected = list(make_loader(examples).epoch(0))
    given: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        given.append(np.full(shape, 0xEE, np.uint8))
        return given[-1]

    batches = list(make_loader(examples, workers=workers, allocate=allocate).epoch(0))
    assert all_same(batches, expected)
    assert [array.shape for array in given] == [(4, 20, 20, 3)] * 3
    for batch in batches:
        assert any(np.shares_memory(batch.images, array) for array in given)
        assert batch.images.flags.c_contiguous
    assert [len(batch) for batch in batches] == [4, 4, 3]


def test_batches_do_not_share_their_pixels(tmp_path):
    """Also when all images come from memory: a batch may be kept while others are made."""
    source = make_loader(make_examples(tmp_path, 8), train=False)
    first, again = list(source.epoch(0)), list(source.epoch(1))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.images, b.images) and not np.shares_memory(a.images, b.images)
        a.images[...] = 0  # as whoever owns the memory may, once the batch is done with
    for b, c in zip(again, source.epoch(2), strict=True):
        assert np.array_equal(b.images, c.images)


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


def test_the_list_of_skipped_images_survives_half_a_line(tmp_path):
    examples = make_examples(tmp_path, 4)
    examples[1].path.unlink()
    listed = tmp_path / "run" / "skipped.jsonl"
    list(make_loader(examples, skipped_path=listed).epoch(0))
    whole = listed.read_text()
    listed.write_text(whole[:20])
    list(make_loader(examples, skipped_path=listed).epoch(0))
    assert listed.read_text() == whole[:20] + "\n" + whole


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


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seq_per_img": 0}, "seq_per_img is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"prefetch": 0}, "prefetch is 0"),
    ],
)
def test_numbers_out_of_range(tmp_path, options, words):
    with pytest.raises(DataError, match=words):
        make_loader(make_examples(tmp_path, 1), **options)


def test_no_examples_no_captions_and_a_store_of_another_size(tmp_path):
    with pytest.raises(DataError, match="no examples"):
        make_loader([])
    (example,) = make_examples(tmp_path, 1)
    with pytest.raises(DataError, match=r"0\.jpg has no captions"):
        make_loader([replace(example, captions=())])
    with ImageStore(tmp_path / "s.h5", 72) as images, pytest.raises(DataError, match="72 px, the spec resizes to 20"):
        make_loader([example], store=images)


def test_image_errors_are_data_errors():
    assert issubclass(ImageError, DataError)


# -- from a folder on -------------------------------------------------------------------------------------------------


def test_from_a_coco_folder(tmp_path):
    make_coco(tmp_path, images=5, captions=5)
    examples, _ = load_split("coco", tmp_path, "train")
    vocab = Vocabulary.build((c for e in examples for c in e.captions), 1)
    (batch,) = Loader(examples, vocab, SPEC, batch_size=5, train=False, seed=0).epoch(0)
    assert vocab.decode(batch.tokens[:, 6]) == " ".join(tokenize(examples[1].captions[1]))
    assert batch.image_ids == (100, 101, 102, 103, 104)


@pytest.mark.realdata
def test_real_flickr8k(data_root):
    examples, _ = load_split("flickr8k", data_root / "flickr8k", "val")
    examples = examples[:120]
    vocab = Vocabulary.build((c for e in examples for c in e.captions), 2)
    source = Loader(examples, vocab, PreprocessSpec(72, 64), batch_size=50, train=True, seed=1)
    batches = list(source.epoch(0))
    assert [len(b) for b in batches] == [50, 50, 20]
    assert source.skipped == {}
    assert batches[0].images.std() > 30
