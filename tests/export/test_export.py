"""`pycap export`: what it writes, what it refuses, and that it writes all or nothing."""

from __future__ import annotations

import json
import os
import re
import sys

import numpy as np
import pytest

from pycap import checkpoint
from pycap.cli import main
from pycap.data.vocab import Vocabulary
from pycap.export import ExportError, folder
from pycap.export.command import export_onnx
from tests.export.models import VOCABULARY, save

FILES = {"encoder.onnx", "decoder.onnx", "vocab.json", "export.json"}


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path / "saved")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(path, **inputs):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path)).run(None, inputs)


def pixels(count, size=32):
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3), np.uint8)


# What is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nic", "merge"])
def test_the_command(tmp_path, capsys, kind):
    source, target = save(tmp_path / "saved", model=kind, resize=40), tmp_path / "deep" / "onnx"
    with pytest.raises(SystemExit) as done:
        main(["export", str(source), "--onnx", str(target)])
    assert done.value.code == 0
    said = capsys.readouterr().out
    state = "h, c, image" if kind == "merge" else "h, c"
    assert f"{target / 'encoder.onnx'}: images -> {state}; " in said
    assert f"words, {state} -> logprobs, next_h, next_c" in said and f"{kind} on vgg_micro, 32 px, 59 words" in said
    assert set(contents(target)) == FILES and list(target.parent.iterdir()) == [target]
    assert Vocabulary.load(target / "vocab.json") == VOCABULARY
    told = json.loads((target / "export.json").read_text())
    assert told["format"] == "pycap-onnx" and told["max_length"] == 9 and told["state"] == state.split(", ")
    assert told["checkpoint"] == {"sha256": checkpoint.load(source).digest}
    assert told["words"] == {"count": 59, "pad": 0, "start": 1, "end": 2, "unk": 3}
    assert told["image"] == checkpoint.load(source).preprocess and told["image"]["resize"] == 40


@pytest.mark.parametrize("kind", ["nic", "merge"])
def test_the_models_are_as_export_json_says(tmp_path, kind):
    import onnx

    export_onnx(save(tmp_path / "saved", model=kind), tmp_path / "onnx")
    told = json.loads((tmp_path / "onnx" / "export.json").read_text())

    def described(values):
        found = {}
        for value in values:
            kept = value.type.tensor_type
            shape = [dim.dim_param or dim.dim_value for dim in kept.shape.dim]
            found[value.name] = {
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(kept.elem_type).name,
                "shape": shape,
            }
        return found

    for part in ("encoder", "decoder"):
        model = onnx.load(tmp_path / "onnx" / told[part]["file"])
        assert list(told[part]["inputs"].items()) == list(described(model.graph.input).items())
        assert list(told[part]["outputs"].items()) == list(described(model.graph.output).items())
        assert [(kept.domain, kept.version) for kept in model.opset_import] == [("", told["versions"]["opset"])]
        assert model.ir_version == told["versions"]["ir"] == 8
        assert {p.key: p.value for p in model.metadata_props} == {"pycap.checkpoint": told["checkpoint"]["sha256"]}
    assert list(told["decoder"]["outputs"]) == ["logprobs", *(f"next_{part}" for part in told["state"])]
    assert list(told["encoder"]["outputs"]) == told["state"]


def test_rows_are_free_and_do_not_touch_each_other(saved, tmp_path):
    export_onnx(saved, tmp_path / "onnx")
    images = pixels(3)
    together = run(tmp_path / "onnx" / "encoder.onnx", images=images)
    for i, image in enumerate(images):
        alone = run(tmp_path / "onnx" / "encoder.onnx", images=image[None])
        # A row's sums may be taken in another order: 24 bits, 576 products at most.
        for whole, one in zip(together, alone, strict=True):
            assert np.abs(whole[i] - one[0]).max() <= 576 * 2**-24 * np.abs(whole).max()


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_never_said_has_no_probability(saved, tmp_path):
    export_onnx(saved, tmp_path / "onnx")
    h, c = run(tmp_path / "onnx" / "encoder.onnx", images=pixels(2))
    logprobs, *_ = run(tmp_path / "onnx" / "decoder.onnx", words=np.array([1, 7]), h=h, c=c)
    assert np.flatnonzero(np.isneginf(logprobs[0])).tolist() == [Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]
    assert logprobs.dtype == np.float32 and np.abs(np.exp(logprobs.astype(np.float64)).sum(1) - 1).max() < 59 * 2**-23


def test_a_model_trained_in_bfloat16_is_exported_in_float32(tmp_path):
    import onnx
    from onnx import numpy_helper

    source = save(tmp_path / "saved", precision="bf16")
    export_onnx(source, tmp_path / "onnx")
    held = {w.name: numpy_helper.to_array(w) for w in onnx.load(tmp_path / "onnx" / "encoder.onnx").graph.initializer}
    own = checkpoint.load(source).model
    assert held["cnn.fc7.weight"].dtype == np.float32 and np.array_equal(held["cnn.fc7.weight"], own["cnn.fc7.weight"])


def test_the_classifier_of_words_stays_at_home(tmp_path):
    export_onnx(save(tmp_path / "with", pretrain_words=1), tmp_path / "onnx")
    import onnx

    names = {
        w.name for part in ("encoder", "decoder") for w in onnx.load(tmp_path / f"onnx/{part}.onnx").graph.initializer
    }
    assert "projection.weight" in names and not [name for name in names if "word_head" in name]


def test_weights_that_are_too_many_stand_beside_the_model(saved, tmp_path, monkeypatch):
    export_onnx(saved, tmp_path / "inside")
    monkeypatch.setattr(folder, "MOST_INSIDE", 4096)
    export_onnx(saved, tmp_path / "beside")
    assert set(contents(tmp_path / "beside")) == FILES | {"encoder.onnx.data", "decoder.onnx.data"}
    assert (tmp_path / "beside" / "encoder.onnx").stat().st_size < (
        tmp_path / "beside" / "encoder.onnx.data"
    ).stat().st_size
    inside, beside = (run(tmp_path / place / "encoder.onnx", images=pixels(2)) for place in ("inside", "beside"))
    assert all(np.array_equal(one, other) for one, other in zip(inside, beside, strict=True))


# The check of what was written -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("kind", ["nic", "merge"])
def test_what_was_written_is_run_beside_the_model(tmp_path, onnxruntime_standin, kind):
    said = []
    export_onnx(save(tmp_path / "saved", model=kind), tmp_path / "onnx", said.append)
    found = re.search(r"of 5 words of 2 random images differ from pycap's by (\S+) at most", "\n".join(said))
    assert found and 0 < float(found[1]) < 1e-4


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("where", "wrong"),
    [("graph._GATES", (0, 1, 2, 3)), ("captioners.channels_first", lambda inputs, _: np.arange(inputs))],
)
def test_a_wrong_layout_is_found_before_it_stands(saved, tmp_path, monkeypatch, onnxruntime_standin, where, wrong):
    monkeypatch.setattr(f"pycap.export.{where}", wrong)
    with pytest.raises(ExportError, match="differ from pycap's by"):
        export_onnx(saved, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == [saved]


def test_without_onnxruntime_the_check_says_so(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = []
    export_onnx(saved, tmp_path / "onnx", said.append)
    assert "not run: ONNX Runtime is not installed (pip install onnxruntime)" in "\n".join(said)


# What is refused ------------------------------------------------------------------------------------------------------


def test_without_onnx_the_remedy_is_told(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit, match=r"pip install \"pycap-captioning\[onnx\]\""):
        main(["export", str(saved), "--onnx", str(tmp_path / "onnx")])
    assert not (tmp_path / "onnx").exists()


def test_a_classifier_is_no_captioner(tmp_path):
    source = save(tmp_path / "saved", stage="pretrain")
    with pytest.raises(SystemExit, match=f"{source}: a classifier of 55 classes"):
        main(["export", str(source), "--onnx", str(tmp_path / "onnx")])
    assert list(tmp_path.iterdir()) == [source]


def test_an_ensemble_is_exported_a_member_at_a_time(saved, tmp_path, capsys):
    with pytest.raises(ExportError, match="export each member"):
        export_onnx([saved, saved], tmp_path / "onnx")  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as refused:
        main(["export", str(saved), "--ensemble", str(saved), "--onnx", str(tmp_path / "onnx")])
    assert refused.value.code == 2 and "unrecognized arguments: --ensemble" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_told(tmp_path):
    source = save(tmp_path / "saved", spoilt="lstm.bias")
    with pytest.raises(ExportError, match=f"{source}: lstm.bias holds numbers that are not finite"):
        export_onnx(source, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == [source]


def test_what_is_no_checkpoint_is_told(tmp_path):
    with pytest.raises(SystemExit, match="nowhere: no such folder"):
        main(["export", str(tmp_path / "nowhere"), "--onnx", str(tmp_path / "onnx")])


@pytest.mark.parametrize(
    ("name", "text"),
    [("photo.jpg", "x"), ("export.json", "{"), ("export.json", "[]"), ("export.json", '{"format": "another"}')],
)
def test_a_folder_of_other_things_is_left_alone(saved, tmp_path, name, text):
    target = tmp_path / "onnx"
    target.mkdir()
    (target / name).write_text(text)
    with pytest.raises(SystemExit, match=f"{target}: holds {name}, which is no export"):
        main(["export", str(saved), "--onnx", str(target)])
    assert contents(target) == {name: text.encode()}


def test_what_a_user_put_beside_an_export_is_not_lost(saved, tmp_path):
    target = tmp_path / "onnx"
    export_onnx(saved, target)
    (target / "notes.txt").write_text("mine")
    before = contents(target)
    with pytest.raises(ExportError, match="holds notes.txt, which is no export"):
        export_onnx(save(tmp_path / "other", seed=6), target)
    assert contents(target) == before


def test_a_link_to_a_folder_stays_one(saved, tmp_path):
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        export_onnx(saved, tmp_path / "link")
        assert os.readlink(tmp_path / "link") == "real" and set(contents(tmp_path / "real")) == FILES


def test_a_file_is_no_folder(saved, tmp_path):
    (tmp_path / "onnx").write_text("mine")
    with pytest.raises(ExportError, match="onnx: is no folder"):
        export_onnx(saved, tmp_path / "onnx")
    assert (tmp_path / "onnx").read_text() == "mine"


# All or nothing -------------------------------------------------------------------------------------------------------


def test_an_earlier_export_and_an_empty_folder_are_replaced(saved, tmp_path):
    target = tmp_path / "onnx"
    target.mkdir()
    export_onnx(saved, target)
    first = contents(target)
    export_onnx(save(tmp_path / "other", seed=6), target)
    assert set(contents(target)) == FILES and contents(target)["encoder.onnx"] != first["encoder.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "other", "saved"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["onnx.save_model", "onnx.checker.check_model", "pycap.export.command.compare"])
def test_an_export_that_fails_changes_nothing(saved, tmp_path, monkeypatch, where, error):
    target = tmp_path / "onnx"
    for standing in (False, True):
        if standing:
            export_onnx(saved, target)
        before = contents(target) if standing else None
        with monkeypatch.context() as patch:

            def fail(*args, **kwargs):
                raise error

            patch.setattr(where, fail)
            with pytest.raises(type(error) if isinstance(error, OSError) else error):
                export_onnx(save(tmp_path / "other", seed=6), target)
        assert (contents(target) if standing else None) == before and target.exists() == standing
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_export_is_on_the_disk_before_it_stands(saved, tmp_path, monkeypatch):
    synced, sync, rename = set(), os.fsync, os.rename

    def noted(file):
        synced.add(os.fstat(file).st_ino)
        sync(file)

    def moved(source, to):
        assert synced >= {path.stat().st_ino for path in source.iterdir()}
        rename(source, to)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", moved)
    export_onnx(saved, tmp_path / "onnx")
    assert tmp_path.stat().st_ino in synced  # the new name, too


def test_a_folder_that_cannot_be_moved_in_leaves_the_earlier_export(saved, tmp_path, monkeypatch):
    target = tmp_path / "onnx"
    export_onnx(saved, target)
    before, real = contents(target), os.rename

    def rename(source, to):
        if source.name == ".onnx.pycap-new":
            raise PermissionError(13, "Permission denied")
        real(source, to)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PermissionError):
        export_onnx(save(tmp_path / "other", seed=6), target)
    assert contents(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "other", "saved"]


def test_a_kill_between_the_renames_loses_no_export(saved, tmp_path, monkeypatch):
    target = tmp_path / "onnx"
    export_onnx(saved, target)
    before, real = contents(target), os.rename

    class Killed(BaseException):
        """The process is gone: nothing is cleaned up."""

    def rename(source, to):
        if to == target:
            raise Killed
        real(source, to)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(Killed):
        export_onnx(saved, target)
    assert not target.exists()
    monkeypatch.undo()
    monkeypatch.setattr("onnx.save_model", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_onnx(saved, target)
    assert contents(target) == before
