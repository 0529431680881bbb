"""pycap caption and pycap merge as they are typed, with a trained model."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pycap import device
from pycap.captioner import Caption, Captioner
from pycap.cli import main
from pycap.data.items import Item
from pycap.data.results import read_results
from tests.train.checkpoints import vouch


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int | str | None, str, str]:
    """Exit status, and what was printed on either stream."""
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in argv])
    printed = capsys.readouterr()
    code = exit.value.code
    return code, printed.out, printed.err + (code if isinstance(code, str) else "")


@pytest.fixture
def images(data: Path, tmp_path: Path) -> Path:
    """Ten images, and an eleventh, in the middle, that is cut short."""
    folder = tmp_path / "images"
    shutil.copytree(data / "val2017", folder)
    some = sorted(folder.iterdir())[4]
    some.with_stem(f"{some.stem}0").write_bytes(some.read_bytes()[:300])
    return folder


def stop(monkeypatch: pytest.MonkeyPatch, after: int, number: signal.Signals) -> None:
    """Have a signal come after some batches, once."""
    plain = Captioner.batches

    def stopped(self: Captioner, items: Iterable[Item], **how: Any) -> Iterator[Sequence[Caption]]:
        batches = plain(self, items, **how)
        yield from islice(batches, after - 1)
        os.kill(os.getpid(), number)
        yield from batches

    monkeypatch.setattr(Captioner, "batches", stopped)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_how_to_go_on_and_that_ends_in_the_same_bytes(
    trained: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    command = ["caption", trained, images, "--batch-size", 3, "--output"]
    whole, output = tmp_path / "whole.jsonl", tmp_path / "a.jsonl"
    assert run(capsys, *command, whole)[0] == 1
    with monkeypatch.context() as patch:
        stop(patch, 2, number)
        code, _, error = run(capsys, *command, output)
    partial = tmp_path / "a.jsonl.partial"
    assert code == 128 + number
    assert f"stopped; 6 images are done: {partial}; the same command with --resume goes on" in error
    assert not output.exists() and partial.read_bytes().count(b"\n") == 1 + 6
    code, out, error = run(capsys, *command, output, "--resume")
    assert code == 1 and f"10 captions: {output}" in out
    assert f"1 of 11 images could not be read: {tmp_path / 'a.failed.jsonl'}" in error
    assert output.read_bytes() == whole.read_bytes()
    assert run(capsys, *command, output, "--resume")[0] == 0


def test_an_error_on_the_way_says_what_is_kept(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Captioner.batches

    def failing(self: Captioner, items: Iterable[Item], **how: Any) -> Iterator[Sequence[Caption]]:
        yield next(plain(self, items, **how))
        raise MemoryError("of the GPU")

    command = ["caption", trained, images, "--batch-size", 3, "--output", tmp_path / "a"]
    monkeypatch.setattr(Captioner, "batches", failing)
    code, _, error = run(capsys, *command)
    assert f"{tmp_path / 'a'}.partial keeps what is captioned: the same command with --resume goes on" in error
    assert "out of memory (of the GPU); a smaller --batch-size" in error and code != 0
    code, _, error = run(capsys, *command)
    assert "keeps what is captioned" not in error and "is there already" in error


def test_shards_of_a_real_model_merge_to_the_same_bytes(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, output = tmp_path / "whole.json", tmp_path / "a.json"
    command = ["caption", trained, images, "--batch-size", 2, "--format", "coco", "--output"]
    run(capsys, *command, whole)
    code, out, _ = run(capsys, *command, output, "--shard", "1/2")
    assert code == 1 and f"5 captions: {output}.shard-1-of-2; when all shards are there: pycap merge {output}" in out
    code, _, error = run(capsys, "merge", output)
    assert "a.json.shard-2-of-2 is missing: caption it with --shard 2/2" in error and not output.exists()
    assert run(capsys, *command, output, "--shard", "2/2")[0] == 0
    code, out, error = run(capsys, "merge", output)
    assert code == 1 and f"10 captions of 2 shards: {output}" in out and "1 of 11 images could not be read" in error
    assert output.read_bytes() == whole.read_bytes()
    assert (tmp_path / "a.failed.jsonl").read_bytes() == (tmp_path / "whole.failed.jsonl").read_bytes()


def test_another_checkpoint_and_other_decoding_are_refused_by_name(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["caption", trained, images, "--batch-size", 3, "--output", tmp_path / "a"]
    with monkeypatch.context() as patch:
        stop(patch, 1, signal.SIGTERM)
        run(capsys, *command)
    other = tmp_path / "other"
    shutil.copytree(trained / "best", other)
    words = json.loads((other / "vocab.json").read_text())
    (other / "vocab.json").write_text(json.dumps(words, indent=3))
    vouch(other)
    for changed, named in (
        ([command[0], other, *command[2:]], f'checkpoints was ["{trained}'),
        ([*command, "--beam-size", 4], "decoding: beam size was 3 and is 4 now"),
        ([*command, "--temperature", 0.5], "decoding: sampling was none and is"),
        ([*command, "--max-length", 4], "decoding: max length was none and is 4 now"),
        ([*command, "--precision", "bf16"], 'precision was "fp32" and is "bf16" now'),
    ):
        code, _, error = run(capsys, *changed, "--resume")
        assert named in error and "Give what was given then" in error and code != 0
    code, _, error = run(capsys, *command)
    assert "--resume goes on with it, and to begin anew remove it" in error
    copy = tmp_path / "copy"  # the same checkpoint elsewhere is the same
    shutil.copytree(trained / "best", copy)
    assert run(capsys, command[0], copy, *command[2:], "--resume")[0] == 1


@pytest.mark.parametrize("form", ["jsonl", "coco", "csv", "imageclef"])
def test_the_screen_shows_what_a_file_would_hold(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    command = ["caption", trained, images, "--format", form]
    code, out, error = run(capsys, *command)
    assert code == 1 and error.splitlines()[-1] == "1 of 11 images could not be read"
    assert "corrupt or cut short" in error
    run(capsys, *command, "--output", tmp_path / "a")
    assert out.encode() == (tmp_path / "a").read_bytes() and len(read_results(tmp_path / "a")) == 10


def test_a_stop_on_the_screen_leaves_a_whole_list(
    trained: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(monkeypatch, 2, signal.SIGINT)
    code, out, _ = run(capsys, "caption", trained, images, "--format", "coco", "--batch-size", 2)
    assert code == 130 and len(json.loads(out)) == 4


def test_what_needs_a_file_asks_for_one(trained: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--resume"], ["--skip-existing"], ["--shard", "1/2"]):
        code, _, error = run(capsys, "caption", trained, images, *option)
        assert code != 0 and "needs a file to write to: name it with --output" in error
    code, _, error = run(capsys, "caption", trained, images, "--shard", "3/2")
    assert code == 2 and "'3/2' is not i/n" in error
    code, _, error = run(capsys, "caption", trained, images, "--fromat=csv")
    assert code == 2 and "unrecognized arguments: --fromat=csv (did you mean --format?)" in error


@pytest.mark.parametrize("output", ["images/000001000001.jpg", "images/new.PNG", "a.tar.gz", "a.h5", "list.txt"])
def test_captions_never_replace_what_is_captioned(
    output: str, trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{images / '000001000001.jpg'}\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    code, _, error = run(capsys, "caption", trained, listed, "--output", tmp_path / output)
    assert code != 0 and f"{tmp_path / output}: " in error and "name another" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("command", ["merge", "caption"])
def test_ctrl_c_before_the_work_begins_is_no_traceback(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pycap.cli._arguments", interrupted)
    assert run(capsys, command) == (130, "", "")


def test_a_sidecar_of_what_has_no_folder_is_refused(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = shutil.make_archive(str(tmp_path / "images"), "tar", images)
    command = ["caption", trained, archive, "--format", "txt-sidecar"]
    code, _, error = run(capsys, *command)
    assert code != 0 and "has no folder for a text file; name one with --output" in error
    (tmp_path / "texts").mkdir()
    assert run(capsys, *command, "--output", tmp_path / "texts")[0] == 1
    assert len(list((tmp_path / "texts").rglob("*.txt"))) == 10


def test_images_are_decoded_in_as_many_threads_as_the_device_leaves(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plain = [], Captioner.batches

    def batches(self: Captioner, items: Iterable[Item], **how: Any) -> Iterator[Sequence[Caption]]:
        asked.append(how["workers"])
        return plain(self, items, **how)

    monkeypatch.setattr(Captioner, "batches", batches)
    monkeypatch.setattr(device, "decoding_threads", lambda cpus, processes: 10 * cpus + processes)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run(capsys, "caption", trained, images, "--threads", 1, "--output", tmp_path / "a.jsonl")[0] == 1
    assert asked == [31]
