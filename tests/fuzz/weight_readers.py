"""The readers of weights in every form, and of checkpoints."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import save as tensors

from pycap import checkpoint, weights
from pycap.checkpoint import integrity, layout
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec
from pycap.data.vocab import Vocabulary
from pycap.tensorfile import map_arrays
from pycap.weights.canonical import VGGWeights
from tests.fuzz import changes
from tests.fuzz.binary_readers import made
from tests.fuzz.hostile_hdf5 import hostile
from tests.fuzz.target import BINARY_MIB, Target, require
from tests.weights import forms

NET = ("vgg_micro", 0.02, 16, 2)  # 16 channels and 20,000 numbers


# Weights --------------------------------------------------------------------------------------------------------------


def _weights_read(name: str) -> Callable[[Path], VGGWeights]:
    return lambda folder: weights.load(folder / name)


def _sound_weights(found: VGGWeights) -> None:
    require(found.cnn in weights.canonical.LAYERS, found.cnn)
    total = 0
    for name, array in found.arrays.items():
        require(array.dtype == np.float32 and 0 not in array.shape, f"{name}: {array.dtype} {array.shape}")
        require(bool(np.isfinite(array).all()), f"{name} is not finite")
        total += array.nbytes
    require(total < 1 << 24, f"{total:,} bytes of weights from a small file")
    found.preprocess()


def _weights_same(seed: str, found: VGGWeights) -> None:
    require(found.cnn == "vgg_micro" and len(found.arrays) in (8, 12), f"{seed}: {found.cnn}, {sorted(found.arrays)}")
    kernel = found.arrays["conv1_1.weight"]
    require(kernel.shape == (8, 3, 3, 3) and 0.1 < kernel.std() < 1, f"{seed}: {kernel.shape} {kernel.std()}")


@cache
def _torch_arrays() -> Mapping[str, np.ndarray]:
    return forms.state_dict(forms.torch_net(*NET))


def _keras_seeds() -> Mapping[str, bytes]:
    net = forms.keras_net(*NET, top=False)
    found = {
        naming: made(lambda path, n=naming: forms.write_keras(path, net, n)) for naming in sorted(forms.KERAS_NAMES)
    }

    def newest(path: Path) -> None:
        with h5py.File(path, "w", libver="latest") as file:
            for layer, arrays in forms.keras_net(*NET).layers.items():
                for name, array in zip(forms.KERAS_NAMES["keras2"], arrays, strict=True):
                    file.create_dataset(name.format(layer), data=array, compression="gzip", shuffle=True)

    return {**found, "newest": made(newest)}


def _keras_hostile() -> Mapping[str, bytes]:
    return hostile(_keras_seeds()["keras2"], ("block1_conv1/block1_conv1/kernel:0",))


def _npz_seeds() -> Mapping[str, bytes]:
    net = forms.frossard_net(*NET)
    arrays = {f"{layer}_{kind}": a for layer, both in net.layers.items() for kind, a in zip("Wb", both, strict=True)}
    packed, stored = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    np.savez(stored, **{name: np.asfortranarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    return {"stored": stored.getvalue(), "packed": packed.getvalue()}


def _npy(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def _npz_hostile() -> Mapping[str, bytes]:
    """Bombs, pickles, shapes without data, headers that are programs."""

    def archive(content: bytes, how: int = zipfile.ZIP_STORED, name: str = "conv1_1_W.npy") -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", how) as zipped:
            zipped.writestr(name, content)
        return file.getvalue()

    def head(shape: str, kind: str = "'<f4'") -> bytes:
        return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()

    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as zipped, zipped.open("conv1_1_W.npy", "w") as entry:
        entry.write(_npy(head("(3, 3, 3, 2000000)")))
        for _ in range(27):
            entry.write(bytes(8_000_000))
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    return {
        "bomb": bomb.getvalue(),
        "no data": archive(_npy(head("(3, 3, 3, 99999999999)"))),
        "overflow": archive(_npy(head(f"({1 << 40}, {1 << 40}, 3, 3)"))),
        "negative": archive(_npy(head("(-1, 3, 3, 8)"), bytes(100))),
        "pickle": archive(pickled.getvalue()),
        "nested": archive(_npy(b"(" * 9000 + b")" * 9000)),
        "call": archive(_npy(b"__import__('os').system('true')")),
        "object": archive(_npy(head("(3,)", "'|O'"), bytes(24))),
        "structure": archive(_npy(head("(3,)", "[('a', '<f4', (1000000,)), ('b', '|O')]"), bytes(24))),
        "text": archive(_npy(head("(3, 3, 3, 8)", "'<U100000000'"))),
        "no name": archive(_npy(head("(3,)"), bytes(12)), name=".npy"),
    }


def _pth_seeds() -> Mapping[str, bytes]:
    return {
        "zip": made(lambda path: forms.write_pth(path, _torch_arrays())),
        "row": made(lambda path: forms.write_older_pth(path, _torch_arrays())),
    }


def _pth_hostile() -> Mapping[str, bytes]:
    """Pickles that would crash the interpreter, fill memory, or never end."""
    deep = b"\x80\x02}" + b"K\x01" + b"\x85" * 2_000_000
    bodies = {
        "deep key": deep + b"K\x01s.",
        "deep value": b"\x80\x02}K\x01K\x01" + b"\x85" * 2_000_000 + b"s.",
        "deep lists": b"\x80\x02" + b"]" * 2_000_000 + b"a" * 1_999_999 + b".",
        "deep pid": b"\x80\x02K\x01" + b"\x85" * 1_000_000 + b"Q.",
        "memo": b"\x80\x02}r\xff\xff\xff\x06.",
        "long text": b"\x80\x02X\xff\xff\xff\x7f.",
        "long bytes": b"\x80\x04\x8e" + b"\xff" * 6 + b"\x00\x00.",
        "frame": b"\x80\x04\x95" + b"\xff" * 6 + b"\x00\x00}.",
        "doubled": b"\x80\x02" + b"(K\x01t" + b"2\x86" * 100 + b"Q.",
        "many digits": b"\x80\x02I" + b"9" * 2_000_000 + b"\n.",
        "many marks": b"\x80\x02" + b"(" * 2_000_000 + b".",
    }
    arrays = _torch_arrays()
    zips = {
        f"zip: {name}": made(lambda path, b=body: forms.write_pth(path, arrays, b)) for name, body in bodies.items()
    }
    rows = {
        f"row: {name}": made(lambda path, b=body: forms.write_older_pth(path, arrays, b))
        for name, body in bodies.items()
    }
    return {**zips, **rows}


def _canonical() -> bytes:
    def write(path: Path) -> None:
        source = path.parent / "source"
        forms.write_safetensors(source, _torch_arrays())
        found = weights.load(source)
        source.unlink()
        weights.save(found, path)

    return made(write)


def _safetensors_seeds() -> Mapping[str, bytes]:
    timm = forms.timm_state_dict(forms.torch_net(*NET))
    return {"torchvision": tensors(dict(_torch_arrays())), "timm": tensors(timm), "pycap": _canonical()}


def _tensorfile_read(folder: Path) -> dict[str, np.ndarray]:
    return map_arrays(folder / "w.safetensors")[0]


# Checkpoints ----------------------------------------------------------------------------------------------------------


@cache
def _checkpoint() -> Mapping[str, bytes]:
    arrays = {
        "embedding.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "cnn.conv1_1.bias": np.ones(3, np.float32),
    }
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(
            Path(folder) / "last", model=arrays, optimizer={"m": np.ones(3, np.float32)}, vocab=Vocabulary(["cat", "dog"]),
            state={"trainer": {"step": 3}, "scores": {"val_loss": 1.5}}, config=TrainConfig(stage="coco"),
            preprocess=PreprocessSpec().to_dict(),
        )  # fmt: skip
        return {path.name: path.read_bytes() for path in sorted((Path(folder) / "last").iterdir())}


def _put_checkpoint(folder: Path) -> None:
    for name, content in _checkpoint().items():
        (folder / name).write_bytes(content)


def _checkpoint_read(folder: Path) -> checkpoint.Checkpoint:
    """With sums that are right: who means harm makes them so."""
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in integrity.LISTED}
    (folder / layout.SUMS).write_text(integrity.sums_text(digests))
    return _checkpoint_loaded(folder)


def _checkpoint_loaded(folder: Path) -> checkpoint.Checkpoint:
    found = checkpoint.load(folder, optimizer=True)
    for arrays in (found.model, found.optimizer or {}):
        for array in arrays.values():
            np.asarray(array).sum()
    require(found.spec.crop > 0, "a crop of nothing")
    return found


def _sound_checkpoint(found: checkpoint.Checkpoint) -> None:
    require(isinstance(found.state, dict), f"the state {found.state!r}")
    json.dumps(found.state)
    require(all(isinstance(array, np.ndarray) for array in found.model.values()), "an array that is none")


def _checkpoint_same(seed: str, found: checkpoint.Checkpoint) -> None:
    require(found.state["trainer"] == {"step": 3} and len(found.vocab) == 6, f"{seed}: {found.state}")
    require(float(found.model["embedding.weight"].sum()) == 66, seed)


_SUMS = "SHA256SUMS"
_CHECKPOINT = {
    "state.json": "json",
    "vocab.json": "json",
    "config.yaml": "yaml",
    "model.safetensors": "binary",
    "optimizer.safetensors": "binary",
}

WEIGHTS = (
    Target("keras", "w.h5", _weights_read("w.h5"), _keras_seeds, "binary", check=_sound_weights, same=_weights_same,
           structure=changes.HDF5, memory_mib=BINARY_MIB, hostile=_keras_hostile),
    Target("npz", "w.npz", _weights_read("w.npz"), _npz_seeds, "binary", check=_sound_weights, same=_weights_same,
           structure=changes.ZIP, memory_mib=BINARY_MIB, hostile=_npz_hostile),
    Target("pth", "w.pth", _weights_read("w.pth"), _pth_seeds, "binary", check=_sound_weights, same=_weights_same,
           structure={**changes.ZIP, **changes.PICKLE}, memory_mib=BINARY_MIB, hostile=_pth_hostile),
    Target("safetensors", "w.safetensors", _weights_read("w.safetensors"), _safetensors_seeds, "binary", check=_sound_weights,
           same=_weights_same, structure=changes.SAFETENSORS, memory_mib=BINARY_MIB),
    *(
        Target(f"checkpoint-{name.partition('.')[0]}", name, _checkpoint_read, lambda n=name: {"saved": _checkpoint()[n]},
               form, _put_checkpoint, _sound_checkpoint, _checkpoint_same, changes.SAFETENSORS if form == "binary" else {},
               memory_mib=BINARY_MIB)  # type: ignore[arg-type]
        for name, form in _CHECKPOINT.items()
    ),
    Target("checkpoint-sums", _SUMS, _checkpoint_loaded, lambda: {"saved": _checkpoint()[_SUMS]}, "lines", _put_checkpoint,
           _sound_checkpoint, _checkpoint_same),
)  # fmt: skip
