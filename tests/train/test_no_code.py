"""Loading runs nothing: files of every format that ask for a program to be run are refused, and none is started.

All are loaded in one process, which an audit hook watches: what would run code, start a program or write a file is noted and
refused. Before that a good file of each format is loaded there, so that all imports have been made.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.train.checkpoints import save, vouch
from tests.weights import forms

pytestmark = pytest.mark.faults

_WATCHED = """
import json, os, pickle, sys
from pycap import checkpoint, weights
given = json.load(sys.stdin)
armed, noted = False, []
RUNS = (
    "exec", "import", "marshal.loads", "code.__new__", "function.__new__", "pickle.find_class", "ctypes.", "subprocess.",
    "socket.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.putenv", "os.remove", "os.rename",
    "shutil.rmtree",
)
def watch(event, arguments):
    if not armed:
        return
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    # NumPy reads an array's header by ast.literal_eval, which parses and does not run; what ran it would tell "exec".
    compiles = event == "compile" and arguments[1] != "<unknown>"
    if event.startswith(RUNS) or writes or compiles:
        noted.append(event)
        raise RuntimeError(f"{event} {arguments[:1]!r:.80}: was asked for")
sys.addaudithook(watch)
def load(path):
    global armed
    noted.clear()
    armed = True
    try:
        if os.path.isdir(path):
            checkpoint.load(path, optimizer=True)
        else:
            weights.load(path)
        said = "read"
    except (checkpoint.CheckpointError, weights.WeightsError) as error:
        said = f"{type(error).__name__}: {error}"
    finally:
        armed = False
    return [path, said, list(noted)]
for path in given["good"]:  # all imports are made
    checkpoint.load(path, optimizer=True) if os.path.isdir(path) else weights.load(path)
print(json.dumps([load(path) for path in given["good"] + given["hostile"]]))
def unpickle(name, data):
    global armed
    noted.clear()
    armed = True
    try:
        pickle.loads(data)
    except RuntimeError:
        pass
    finally:
        armed = False
    return [name, list(noted)]
print(json.dumps([unpickle(name, bytes.fromhex(data)) for name, data in given["weapons"].items()]))
"""


class Call:
    """Pickled, it is a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def weapons(mark: Path) -> dict[str, bytes]:
    """Pickles that leave `mark` behind them, each by another way."""
    calls = {
        "os.system": Call(os.system, f"touch {mark}"),
        "subprocess": Call(subprocess.check_call, ["touch", str(mark)]),
        "eval": Call(eval, f"open({str(mark)!r}, 'w').close()"),
        "exec": Call(exec, f"open({str(mark)!r}, 'w').close()"),
        "open": Call(open, str(mark), "w"),
    }
    return {name: pickle.dumps({"features.0.weight": call}, 2) for name, call in calls.items()}


def checkpoints(folder: Path, mark: Path, weapon: bytes) -> list[Path]:
    """Folders with right checksums in which each file in turn is a pickle, or YAML that names functions."""
    touch = f"touch {mark}"
    tags = [
        f"!!python/object/apply:os.system [{touch!r}]",
        f"seed: !!python/object/apply:os.system [{touch!r}]",
        f"seed: !!python/object/new:os.system [{touch!r}]",
        f"seed: !!python/object/apply:eval [\"__import__('os').system({touch!r})\"]",
        "seed: !!python/module:antigravity",
        "preprocess: !!python/name:os.system",
    ]
    texts = [("config.yaml", f"{tag}\n...\n".encode()) for tag in tags]
    files = ("state.json", "vocab.json", "config.yaml", "model.safetensors", "optimizer.safetensors")
    made = []
    for number, (name, content) in enumerate([*texts, *((name, weapon) for name in files)]):
        made.append(folder / f"c{number}" / "last")
        save(made[-1], 1)
        (made[-1] / name).write_bytes(content)
        vouch(made[-1])
    save(folder / "sums" / "last", 1)
    (folder / "sums" / "last" / "SHA256SUMS").write_bytes(weapon)
    return [*made, folder / "sums" / "last"]


def files(folder: Path, mark: Path, arrays: dict[str, np.ndarray], name: str, weapon: bytes) -> list[Path]:
    """Files of weights that hold the pickle wherever their format would let a careless reader meet it."""
    made = [
        folder / f"{name}.{kind}"
        for kind in ("pth", "row.pth", "key.pth", "npz", "object.npz", "npy.npz", "header.npz")
    ]
    pth, row, key, _, objects, member, header = made
    forms.write_pth(pth, arrays, weapon)
    forms.write_older_pth(row, arrays, weapon)
    start = b"".join(pickle.dumps(value, 2) for value in (forms.MAGIC, 1001))
    key.write_bytes(start + weapon)
    shutil.copy(pth, made[3])
    np.savez(objects, conv1_1_W=np.array([pickle.loads(pickle.dumps({"a": 1}))], object))
    with zipfile.ZipFile(objects) as archive:
        content = archive.read("conv1_1_W.npy")
    with zipfile.ZipFile(
        objects, "w"
    ) as archive:  # NumPy's own header of an array of objects, and the weapon as its data
        archive.writestr("conv1_1_W.npy", content[: 10 + int.from_bytes(content[8:10], "little")] + weapon)
    with zipfile.ZipFile(member, "w") as archive:
        archive.writestr("conv1_1_W.npy", weapon)
    text = f"{{'descr': __import__('os').system('touch {mark}'), 'fortran_order': False, 'shape': (1,)}}\n".encode()
    with zipfile.ZipFile(header, "w") as archive:
        archive.writestr("conv1_1_W.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    for suffix, content in (("raw", weapon), ("safetensors", len(weapon).to_bytes(8, "little") + b"{" + weapon)):
        made.append(folder / f"{name}.{suffix}")
        made[-1].write_bytes(content)
    made.append(folder / f"{name}.told.safetensors")
    save_file(
        {"features.0.weight": np.zeros(3, np.float32)}, made[-1], {"format": "pycap-vgg", "preprocess": weapon.hex()}
    )
    made.append(folder / f"{name}.h5")
    with h5py.File(made[-1], "w") as file:
        layer = {"class_name": "Lambda", "config": {"function": [weapon.hex(), None, None], "function_type": "lambda"}}
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}})
        file["block1_conv1/block1_conv1/kernel:0"] = np.void(weapon)
    return made


def test_loading_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch = forms.state_dict(forms.torch_net("vgg11", 0.1, 32, 8))
    good = [
        forms.write_pth(tmp_path / "good.pth", torch),
        forms.write_older_pth(tmp_path / "good.row.pth", torch),
        forms.write_safetensors(tmp_path / "good.safetensors", torch),
        forms.write_keras(tmp_path / "good.h5", forms.keras_net("vgg16", 0.1, 32, 8)),
        forms.write_frossard(tmp_path / "good.npz", forms.frossard_net("vgg16", 0.1, 32, 8)),
    ]
    save(tmp_path / "good" / "last", 1)
    good.append(tmp_path / "good" / "last")
    armed = weapons(mark)
    hostile = checkpoints(tmp_path, mark, armed["os.system"])
    for name, weapon in armed.items():
        hostile += files(tmp_path, mark, torch, name, weapon)
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED],
        input=json.dumps(
            {
                "good": list(map(str, good)),
                "hostile": list(map(str, hostile)),
                "weapons": {name: weapon.hex() for name, weapon in armed.items()},
            }
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loads, unpickled = map(json.loads, done.stdout.splitlines())
    assert len(loads) == len(good) + len(hostile) > 60
    for path, said, noted in loads:
        assert noted == [], (path, said, noted)
        assert (said == "read") == (Path(path) in good), (path, said)
    assert not mark.exists()
    for name, noted in unpickled:  # the hook sees them where they do run
        assert noted, name
    for name, weapon in armed.items():  # and they do
        pickle.loads(weapon)
        assert mark.exists(), name
        mark.unlink()
