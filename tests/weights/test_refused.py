"""What is no whole VGG is refused by name: missing, unexpected and misshapen arrays, damaged files, hostile pickles."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from pycap import weights
from pycap.weights import pickled
from tests.weights import forms

NET = ("vgg11", 0.125, 64, 12)


def _state(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = {**forms.state_dict(forms.torch_net(*NET)), **{name.replace("__", "."): a for name, a in changed.items()}}
    return {name: array for name, array in arrays.items() if array is not None}


ZEROS = np.zeros


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"features__8__weight": None, "features__8__bias": None}, "nearest is vgg11: missing features.8"),
        ({"features__8__bias": None}, "1 missing: conv3_2.bias"),
        ({"classifier__3__weight": None}, "1 missing: fc7.weight"),
        ({"features__9__weight": ZEROS(3, np.float32)}, "unexpected features.9"),
        ({"classifier__9__weight": ZEROS(3, np.float32)}, "unexpected classifier.9.weight"),
        ({"features__1__running_mean": ZEROS(3, np.float32)}, "batch normalisation"),
        ({"features__0__weight": ZEROS((8, 3, 5, 5), np.float32)}, r"features.0.weight has the shape \[8, 3, 5, 5\]"),
        ({"features__0__weight": ZEROS((8, 4, 3, 3), np.float32)}, r"should have \[any, 3, 3, 3\]"),
        ({"features__3__weight": ZEROS((16, 9, 3, 3), np.float32)}, r"conv2_1.weight has the shape \[16, 3, 3, 9\]"),
        ({"features__3__bias": ZEROS(7, np.float32)}, r"conv2_1.bias has the shape \[7\]"),
        ({"features__0__weight": ZEROS((0, 3, 3, 3), np.float32)}, "features.0.weight has the shape"),
        ({"classifier__0__weight": ZEROS((12, 64 * 5), np.float32)}, "fc6 reads 320 values, which is no square map"),
        ({"classifier__0__bias": ZEROS(11, np.float32)}, r"fc6.bias has the shape \[11\]"),
        ({"classifier__3__weight": ZEROS((12, 13), np.float32)}, r"fc7.weight has the shape \[12, 13\]"),
        ({"features__0__bias": ZEROS(8, np.int64)}, "conv1_1.bias holds int64"),
        ({"features__0__bias": np.full(8, np.nan, np.float32)}, "not all finite: conv1_1.bias"),
    ],
)  # fmt: skip
def test_what_does_not_belong_to_a_vgg_is_named(
    tmp_path: Path, changed: dict[str, np.ndarray | None], said: str
) -> None:
    path = forms.write_safetensors(tmp_path / "w.safetensors", _state(**changed))
    with pytest.raises(weights.WeightsError, match=said) as caught:
        weights.load(path)
    assert str(path) in str(caught.value)


def test_keras_of_theanos_ordering_and_foreign_datasets_are_named(tmp_path: Path) -> None:
    net = forms.keras_net("vgg16", 0.125, 64, 12)
    theano = {n: (k.transpose(3, 2, 0, 1) if k.ndim == 4 else k, b) for n, (k, b) in net.layers.items()}
    path = forms.write_keras(tmp_path / "th.h5", forms.Net(net.blocks, net.side, theano))
    with pytest.raises(weights.WeightsError, match="TensorFlow's ordering"):
        weights.load(path)
    with h5py.File(forms.write_keras(tmp_path / "w.h5", net), "a") as file:
        file["lstm/kernel:0"] = np.zeros(3)
    with pytest.raises(weights.WeightsError, match="unexpected lstm/kernel:0"):
        weights.load(tmp_path / "w.h5")
    del net.layers["block5_conv3"]
    with pytest.raises(weights.WeightsError, match="nearest is vgg16: missing conv5_3"):
        weights.load(forms.write_keras(tmp_path / "less.h5", net))


def test_frossards_unknown_and_pickled_arrays_are_refused(tmp_path: Path) -> None:
    net = forms.frossard_net("vgg16", 0.125, 64, 12)
    net.layers["extra"] = (np.zeros(2), np.zeros(2))
    with pytest.raises(weights.WeightsError, match="unexpected extra_W, extra_b"):
        weights.load(forms.write_frossard(tmp_path / "w.npz", net))
    np.savez(tmp_path / "objects.npz", conv1_1_W=np.array([{}], dtype=object))
    with pytest.raises(weights.WeightsError, match="allow_pickle"):
        weights.load(tmp_path / "objects.npz")


@pytest.mark.parametrize("kind", ["h5", "npz", "safetensors", "pth", "older_pth"])
@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_files_cut_short_are_refused(tmp_path: Path, kind: str, keep: float) -> None:
    path, net = tmp_path / "w", forms.torch_net(*NET)
    if kind == "h5":
        forms.write_keras(path, forms.keras_net("vgg16", 0.125, 64, 12))
    elif kind == "npz":
        path = forms.write_frossard(tmp_path / "w.npz", forms.frossard_net("vgg16", 0.125, 64, 12))
    else:
        write = {"safetensors": forms.write_safetensors, "pth": forms.write_pth, "older_pth": forms.write_older_pth}[
            kind
        ]
        write(path, forms.state_dict(net))
    weights.load(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(weights.WeightsError, match="fetch it again|damaged"):
        weights.load(path)


def test_damaged_bytes_are_refused_whatever_reads_them(tmp_path: Path) -> None:
    """Each of these once came out as an error of the library that met it."""
    pth = forms.write_pth(tmp_path / "pth", _state())
    npz = forms.write_frossard(tmp_path / "w.npz", forms.frossard_net("vgg16", 0.125, 64, 12))
    for path in (pth, npz):
        whole = path.read_bytes()
        entry = whole.index(b"PK\x01\x02")  # in the directory at the end: version needed, flags, compression
        for offset, value in ((6, 200), (8, 0x20), (8, 0x01), (10, 77)):
            path.write_bytes(whole[: entry + offset] + bytes([value]) + whole[entry + offset + 1 :])
            with pytest.raises(weights.WeightsError):
                weights.load(path)
    tensors = forms.write_safetensors(tmp_path / "st", _state())
    tensors.write_bytes(tensors.read_bytes().replace(b'"data_offsets":[0,', b'"data_offsets":[0 ', 1))
    with pytest.raises(weights.WeightsError, match="not a whole safetensors file"):
        weights.load(tensors)
    with h5py.File(forms.write_keras(tmp_path / "h5", forms.keras_net("vgg16", 0.125, 64, 12)), "a") as file:
        file[b"bl\xffck"] = np.zeros(3)
        file["note"] = "text"
    with pytest.raises(weights.WeightsError):
        weights.load(tmp_path / "h5")


def test_compressed_entries_of_a_pth_are_refused(tmp_path: Path) -> None:
    arrays = _state()
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", forms.dict_opcodes(arrays))
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{i}", array.tobytes())
    with pytest.raises(weights.WeightsError, match="archive/data.pkl in it is compressed"):
        weights.load(tmp_path / "w.pth")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("weights")
    with pytest.raises(weights.WeightsError, match="of no form that pycap reads"):
        weights.load(tmp_path / "w.txt")
    with pytest.raises(weights.WeightsError, match="no checkpoint: .* or give a file of weights"):
        weights.load(tmp_path)
    with pytest.raises(weights.WeightsError, match="No such file"):
        weights.load(tmp_path / "none.h5")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "2"}, "version '2'"),
        ({"preprocess": "{}"}, "damaged metadata"),
        ({"cnn": "vgg16"}, "says that it holds"),
    ],
)
def test_an_imported_file_with_other_metadata_is_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    found = weights.load(forms.write_safetensors(tmp_path / "w", _state()))
    metadata = {
        "format": "pycap-vgg", "version": "1", "source": "x", "source_sha256": "0", "cnn": "vgg11",
        "preprocess": '{"resize": 73, "crop": 64, "mode": "squash", "interpolation": "bilinear", "mean": [1, 2, 3], '
        '"std": [1, 1, 1], "channels": "RGB"}',
    }  # fmt: skip
    save_file(found.arrays, tmp_path / "sound", metadata=metadata)
    assert weights.load(tmp_path / "sound").mean == (1.0, 2.0, 3.0)
    save_file(found.arrays, tmp_path / "other", metadata={**metadata, **changes})
    with pytest.raises(weights.WeightsError, match=said):
        weights.load(tmp_path / "other")


# -- pickles ------------------------------------------------------------------------------------------------------------


class _Command:
    """Pickled, it is a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("write", [forms.write_pth, forms.write_older_pth])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, write: object, protocol: int) -> None:
    mark = tmp_path / "ran"
    hostile = pickle.dumps({"features.0.weight": _Command(f"touch {mark}")}, protocol)
    write(tmp_path / "w.pth", _state(), hostile)  # type: ignore[operator]
    with pytest.raises(weights.WeightsError, match=r"asks for posix.system.*nothing of it was run"):
        weights.load(tmp_path / "w.pth")
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Command(f"touch {mark}")))
    assert mark.exists()  # the weapon was loaded


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "__builtin__ eval", "torch load", "torch._utils _rebuild_sparse_tensor",
     "collections defaultdict", "copyreg _reconstructor", "collections OrderedDict.fromkeys", "numpy load"],
)  # fmt: skip
def test_names_that_a_state_dict_does_not_need_are_refused(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    forms.write_pth(tmp_path / "w.pth", _state(), f"\x80\x02c{module}\n{attribute}\n.".encode("latin-1"))
    with pytest.raises(weights.WeightsError, match=f"asks for {module}.{attribute}"):
        weights.load(tmp_path / "w.pth")


def test_nothing_can_be_set_on_what_stands_in_for_torch(tmp_path: Path) -> None:
    before = dict(pickled._ANSWERS)
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"):
        forms.write_pth(
            tmp_path / "w.pth", _state(), b"\x80\x02" + target + b"}X\x05\x00\x00\x00buildX\x01\x00\x00\x00xsb."
        )
        with pytest.raises(weights.WeightsError, match="sets the state of"):
            weights.load(tmp_path / "w.pth")
    assert before == pickled._ANSWERS


ONE, NINES = np.ones(4, np.float32), np.broadcast_to(np.float32(1), (9, 9))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (forms.tensor_opcodes("0", ONE).replace(b"J\x04\0\0\0tQ", b"J\x03\0\0\0tQ"), "reaches element 4 of a storage of 3"),
        (forms.tensor_opcodes("0", NINES).replace(b"J\x51\0\0\0tQ", b"J\x01\0\0\0tQ"), "repeats a storage of 1"),
        (forms.tensor_opcodes("0", ONE).replace(b"(J\x01\0\0\0t", b"(J\xff\xff\xff\xfft"), "strides"),
        (forms.tensor_opcodes("nowhere", ONE), "storage nowhere has no data"),
        (forms.tensor_opcodes("0", ONE), "storage 0 has 864 bytes, not 16"),
        (b"K\x07", "'x' in it: not tensors"),
    ],
)  # fmt: skip
def test_tensors_outside_their_storage_are_refused(tmp_path: Path, value: bytes, said: str) -> None:
    forms.write_pth(tmp_path / "w.pth", _state(), b"\x80\x02}X\x01\x00\x00\x00x" + value + b"s.")
    with pytest.raises(weights.WeightsError, match=said):
        weights.load(tmp_path / "w.pth")


def test_dtypes_strides_and_offsets(tmp_path: Path) -> None:
    """Half, double and bfloat16 storages; a transposed tensor; one that begins inside its storage."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = {
        "half": (rows.astype(np.float16), "HalfStorage"), "double": (rows.astype(np.float64), "DoubleStorage"),
        "bfloat16": ((rows.view(np.uint32) >> 16).astype(np.uint16), "BFloat16Storage"),
        "turned": (np.asfortranarray(rows), "FloatStorage"),
    }  # fmt: skip
    items = b"".join(
        forms._text(name) + forms.tensor_opcodes(str(i), array, storage=kind)
        for i, (name, (array, kind)) in enumerate(stored.items())
    )
    forms.write_pth(tmp_path / "w", {n: a for n, (a, _) in stored.items()}, b"\x80\x02}(" + items + b"u.")
    found = pickled.read_state_dict(tmp_path / "w")
    assert all(np.array_equal(found[name], rows) for name in stored)
    inside = b"\x80\x02}" + forms._text("x") + forms.tensor_opcodes("0", rows[1], offset=3) + b"s."
    forms.write_pth(tmp_path / "o", {"x": rows}, inside)
    assert np.array_equal(pickled.read_state_dict(tmp_path / "o")["x"], rows[1])
