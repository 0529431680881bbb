"""Tokeniser and vocabulary: order of ids, threshold, round trips, files that are no vocabulary."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pycap.data import DataError, load_split
from pycap.data.vocab import END, PAD, START, UNK, Vocabulary, has_words, tokenize

CAPTIONS = ["A cat sat on a mat.", "a dog sat", "the cat's dog", "The DOG!"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man, riding 2 horses!", ["a", "man", "riding", "horses"]),
        ("  The dog's\nball \t", ["the", "dog's", "ball"]),
        ("The dog\u2019s ball", ["the", "dog's", "ball"]),
        ("dog\u00b4s", ["dog's"]),
        ("Caf\u00e9 \u2014 na\u00efve", ["cafe", "naive"]),
        ("\uff23\uff41\uff54", ["cat"]),
        ("blue-green", ["blue", "green"]),
        ("", []),
        ("123 .", []),
    ],
)
def test_tokenize(text, words):
    assert tokenize(text) == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", True),
        ("' .", False),
        ("12", False),
        ("\n", False),
        ("it's", True),
        ("\uff23 \u00e9", True),
        ("\u732b", False),
    ],
)
def test_has_words(text, expected):
    assert has_words(text) is expected


def test_ids_go_by_count_then_alphabet():
    vocab = Vocabulary.build(CAPTIONS, 1)
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)
    assert vocab.words[:4] == ("<pad>", "<start>", "<end>", "<unk>")
    assert vocab.words[4:] == ("a", "dog", "sat", "the", "cat", "cat's", "mat", "on")
    assert len(vocab) == 12


def test_threshold_counts_and_report():
    vocab = Vocabulary.build(CAPTIONS, 2)
    assert vocab.words[4:] == ("a", "dog", "sat", "the")
    report = {
        "words_seen": 8,
        "words_kept": 4,
        "tokens": 14,
        "unk_tokens": 4,
        "unk_percent": pytest.approx(100 * 4 / 14),
    }
    assert vocab.report == report
    assert vocab.coverage(["a dog", "a zebra runs"]) == {
        "words_kept": 4,
        "tokens": 5,
        "unk_tokens": 2,
        "unk_percent": pytest.approx(40.0),
    }


def test_encode_truncates_words_and_marks_strangers():
    vocab = Vocabulary.build(CAPTIONS, 2)
    assert vocab.encode(["a", "zebra", "sat"], 20) == [START, vocab.ids["a"], UNK, vocab.ids["sat"], END]
    assert vocab.encode(["a"] * 9, 3) == [START, 4, 4, 4, END]
    assert vocab.encode([], 3) == [START, END]


def test_decode_stops_at_end_and_skips_pad_and_start():
    vocab = Vocabulary.build(CAPTIONS, 1)
    ids = np.array([START, *vocab.encode(tokenize("the cat sat"), 9)[1:], PAD, 4], dtype=np.int32)
    assert vocab.decode(ids) == "the cat sat"
    assert vocab.decode([PAD, 4, UNK]) == "a <unk>"


@pytest.mark.parametrize("bad", [12, -1])
def test_decode_of_a_foreign_id_is_an_error(bad):
    with pytest.raises(DataError, match=rf"id {bad} is outside 0..11"):
        Vocabulary.build(CAPTIONS, 1).decode([4, bad])


@pytest.mark.parametrize(("threshold", "words"), [(99, "none of 8 words occurs 99 times"), (0, "must be 1 or more")])
def test_build_with_nothing_left_is_an_error(threshold, words):
    with pytest.raises(DataError, match=words):
        Vocabulary.build(CAPTIONS, threshold)


def test_save_and_load(tmp_path):
    vocab = Vocabulary.build(CAPTIONS, 2)
    vocab.save(tmp_path / "vocab.json")
    loaded = Vocabulary.load(tmp_path / "vocab.json")
    assert loaded == vocab
    assert (loaded.threshold, loaded.report) == (2, vocab.report)
    assert [p.name for p in tmp_path.iterdir()] == ["vocab.json"]


def test_a_failing_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "vocab.json"
    Vocabulary.build(CAPTIONS, 2).save(path)
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        Vocabulary.build(CAPTIONS, 1).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["vocab.json"]


GOOD = {"format": "pycap-vocabulary", "version": 1, "words": ["<pad>", "<start>", "<end>", "<unk>", "a", "b"]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "the file is empty"),
        ("{words", "not valid JSON"),
        ("[]", "not a pycap vocabulary"),
        (json.dumps({"a": 4}), "not a pycap vocabulary"),
        (json.dumps(GOOD | {"version": 2}), "version 2"),
        (json.dumps(GOOD | {"words": "ab"}), "list of strings"),
        (json.dumps(GOOD | {"words": [*GOOD["words"], 5]}), "list of strings"),
        (json.dumps(GOOD | {"words": ["a", "b"]}), "must begin with <pad>"),
        (json.dumps(GOOD | {"words": [*GOOD["words"], "a"]}), "'a' stands in it twice"),
        (json.dumps(GOOD | {"words": [*GOOD["words"], ""]}), "is empty"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path, data, words):
    path = tmp_path / "vocab.json"
    path.write_text(data)
    with pytest.raises(DataError, match=words) as caught:
        Vocabulary.load(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"vocab.json: cannot be read \(No such file"):
        Vocabulary.load(tmp_path / "vocab.json")


LONG = "x" * 200_000


@pytest.mark.parametrize("body", [{"version": LONG}, {"words": [LONG]}, {"words": [*GOOD["words"], LONG, LONG]}])
def test_long_values_are_not_repeated_whole(tmp_path, body):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(GOOD | body))
    with pytest.raises(DataError, match=r"vocab\.json: .*xxx") as caught:
        Vocabulary.load(path)
    assert len(str(caught.value)) < 400


@pytest.mark.realdata
def test_size_on_flickr8k_is_the_published_one(data_root):
    examples, _ = load_split("flickr8k", data_root / "flickr8k", "train")
    assert len(Vocabulary.build((c for e in examples for c in e.captions), 5)) == 2533
