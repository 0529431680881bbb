"""The loader: tokens, crops, determinism across threads and resumes, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pycap.data import DataError, load_split
from pycap.data.images import ImageError, PreprocessSpec, decode_image
from pycap.data.loader import Loader
from pycap.data.store import ImageStore
from pycap.data.vocab import END, PAD, START, UNK, Vocabulary, tokenize
from tests.data.fixtures import make_coco
from tests.data.loading import SPEC, VOCAB, all_same, caption_columns, make_examples, make_loader

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
