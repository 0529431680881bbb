"""Checksums of checkpoints: whatever byte changes is detected when it is loaded, and the file and the tensor are named."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pycap import checkpoint, tensorfile, weights
from pycap.checkpoint import CheckpointError, integrity
from pycap.data.images import PreprocessSpec
from pycap.data.vocab import Vocabulary
from tests.train.checkpoints import FILES, LISTED, arrays, parts, save, save_version_1, vouch, whole

pytestmark = pytest.mark.faults


def refused(folder: Path) -> str:
    """What loading it, as a run that goes on does, is refused with; and that a copy of it that is whole is not meant."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, optimizer=True)
    text = str(caught.value)
    assert text.startswith(str(folder)) and "\n" not in text and len(text) < 1000
    return text


def places(folder: Path, name: str) -> dict[str, tuple[int, int]]:
    """(first byte, byte after the last) of each tensor in a file."""
    content = (folder / name).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    del header["__metadata__"]
    return {key: (start + entry["data_offsets"][0], start + entry["data_offsets"][1]) for key, entry in header.items()}


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_any_byte_is_detected_and_named(tmp_path: Path, name: str) -> None:
    """Every byte of every file in turn, each changed in one way of the 255, drawn; tensors are named with their file."""
    folder = tmp_path / "last"
    save(folder, 1)
    tensors = places(folder, name) if name.endswith(".safetensors") else {}
    path = folder / name
    content = path.read_bytes()
    values = np.random.default_rng(0).integers(1, 256, len(content))
    named = set()
    for at, value in enumerate(values.tolist()):
        changed = bytearray(content)
        changed[at] ^= value
        path.write_bytes(changed)
        text = refused(folder)
        assert text.startswith(f"{path}: "), (at, value, text)
        hit = [tensor for tensor, (begin, end) in tensors.items() if begin <= at < end]
        assert re.findall(r"tensor (\S+) is damaged", text) == hit, (at, value, text)
        named.update(hit)
    assert named == {tensor for tensor, (begin, end) in tensors.items() if begin < end}
    path.write_bytes(content)
    assert whole(folder) == 1


@pytest.mark.parametrize("name", FILES)
def test_what_is_cut_off_or_added_is_detected(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "last"
    save(folder, 1)
    path = folder / name
    content = path.read_bytes()
    for changed in (content[:-1], content[: len(content) // 2], content[:1], content[1:], content + b"\n", content + b" x",
                    b"\n" + content, content * 2):  # fmt: skip
        path.write_bytes(changed)
        assert refused(folder).startswith(f"{path}: ")


def test_white_space_and_order_count(tmp_path: Path) -> None:
    """What means the same in JSON, in YAML and to sha256sum is another file all the same."""
    folder = tmp_path / "last"
    for name, change in {
        "state.json": lambda text: json.dumps(json.loads(text)),
        "vocab.json": lambda text: text.replace("\n", " "),
        "config.yaml": lambda text: text.replace("seed: 1", "seed:  1"),
        "SHA256SUMS": lambda text: "".join(sorted(text.splitlines(True), reverse=True)),
    }.items():
        save(folder, 1)
        text = (folder / name).read_text()
        assert change(text) != text
        (folder / name).write_text(change(text))
        assert refused(folder).startswith(f"{folder / name}: damaged")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.upper().replace("CONFIG", "config"),
        lambda text: text.replace("  model", " *model"),
        lambda text: text + text.splitlines(True)[0],
        lambda text: text + "0" * 64 + "  samples.html\n",
        lambda text: text + "0" * 64 + "  ../last/state.json\n",
        lambda text: "".join(text.splitlines(True)[1:]),
        lambda text: text.replace("vocab.json", "state.json"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "# by hand\n" + text,
        lambda text: "\ufeff" + text,
        lambda text: "\n",
    ],
)
def test_the_list_is_read_to_the_byte(tmp_path: Path, change: object) -> None:
    save(tmp_path / "last", 1)
    path = tmp_path / "last" / "SHA256SUMS"
    path.write_text(change(path.read_text()), newline="")  # type: ignore[operator]
    assert refused(tmp_path / "last").startswith(f"{path}: damaged (")


def test_every_line_but_the_optimisers_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save(folder, 1)
    lines = (folder / "SHA256SUMS").read_text().splitlines(True)
    for name, line in zip(LISTED, lines, strict=True):
        (folder / "SHA256SUMS").write_text("".join(other for other in lines if other != line))
        text = refused(folder)
        if name == "optimizer.safetensors":
            assert "optimizer.safetensors: not in SHA256SUMS, so of another save" in text
        else:
            assert f"SHA256SUMS: damaged (no line of {name})" in text


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_checkpoint_are_detected(tmp_path: Path, name: str) -> None:
    save(tmp_path / "last", 1)
    save(tmp_path / "other", 2, vocab=Vocabulary(["a", "cat", "runs"], threshold=2))
    shutil.copy(tmp_path / "other" / name, tmp_path / "last" / name)
    text = refused(tmp_path / "last")
    if name.endswith(".safetensors"):
        assert f"{name}: of another save than state.json beside it" in text
    elif name == "SHA256SUMS":
        assert f"{tmp_path / 'last' / 'state.json'}: damaged" in text  # the first that does not fit
    else:
        assert f"{name}: damaged" in text


def test_an_earlier_save_of_the_same_arrays_is_another_one(tmp_path: Path) -> None:
    """Two saves of the same run and step differ in their names alone; what one vouches for is not the other's."""
    for name in "ab":
        save(tmp_path / name, 1)
    for name in ("model.safetensors", "optimizer.safetensors"):
        own = (tmp_path / "a" / name).read_bytes()
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
        assert f"{name}: of another save than state.json" in refused(tmp_path / "a")
        (tmp_path / "a" / name).write_bytes(own)
    assert whole(tmp_path / "a") == 1


def test_swapped_tensors_are_both_named(tmp_path: Path) -> None:
    given = {"lm.w": np.arange(6.0), "cnn.w": np.arange(6.0) + 1, "third": np.zeros(3)}
    save(tmp_path / "last", 1, model=given)
    path = tmp_path / "last" / "model.safetensors"
    (a, b), (c, d) = (places(tmp_path / "last", path.name)[name] for name in ("lm.w", "cnn.w"))
    content = bytearray(path.read_bytes())
    content[a:b], content[c:d] = content[c:d], content[a:b]
    path.write_bytes(content)
    text = refused(tmp_path / "last")
    assert "tensors " in text and "lm.w" in text and "cnn.w" in text and "are damaged" in text and "third" not in text


def test_many_damaged_tensors_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "last", 1, model={f"t{i}": np.zeros(4) for i in range(8)})
    path = tmp_path / "last" / "model.safetensors"
    content = bytearray(path.read_bytes())
    for begin, _ in places(tmp_path / "last", path.name).values():
        content[begin] ^= 1
    path.write_bytes(content)
    assert "tensors t0, t1, t2, t3, t4, and 3 more are damaged" in refused(tmp_path / "last")


def test_a_damaged_list_is_told_from_a_damaged_file(tmp_path: Path) -> None:
    save(tmp_path / "last", 1)
    path = tmp_path / "last" / "SHA256SUMS"
    text = path.read_text()
    path.write_text(("1" if text[0] == "0" else "0") + text[1:])
    assert re.search(
        r"SHA256SUMS: damaged: it has SHA-256 \w{64} for config.yaml, whose own is \w{64}", refused(path.parent)
    )


def test_sha256sum_agrees(tmp_path: Path) -> None:
    """The list is one for the program of that name, also after the folder was copied; and says what the bytes are."""
    save(tmp_path / "last", 1)
    shutil.copytree(tmp_path / "last", tmp_path / "copy")
    for name, noted in integrity.read_sums(tmp_path / "copy").items():  # type: ignore[union-attr]
        assert hashlib.sha256((tmp_path / "copy" / name).read_bytes()).hexdigest() == noted
    if program := shutil.which("sha256sum"):
        command = [program, "--check", "--strict", "SHA256SUMS"]
        done = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [f"{name}: OK" for name in LISTED] and not done.stderr
    assert whole(tmp_path / "copy") == 1


def test_tensors_checksums_are_of_their_bytes(tmp_path: Path) -> None:
    """What a reader of safetensors other than ours finds in the metadata."""
    from safetensors import safe_open

    save(tmp_path / "last", 1)
    with safe_open(tmp_path / "last" / "model.safetensors", "numpy") as file:
        told = file.metadata()
        assert told.keys() == {"save_id", *(f"sha256:{name}" for name in arrays(1))}
        for name, array in arrays(1).items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
            assert told[f"sha256:{name}"] == hashlib.sha256(array.tobytes()).hexdigest()


def test_who_changes_a_file_by_hand_can_vouch_for_it(tmp_path: Path) -> None:
    save(tmp_path / "last", 1)
    path = tmp_path / "last" / "config.yaml"
    path.write_text(path.read_text().replace("epochs: ", "epochs:  "))
    assert "config.yaml: damaged" in refused(tmp_path / "last")
    vouch(tmp_path / "last")
    assert whole(tmp_path / "last") == 1


def test_a_captioner_does_not_read_the_optimisers_state(tmp_path: Path) -> None:
    save(tmp_path / "last", 1)
    path = tmp_path / "last" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    found = checkpoint.load(tmp_path / "last")
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors: tensor lm.bias.\w+ is damaged"):
        _ = found.optimizer


def test_what_the_disk_keeps_otherwise_is_noticed_before_the_earlier_one_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "last", 1)
    real = tensorfile._put

    def put(file: object, told: object, data: object) -> None:
        real(file, told, data)  # type: ignore[arg-type]
        file.seek(-1, 1)  # type: ignore[attr-defined]
        file.write(b"\x7f")  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(tensorfile, "_put", put)
        with pytest.raises(CheckpointError, match="last: cannot save: the disk keeps other bytes than it was given"):
            save(tmp_path / "last", 2)
    assert whole(tmp_path / "last") == 1 and [p.name for p in tmp_path.iterdir()] == ["last"]


def test_digest_means_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the bytes of three files, for both versions; of version 2 it is read from the list, and no tensor for it."""

    def of_bytes(folder: Path) -> str:
        told = hashlib.sha256()
        for name in ("model.safetensors", "vocab.json", "config.yaml"):
            told.update(hashlib.sha256((folder / name).read_bytes()).digest())
        return told.hexdigest()

    save(tmp_path / "a", 1)
    save_version_1(tmp_path / "b", 1)
    expected = {folder: of_bytes(folder) for folder in (tmp_path / "a", tmp_path / "b")}
    assert checkpoint.load(tmp_path / "b").digest == expected[tmp_path / "b"]
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert checkpoint.load(tmp_path / "a").digest == expected[tmp_path / "a"]
    state = (tmp_path / "a" / "state.json").read_text()  # no caption depends on it
    (tmp_path / "a" / "state.json").write_text(state.replace('"iteration": 1', '"iteration": 2'))
    vouch(tmp_path / "a")
    loaded = checkpoint.load(tmp_path / "a")
    save(tmp_path / "a", 2)  # takes the place of what was loaded, and is not what captions are made by
    assert loaded.digest == expected[tmp_path / "a"] != checkpoint.load(tmp_path / "a").digest


def test_a_cnns_origin_is_the_files_hash(tmp_path: Path) -> None:
    given = parts(1)["model"] | {"cnn.conv1_1.weight": np.zeros((4, 3, 3, 3), np.float32)}
    save(tmp_path / "best", 1, model=given, preprocess=PreprocessSpec(64, 64).to_dict())
    found = weights.trained.read(tmp_path / "best")
    assert found.sha256 == hashlib.sha256((tmp_path / "best" / "model.safetensors").read_bytes()).hexdigest()
