"""Checkpoints: exact round trips, and that full disks, crashes and damaged files never cost an earlier one."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycap import checkpoint
from pycap.checkpoint import Checkpoint, CheckpointError, layout, reading
from pycap.config import TrainConfig
from pycap.data.vocab import Vocabulary
from tests.train.checkpoints import FILES, PREPROCESS, VOCAB, arrays, save, vouch, whole


def test_round_trip_is_exact(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run" / "last"
    save(folder, 3)
    found = checkpoint.load(folder)
    assert isinstance(found, Checkpoint) and found.folder == folder
    assert found.state == {"iteration": 3, "rng": {"state": 2**127 + 3}, "best": 0.1 + 0.2}
    assert found.model.keys() == arrays(3).keys()
    for name, array in arrays(3).items():
        assert found.model[name].dtype == array.dtype and found.model[name].shape == array.shape
        assert (found.model[name] == array).all() and found.model[name].flags.writeable
    assert found.optimizer is not None and found.optimizer["lm.bias.step"].shape == ()
    assert int(found.optimizer["lm.bias.step"]) == 3
    assert found.vocab == VOCAB and found.preprocess == PREPROCESS
    assert found.config == TrainConfig(stage="coco", learning_rate=1e-5, seed=3)
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert [p.name for p in folder.parent.iterdir()] == ["last"]
    assert {p.name for p in folder.iterdir() if p.stat().st_mode & 0o044 != 0o044} == set()


def test_state_takes_numpy_numbers_and_strided_arrays_are_written_right(tmp_path: Path) -> None:
    strided = np.arange(12, dtype=np.float32).reshape(3, 4).T
    save(tmp_path / "c", 1, state={"n": np.int64(4), "x": np.float32(0.5), "p": Path("a")}, model={"w": strided})
    found = checkpoint.load(tmp_path / "c")
    assert found.state == {"n": 4, "x": 0.5, "p": "a"}
    np.testing.assert_array_equal(found.model["w"], strided)
    with pytest.raises(TypeError, match="state holds ndarray"):
        save(tmp_path / "c", 2, state={"n": np.zeros(3)})
    assert checkpoint.load(tmp_path / "c").state["n"] == 4


def test_without_optimizer(tmp_path: Path) -> None:
    save(tmp_path / "best", 1, optimizer=None)
    assert checkpoint.load(tmp_path / "best").optimizer is None
    save(tmp_path / "best", 2)
    (tmp_path / "best" / "optimizer.safetensors").unlink()  # slimmed down by hand it still captions, and resumes no run
    found = checkpoint.load(tmp_path / "best")
    assert found.state["iteration"] == 2
    with pytest.raises(
        CheckpointError, match=r"optimizer.safetensors: missing, and SHA256SUMS lists it; .*--init-from"
    ):
        _ = found.optimizer


def test_a_run_stands_for_its_best_or_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run / "last", 2)
    assert whole(run) == 2
    save(run / "best", 1)
    assert (whole(run), whole(run, "last"), whole(run / "last")) == (1, 2, 2)
    assert checkpoint.find(run, "last") == run / "last"


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="photos: holds other things"):
        save(folder, 1)
    assert [p.name for p in folder.iterdir()] == ["holiday.jpg"]
    (folder / "holiday.jpg").unlink()
    save(folder, 1)
    assert whole(folder) == 1


def steps_of_save(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call act(n) before the n-th file operation that `save` makes."""
    count = 0

    def hook(module: Any, name: str) -> None:
        real = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            act(count)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    for module, name in ((os, "fsync"), (os, "rename"), (shutil, "rmtree"), (os, "chmod"), (os, "replace")):
        hook(module, name)


def count_steps(tmp_path: Path) -> int:
    total = 0

    def note(n: int) -> None:
        nonlocal total
        total = n

    save(tmp_path / "count", 1)
    with pytest.MonkeyPatch.context() as patch:
        steps_of_save(patch, note)
        save(tmp_path / "count", 2)
    return total


@pytest.mark.faults
@pytest.mark.parametrize("first", [True, False])
def test_killed_at_every_step_a_whole_checkpoint_stands(tmp_path: Path, first: bool) -> None:
    """The process dies before each file operation in turn; what is loaded then is whole, and the next save works."""
    total = count_steps(tmp_path)
    assert total > 12
    seen = set()
    for step in range(1, total + 1):
        folder = tmp_path / f"run{step}" / "last"
        if not first:
            save(folder, 1)
        child = os.fork()
        if child == 0:
            with pytest.MonkeyPatch.context() as patch:
                steps_of_save(patch, lambda n, step=step: os._exit(9) if n == step else None)
                save(folder, 2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) in ((0, 9) if first else (9,))
        try:
            seen.add(whole(folder))
            assert whole(folder.parent, "last") in (1, 2)
        except CheckpointError as error:
            assert first and "no such folder" in str(error)
        save(folder, 3)
        assert whole(folder) == 3
        assert [p.name for p in folder.parent.iterdir()] == ["last"]
    assert seen == ({2} if first else {1, 2})


@pytest.mark.faults
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_step_keeps_the_earlier_checkpoint(tmp_path: Path, code: int) -> None:
    total = count_steps(tmp_path)
    stood = []
    for step in range(1, total + 1):
        folder = tmp_path / f"run{step}" / "last"
        save(folder, 1)

        def fail(n: int, step: int = step) -> None:
            if n == step:
                raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            steps_of_save(patch, fail)
            with pytest.raises(CheckpointError) as caught:
                save(folder, 2)
        text = str(caught.value)
        assert str(folder) in text and "earlier checkpoints are whole" in text
        assert ("the disk is full" in text) == (code != errno.EIO)
        stood.append(whole(folder))
        save(folder, 3)
        assert whole(folder) == 3 and [p.name for p in folder.parent.iterdir()] == ["last"]
    # The last three steps move the new one in, sync the folder and delete the old one: the new one is whole by then.
    assert stood == [1] * (total - 3) + [2] * 3


@pytest.mark.faults
def test_the_one_before_is_no_stand_in_for_a_damaged_one(tmp_path: Path) -> None:
    """Killed before the old one was deleted; later somebody empties the new one: an error, not an old result."""
    save(tmp_path / "last", 1)
    shutil.copytree(tmp_path / "last", layout.siblings(tmp_path / "last")[1])
    for file in (tmp_path / "last").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match=r"last: no checkpoint"):
        checkpoint.load(tmp_path / "last")


@pytest.mark.faults
def test_an_early_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run" / "last"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="disk is full"):
            save(folder, 1)
    assert list(folder.parent.iterdir()) == []
    save(folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Vocabulary, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(folder, 2)
    assert whole(folder) == 1 and [p.name for p in folder.parent.iterdir()] == ["last"]


@pytest.mark.faults
def test_a_write_that_the_system_cuts_off(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the operating system itself refuses, inside safetensors."""
    folder = tmp_path / "run" / "last"
    save(folder, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="the disk is full"):
            save(folder, 2, model={"w": np.ones(500_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert whole(folder) == 1 and [p.name for p in folder.parent.iterdir()] == ["last"]


@pytest.mark.faults
def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run" / "last"
    save(folder, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
    with pytest.raises(CheckpointError, match=r"needs 6\.0 MiB and the disk has 5\.0 MiB free; free space or give"):
        save(folder, 2, model={"w": np.zeros(1 << 19, np.float32)}, optimizer=None)
    assert whole(folder) == 1 and [p.name for p in folder.parent.iterdir()] == ["last"]


@pytest.mark.faults
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot save"):
        save(tmp_path / "file" / "last", 1)


def watch_reads(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Call before(n) before the n-th file of a checkpoint is looked at, but for those that before() itself looks at."""
    count, busy = 0, False
    real = layout.require

    def require(path: Path) -> None:
        nonlocal count, busy
        if not busy:
            busy, count = True, count + 1
            before(count)
            busy = False
        real(path)

    monkeypatch.setattr(layout, "require", require)
    monkeypatch.setattr(reading, "require", require)


READS = 8  # of one load with the optimiser's state: the texts twice but for the list, the arrays once


@pytest.mark.parametrize("when", range(1, READS + 1))
def test_a_save_between_two_reads_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """The folder is replaced while it is read, before each of its files in turn, and once more on the next try."""
    run = tmp_path / "run"
    save(run / "last", 1)
    seen = []

    def replace(n: int) -> None:
        seen.append(n)
        if n in (when, when + READS - 1):
            save(run / "last", n + 10)

    watch_reads(monkeypatch, replace)
    found = checkpoint.load(run, optimizer=True)
    number = found.state["iteration"]
    assert len(seen) > when and number in (when + 10, when + READS + 9)
    assert (found.model["lm.embed.weight"] == number).all() and found.config.seed == number
    assert found.optimizer is not None and (found.optimizer["lm.bias.m"] == number).all()


def test_every_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "last", 1)
    seen: list[int] = []
    watch_reads(monkeypatch, seen.append)
    checkpoint.load(tmp_path / "last", optimizer=True)
    assert seen[-1] == READS


def test_a_folder_replaced_without_end_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "last", 1)
    watch_reads(monkeypatch, lambda _: save(tmp_path / "last", 2))
    with pytest.raises(CheckpointError, match="replaced faster than it can be read"):
        checkpoint.load(tmp_path / "last")


def test_a_save_that_ends_while_its_folder_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is absent at first sight (between the renames) and stands there at the second."""
    save(tmp_path / "last", 1)
    real = layout._is_checkpoint
    answers = [False]
    monkeypatch.setattr(layout, "_is_checkpoint", lambda folder: answers.pop() if answers else real(folder))
    assert checkpoint.find(tmp_path / "last") == tmp_path / "last"


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
def test_missing_and_empty_files_are_named(tmp_path: Path, name: str) -> None:
    save(tmp_path / "c", 1)
    (tmp_path / "c" / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{name}: zero bytes"):
        checkpoint.load(tmp_path / "c", optimizer=True)
    (tmp_path / "c" / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: missing"):
        checkpoint.load(tmp_path / "c", optimizer=True)


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.97])
def test_truncated_files_are_named(tmp_path: Path, name: str, part: float) -> None:
    save(tmp_path / "c", 1)
    path = tmp_path / "c" / name
    content = path.read_bytes()
    path.write_bytes(content[: max(int(len(content) * part), 1)])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoint.load(tmp_path / "c", optimizer=True)


@pytest.mark.faults
def test_noise_in_files_gives_a_checkpoint_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    save(tmp_path / "c", 1)
    for name in FILES:
        path = tmp_path / "c" / name
        content = path.read_bytes()
        path.write_bytes(rng.bytes(len(content)))
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            checkpoint.load(tmp_path / "c", optimizer=True)
        path.write_bytes(content)
    assert whole(tmp_path / "c") == 1


@pytest.mark.faults
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "not the state of a pycap checkpoint"),
        ('{"iteration": 3}', "not the state of a pycap checkpoint"),
    ],
)
def test_foreign_states_are_refused(tmp_path: Path, text: str, says: str) -> None:
    save(tmp_path / "c", 1)
    (tmp_path / "c" / "state.json").write_text(text)
    vouch(tmp_path / "c")
    with pytest.raises(CheckpointError, match=rf"state\.json: {says}"):
        checkpoint.load(tmp_path / "c")


def test_what_is_no_checkpoint_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        checkpoint.load(tmp_path / "nowhere")
    (tmp_path / "x.safetensors").write_text("x")
    with pytest.raises(CheckpointError, match="is a file; a checkpoint is a folder"):
        checkpoint.load(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint: .* \(it holds x\.safetensors\)"):
        checkpoint.load(tmp_path)


def test_match_names_both_sides() -> None:
    model = {"a": np.zeros((3, 4)), "b": np.zeros(2), "old.w": np.zeros(1)}
    checkpoint.match(model, {"a": (3, 4), "b": (2,), "old.w": (1,)})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.match(model, {"a": (3, 5), "b": (2,), "new.w": (1,)}, "runs/x/best")
    text = str(caught.value)
    assert text.startswith("runs/x/best: of another architecture")
    assert "1 missing: new.w; 1 unexpected: old.w; 1 of another shape: a is (3, 4) there, (3, 5) in the model" in text
    with pytest.raises(CheckpointError, match=r"7 missing: n0, n1, n2, n3, n4, \.\.\.;"):
        checkpoint.match(model, {f"n{i}": (1,) for i in range(7)})
