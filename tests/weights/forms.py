"""Files of pre-trained VGGs in every form, made by hand, and what the network that wrote each would compute, in plain NumPy."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import save_file

from pycap.models.vgg import BLOCKS

Array = np.ndarray
CLASSES = 5
MAGIC = 0x1950A86A20F9469CFC6C  # of torch's older form


@dataclass(frozen=True)
class Net:
    """Random weights in a source framework's layouts: (kernel, bias) by that framework's name of the layer."""

    blocks: tuple[tuple[int, ...], ...]
    side: int
    layers: dict[str, tuple[Array, Array]]


def _channels(cnn: str, width: float) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(max(8, round(c * width / 8) * 8) for c in block) for block in BLOCKS[cnn])


def _draw(rng: np.random.Generator, shape: tuple[int, ...], fan: int, outputs: int) -> tuple[Array, Array]:
    weight = rng.normal(0, (2 / fan) ** 0.5, shape).astype(np.float32)
    return weight, rng.normal(0, 0.1, outputs).astype(np.float32)


def tensorflow_net(
    cnn: str, width: float, size: int, fc: int, names: Callable[[int, int], str], dense: list[str]
) -> Net:
    """Kernels [3, 3, in, out], matrices [in, out]. dense: names of fc6, fc7 and the classifier, or none."""
    rng, blocks, layers, inputs = np.random.default_rng(7), _channels(cnn, width), {}, 3
    for b, block in enumerate(blocks, 1):
        for j, outputs in enumerate(block, 1):
            layers[names(b, j)] = _draw(rng, (3, 3, inputs, outputs), 9 * inputs, outputs)
            inputs = outputs
    side = size // 2 ** len(blocks)
    widths = [side * side * inputs, fc, fc, CLASSES]
    for name, n, outputs in zip(dense, widths, widths[1:], strict=False):
        layers[name] = _draw(rng, (n, outputs), n, outputs)
    return Net(blocks, side, layers)


def torch_net(cnn: str, width: float, size: int, fc: int) -> Net:
    """Kernels [out, in, 3, 3], matrices [out, in], torchvision's names, its `features` numbered as its modules stand."""
    rng, blocks, layers, inputs, place = np.random.default_rng(8), _channels(cnn, width), {}, 3, 0
    for block in blocks:
        for outputs in block:
            layers[f"features.{place}"] = _draw(rng, (outputs, inputs, 3, 3), 9 * inputs, outputs)
            inputs, place = outputs, place + 2  # the ReLU
        place += 1  # the pool
    side = size // 2 ** len(blocks)
    widths = [side * side * inputs, fc, fc, CLASSES]
    for name, n, outputs in zip(("classifier.0", "classifier.3", "classifier.6"), widths, widths[1:], strict=False):
        layers[name] = _draw(rng, (outputs, n), n, outputs)
    return Net(blocks, side, layers)


def features(net: Net, images: Array, spec: str, flatten: str) -> Array:
    """fc7 [N, fc] of prepared images [N, S, S, channels].

    spec: the kernels' axes, "hwio" or "oihw". flatten: in which order the last map is laid before fc6, "HWC" or "CHW".
    """
    x, layers = images.astype(np.float64), iter(net.layers.values())
    for block in net.blocks:
        for _ in block:
            kernel, bias = next(layers)
            windows = np.lib.stride_tricks.sliding_window_view(
                np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2)
            )
            x = np.maximum(np.einsum(f"nxyihw,{spec}->nxyo", windows, kernel, optimize=True) + bias, 0)
        n, height, width, c = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, c).max((2, 4))
    x = (x if flatten == "HWC" else x.transpose(0, 3, 1, 2)).reshape(len(x), -1)
    for _ in range(2):
        matrix, bias = next(layers)
        x = np.maximum(x @ (matrix if spec == "hwio" else matrix.T) + bias, 0)
    return x


def keras_net(cnn: str, width: float, size: int, fc: int, top: bool = True) -> Net:
    dense = ["fc1", "fc2", "predictions"] if top else []
    return tensorflow_net(cnn, width, size, fc, lambda b, j: f"block{b}_conv{j}", dense)


def frossard_net(cnn: str, width: float, size: int, fc: int) -> Net:
    return tensorflow_net(cnn, width, size, fc, lambda b, j: f"conv{b}_{j}", ["fc6", "fc7", "fc8"])


KERAS_NAMES = {
    "keras1": ("{0}/{0}_W_1:0", "{0}/{0}_b_1:0"),
    "keras2": ("{0}/{0}/kernel:0", "{0}/{0}/bias:0"),
    "model": ("model_weights/{0}/{0}/kernel:0", "model_weights/{0}/{0}/bias:0"),
    "keras3": ("layers/{0}/vars/0", "layers/{0}/vars/1"),
}


def write_keras(path: Path, net: Net, naming: str = "keras1") -> Path:
    """With the empty groups of layers without weights, and in a whole model the optimiser's arrays."""
    with h5py.File(path, "w") as file:
        file.create_group("block1_pool")
        if naming == "model":
            file["optimizer_weights/iterations:0"] = np.int64(3)
        for layer, arrays in net.layers.items():
            for name, array in zip(KERAS_NAMES[naming], arrays, strict=True):
                file[name.format(layer)] = array
    return path


def write_frossard(path: Path, net: Net) -> Path:
    np.savez(
        path,
        **{f"{layer}_{kind}": a for layer, arrays in net.layers.items() for kind, a in zip("Wb", arrays, strict=True)},
    )
    return path


def state_dict(net: Net) -> dict[str, Array]:
    return {
        f"{layer}.{kind}": a
        for layer, arrays in net.layers.items()
        for kind, a in zip(("weight", "bias"), arrays, strict=True)
    }


def timm_state_dict(net: Net) -> dict[str, Array]:
    """timm's names; fc6 and fc7 are convolutions there."""
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    arrays = {}
    for name, array in state_dict(net).items():
        layer, _, kind = name.rpartition(".")
        side = {"classifier.0": net.side, "classifier.3": 1}.get(layer)
        arrays[f"{names.get(layer, layer)}.{kind}"] = (
            array.reshape(len(array), -1, side, side) if side and kind == "weight" else array
        )
    return arrays


def write_safetensors(path: Path, arrays: Mapping[str, Array]) -> Path:
    save_file(dict(arrays), path)
    return path


# torch's pickles, opcode by opcode: PyTorch is not here.


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<i", len(value)) + value.encode()


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _ints(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"


ORDERED = b"ccollections\nOrderedDict\n)R"


def tensor_opcodes(
    key: str, array: Array, older: bool = False, offset: int = 0, storage: str = "FloatStorage"
) -> bytes:
    """A tensor whose storage is `key`; column-major arrays as such, by their strides."""
    strides = tuple(s // array.itemsize for s in array.strides)
    place = (
        b"("
        + _text("storage")
        + f"ctorch\n{storage}\n".encode()
        + _text(key)
        + _text("cpu")
        + _int(array.size + offset)
    )
    pid = place + (b"N" if older else b"") + b"tQ"
    arguments = b"(" + pid + _int(offset) + _ints(array.shape) + _ints(strides)
    if older:
        return b"ctorch._utils\n_rebuild_tensor\n" + arguments + b"tR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"\x89" + ORDERED + b"tR"


def dict_opcodes(arrays: Mapping[str, Array], older: bool = False) -> bytes:
    items = b"".join(_text(name) + tensor_opcodes(str(i), a, older) for i, (name, a) in enumerate(arrays.items()))
    metadata = b"}" + _text("_metadata") + ORDERED + b"sb"  # as every module's state dict has it
    return b"\x80\x02" + ORDERED + b"(" + items + b"u" + metadata + b"."


def write_pth(path: Path, arrays: Mapping[str, Array], pickled: bytes | None = None) -> Path:
    """The zip form. pickled: instead of the arrays' own pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dict_opcodes(arrays) if pickled is None else pickled)
        archive.writestr("archive/byteorder", "little")
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{i}", array.tobytes("A"))
        archive.writestr("archive/version", "3\n")
    return path


def write_older_pth(path: Path, arrays: Mapping[str, Array], pickled: bytes | None = None) -> Path:
    """The row of pickles that torch wrote before 1.6."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, machine))
    keys = [str(i) for i in range(len(arrays))]
    data = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in arrays.values())
    path.write_bytes(head + (pickled or dict_opcodes(arrays, older=True)) + pickle.dumps(keys, 2) + data)
    return path
