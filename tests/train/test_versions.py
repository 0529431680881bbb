"""Versions of checkpoints: the one before is read and told so, others are refused with what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pycap import __version__, checkpoint
from pycap.checkpoint import CheckpointError, CheckpointWarning
from pycap.tensorfile import map_arrays
from tests.train.checkpoints import arrays, save, save_version_1, vouch, whole


def change(folder: Path, **header: Any) -> None:
    """Give a checkpoint's state another header, `...` to leave a part of it out, and vouch for it."""
    state = json.loads((folder / "state.json").read_text()) | header
    (folder / "state.json").write_text(json.dumps({key: value for key, value in state.items() if value is not ...}))
    if (folder / "SHA256SUMS").exists():
        vouch(folder)


def test_version_1_is_read_and_told(tmp_path: Path) -> None:
    save_version_1(tmp_path / "last", 3)
    with pytest.warns(
        CheckpointWarning, match=r"last: a checkpoint of version 1, without checksums: .*nothing vouches"
    ):
        found = checkpoint.load(tmp_path / "last", optimizer=True)
    assert found.sums is None and found.state["iteration"] == 3 and found.config.seed == 3
    assert found.optimizer is not None and (found.optimizer["lm.bias.m"] == 3).all()
    for name, array in arrays(3).items():
        np.testing.assert_array_equal(found.model[name], array)


def test_version_1_is_told_once(tmp_path: Path) -> None:
    """Under Python's own rules, which pytest sets aside: of two loads of one folder the first tells, of two folders each."""
    for name in "ab":
        save_version_1(tmp_path / name, 1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for name in "aabab":
            checkpoint.load(tmp_path / name)
    assert [str(warning.message).partition(":")[0] for warning in told] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_save_over_version_1_is_of_version_2(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    save_version_1(tmp_path / "last", 1)
    save(tmp_path / "last", 2)
    assert whole(tmp_path / "last") == 2 and not recwarn.list
    header = json.loads((tmp_path / "last" / "state.json").read_text())
    assert (header["version"], header["pycap"]) == (2, __version__)


@pytest.mark.filterwarnings("ignore::pycap.checkpoint.CheckpointWarning")
@pytest.mark.faults
def test_what_was_refused_in_version_1_still_is(tmp_path: Path) -> None:
    save_version_1(tmp_path / "last", 1, "a")
    save_version_1(tmp_path / "other", 1, "b")
    for name in ("model.safetensors", "optimizer.safetensors"):
        path = tmp_path / "last" / name
        own = path.read_bytes()
        path.write_bytes(own[:-1])
        with pytest.raises(CheckpointError, match=rf"{name}: truncated or damaged"):
            checkpoint.load(tmp_path / "last", optimizer=True)
        path.write_bytes((tmp_path / "other" / name).read_bytes())
        with pytest.raises(CheckpointError, match=rf"{name}: of another save than state.json"):
            checkpoint.load(tmp_path / "last", optimizer=True)
        path.write_bytes(own)
    assert whole(tmp_path / "last") == 1


@pytest.mark.faults
def test_a_newer_version_is_refused_with_who_wrote_it(tmp_path: Path) -> None:
    save(tmp_path / "last", 1)
    change(tmp_path / "last", version=3, pycap="7.1.0")
    said = (
        rf"state\.json: checkpoint version 3, written by pycap 7\.1\.0; this pycap, {__version__}, reads versions 1 to 2: "
        r"update it \(pip install --upgrade pycap-captioning\), or use the pycap that wrote the checkpoint"
    )
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(tmp_path / "last")
    (tmp_path / "last" / "SHA256SUMS").write_text("# of a form that is yet to come\n" * 100)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(tmp_path / "last")
    (tmp_path / "last" / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(tmp_path / "last")
    change(tmp_path / "last", pycap=...)
    with pytest.raises(CheckpointError, match="checkpoint version 3; this pycap"):
        checkpoint.load(tmp_path / "last")


@pytest.mark.faults
@pytest.mark.parametrize("version", [0, -1, 1.0, 2.0, "2", "1", None, True, [2], {"2": 2}, float("nan"), ...])
@pytest.mark.parametrize("first", [True, False])
def test_what_is_no_version_is_refused(tmp_path: Path, version: object, first: bool) -> None:
    (save_version_1 if first else save)(tmp_path / "last", 1)
    change(tmp_path / "last", version=version)
    with pytest.raises(
        CheckpointError, match=r"state\.json: checkpoint version .* which no pycap wrote \(versions are 1 to 2\)"
    ):
        checkpoint.load(tmp_path / "last")


@pytest.mark.faults
def test_a_flip_makes_no_version_1_of_a_version_2(tmp_path: Path) -> None:
    """Neither the number nor the list alone decides: else one lost file or byte would leave nothing to compare with."""
    save(tmp_path / "last", 1)
    state = (tmp_path / "last" / "state.json").read_text()
    sums = (tmp_path / "last" / "SHA256SUMS").read_text()
    (tmp_path / "last" / "SHA256SUMS").unlink()
    with pytest.raises(
        CheckpointError, match=r"SHA256SUMS: missing, so nothing says whether the other files are whole"
    ):
        checkpoint.load(tmp_path / "last")
    change(tmp_path / "last", version=1)
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: has checksums, which checkpoints of version 1 had not"
    ):
        checkpoint.load(tmp_path / "last")
    (tmp_path / "last" / "SHA256SUMS").write_text(sums)
    with pytest.raises(CheckpointError, match=r"state.json: damaged"):
        checkpoint.load(tmp_path / "last")
    vouch(tmp_path / "last")
    with pytest.raises(CheckpointError, match=r"state.json: checkpoint version 1, which had no SHA256SUMS"):
        checkpoint.load(tmp_path / "last")
    (tmp_path / "last" / "state.json").write_text(state)
    (tmp_path / "last" / "SHA256SUMS").write_text(sums)
    assert whole(tmp_path / "last") == 1


@pytest.mark.faults
@pytest.mark.parametrize("parts", [{"state": ...}, {"state": [1]}, {"save_id": ...}, {"save_id": 3}])
def test_a_state_without_its_parts_is_refused(tmp_path: Path, parts: dict[str, Any]) -> None:
    save(tmp_path / "last", 1)
    change(tmp_path / "last", **parts)
    with pytest.raises(CheckpointError, match=r"state\.json: no state or no save_id in it"):
        checkpoint.load(tmp_path / "last")


@pytest.mark.parametrize("text", ["[]", '"pycap-checkpoint"', "{}", '{"format": "another", "version": 2}'])
def test_another_programs_state_is_refused(tmp_path: Path, text: str) -> None:
    save(tmp_path / "last", 1)
    (tmp_path / "last" / "state.json").write_text(text)
    vouch(tmp_path / "last")
    with pytest.raises(CheckpointError, match=r"state\.json: not the state of a pycap checkpoint"):
        checkpoint.load(tmp_path / "last")


def test_commands_tell_of_version_1_in_a_line(tmp_path: Path, trained: Path) -> None:
    """As typed, in a process of its own: the warning is a line of pycap's, once, and the captions are there."""
    data = sorted((trained / "best").iterdir())
    folder = tmp_path / "best"
    folder.mkdir()
    for path in data:
        if path.name != "SHA256SUMS":
            shutil.copy(path, folder / path.name)
    arrays, metadata = map_arrays(folder / "model.safetensors")
    save_file({name: array.copy() for name, array in arrays.items()}, folder / "new", {"save_id": metadata["save_id"]})
    (folder / "new").replace(folder / "model.safetensors")
    change(folder, version=1)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    command = [
        sys.executable,
        "-c",
        "from pycap.cli import main; main()",
        "caption",
        str(folder),
        str(tmp_path / "a.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and "a.png" in done.stdout
    assert done.stderr.count("version 1") == 1
    assert done.stderr.startswith(f"pycap caption: warning: {folder}: a checkpoint of version 1, without checksums")
