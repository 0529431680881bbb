"""A captioner over every kind of input: files, folders, lists, archives, stores of images and of features."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import tarfile
from dataclasses import astuple, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

import pycap
from pycap import distributed
from pycap.captioner import Caption, Captioner, cnn_origin
from pycap.data import DataError, Example
from pycap.data.features import FeatureStore
from pycap.data.images import PreprocessSpec, decode_image, encode_jpeg
from pycap.data.inputs import find
from pycap.data.store import ImageStore
from pycap.training.features import extract
from tests.data.fixtures import truncate, write_jpeg
from tests.train.test_commands import run
from tests.train.test_ensembles import SPEC, member, same

NAMES = [f"{i}.jpg" for i in range(7)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven photographs, the third cut short."""
    for seed, name in enumerate(NAMES):
        write_jpeg(tmp_path / "photos" / name, seed=seed, height=70, width=90)
    truncate(tmp_path / "photos" / NAMES[2])
    return tmp_path / "photos"


def said(captions: list[Caption]) -> list[list[tuple[str, float]]]:
    return [list(caption.beams) for caption in captions]


def features(captioner: Captioner, folder: Path, path: Path) -> Path:
    """The features of the photographs that can be read."""
    examples = [Example(name, name, folder / name, ()) for name in NAMES]
    cnn = captioner.model.cnn
    with FeatureStore(path, cnn_origin(cnn, captioner.spec)) as store:
        list(extract(cnn, store, examples, batch_size=4, precision="fp32", workers=0))
    return path


def test_an_image_is_captioned_the_same_wherever_it_is(tmp_path: Path, folder: Path) -> None:
    captioner = pycap.load(member(tmp_path / "model"))
    paths = [folder / name for name in NAMES]
    plain = list(captioner.caption(paths, batch_size=3))
    assert [caption.name for caption in plain] == [str(path) for path in paths]
    assert [caption.file_name for caption in plain] == NAMES
    assert [bool(caption.error) for caption in plain] == [name == NAMES[2] for name in NAMES]
    assert math.isnan(plain[2].logprob) and plain[2].beams == () and plain[0].text == plain[0].beams[0][0]
    assert len({beams for *_, beams, _ in map(astuple, plain)}) == len(NAMES)  # a mix-up would be seen
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(folder, ".")
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    for named in (folder, tmp_path / "list.txt"):
        assert [replace(caption, logprob=0) for caption in captioner.caption(named, batch_size=3)] == [
            replace(caption, logprob=0) for caption in plain
        ]
    packed = {caption.file_name: caption for caption in captioner.caption(tmp_path / "shard.tar", batch_size=3)}
    assert packed[NAMES[2]].error == plain[2].error
    same(said([packed[name] for name in NAMES]), said(plain))
    stored = list(captioner.caption(features(captioner, folder, tmp_path / "f.h5"), batch_size=3))
    assert [caption.name for caption in stored] == [f"{tmp_path}/f.h5/{name}" for name in NAMES if name != NAMES[2]]
    same(said(stored), said([caption for caption in plain if not caption.error]))


def test_batches_are_of_items_whether_they_can_be_read_or_not(tmp_path: Path, folder: Path) -> None:
    """So that a job that goes on at a whole batch has the batches of one that was not interrupted."""
    captioner = pycap.load(member(tmp_path / "model"))
    inputs = find([folder])
    batches = list(captioner.batches(inputs, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    later = list(captioner.batches(islice(inputs, 3, None), batch_size=3))
    assert later == batches[1:]


def test_one_image_twice_in_a_batch_is_captioned_twice(tmp_path: Path, folder: Path) -> None:
    captioner = pycap.load(member(tmp_path / "model"))
    good, bad = folder / NAMES[0], folder / NAMES[2]
    captions = list(captioner.caption([good, bad, good, bad]))
    assert [bool(caption.error) for caption in captions] == [False, True, False, True]
    same(said(captions[2:3]), said(captions[:1]))


def test_what_is_not_there_is_an_error_of_its_own(tmp_path: Path, folder: Path) -> None:
    captioner = pycap.load(member(tmp_path / "model"))
    captions = list(captioner.caption(["-", tmp_path / "gone.jpg", folder / NAMES[0], tmp_path / "gone.tar"]))
    assert [caption.error for caption in captions] == ["no such file", "no such file", "", "no such file"]


def test_a_store_of_images_is_captioned_by_a_model_of_its_size(tmp_path: Path, folder: Path) -> None:
    captioner = pycap.load(member(tmp_path / "model"))
    path = tmp_path / "s.h5"
    with ImageStore(path, SPEC.resize) as store:
        for name in NAMES[:2]:
            jpeg = encode_jpeg(decode_image(folder / name, SPEC.resize))
            store.put(Example(name, name, folder / name, ()), jpeg)
            (tmp_path / name).write_bytes(jpeg)
    same(said(list(captioner.caption(path))), said(list(captioner.caption([tmp_path / name for name in NAMES[:2]]))))
    other = pycap.load(member(tmp_path / "other", spec=PreprocessSpec(resize=70, crop=64)))
    with pytest.raises(DataError, match=r"s\.h5: holds images of 64 px, and the model takes 70; make it anew"):
        next(other.caption(path))


def test_features_are_taken_by_the_cnn_that_made_them(tmp_path: Path, folder: Path) -> None:
    one, other = member(tmp_path / "one"), member(tmp_path / "two", seed=9)
    path = features(pycap.load(one), folder, tmp_path / "f.h5")
    both = [cnn_origin(pycap.load(each).model.cnn, SPEC).weights[:16] for each in (one, other)]
    with pytest.raises(DataError, match=rf"f\.h5: holds features of .*{both[0]}.*, not of .*{both[1]}.*; make it anew"):
        next(pycap.load(other).caption(path))
    with pytest.raises(DataError, match=both[1]):  # each member of an ensemble is asked
        next(pycap.load([one, other]).caption(path))
    same(said(list(pycap.load([one, one]).caption(path))), said(list(pycap.load(one).caption(path))))


def test_features_and_images_are_two_jobs(tmp_path: Path, folder: Path) -> None:
    captioner = pycap.load(member(tmp_path / "model"))
    path = features(captioner, folder, tmp_path / "f.h5")
    with pytest.raises(DataError, match=r"f\.h5: holds features, and .*photos images; caption them into two files"):
        next(captioner.caption([path, folder]))


def test_the_command_takes_them_and_refuses_stores_of_others_before_it_begins(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, output = member(tmp_path / "one"), member(tmp_path / "two", seed=9), tmp_path / "out.jsonl"
    path = features(pycap.load(one), folder, tmp_path / "f.h5")
    code, _ = run(capsys, "caption", other, path, "--output", output)
    assert isinstance(code, str) and "f.h5: holds features of" in code
    assert not list(tmp_path.glob("out*"))
    code, _ = run(capsys, "caption", one, path, "--output", output)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert code == 0 and [row["file_name"] for row in rows] == [f"{path}/{name}" for name in NAMES if name != NAMES[2]]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"%s\n" % os.fsencode(folder / NAMES[0]))))
    code, text = run(capsys, "caption", one, "-")
    assert code == 0 and json.loads(text)["file_name"] == str(folder / NAMES[0])


def test_standard_input_is_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "current", lambda: SimpleNamespace(rank=0, size=2, local_rank=0, local_size=2))
    code, _ = run(capsys, "caption", member(tmp_path / "one"), "-", "--output", tmp_path / "out.jsonl")
    assert isinstance(code, str) and "only one has the standard input; write the list to a file" in code
