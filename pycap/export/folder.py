"""The exported folder: written whole or not at all, checked before it stands; `export.json` says what is in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pycap.data.disk import sync
from pycap.export import ExportError
from pycap.export.graph import BATCH, Graph

FORMAT = "pycap-onnx"
VERSION = 1
DESCRIPTION = "export.json"
#: What may be lost where an export is replaced.
_FILES = {"encoder.onnx", "decoder.onnx", "encoder.onnx.data", "decoder.onnx.data", "vocab.json", DESCRIPTION}
#: Bytes of weights above which they stand in a file beside the model: protobuf ends at 2 GiB, the model included.
MOST_INSIDE = 1 << 30


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `folder` when the block ends; after an error nothing has changed.

    ExportError where `folder` is a file, or holds anything but an earlier export, which is replaced.
    """
    folder = folder.resolve()
    new, old = (folder.with_name(f".{folder.name}.pycap-{age}") for age in ("new", "old"))
    if old.exists() and not folder.exists():  # a kill came between the two renames below
        os.rename(old, folder)
    _refuse(folder)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new.mkdir()
    try:
        yield new
        for file in new.iterdir():
            sync(file)
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(new, ignore_errors=True)  # the error on hand matters more than one of cleaning up
        raise
    sync(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def _refuse(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder}: is no folder; give another name to --onnx")
    held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    foreign = sorted(held - _FILES if _is_export(folder) else held)
    if foreign:
        more = ", ..." if len(foreign) > 4 else ""
        raise ExportError(
            f"{folder}: holds {', '.join(foreign[:4])}{more}, which is no export of pycap's and would be lost; give "
            "another folder to --onnx, or move it"
        )


def _is_export(folder: Path) -> bool:
    try:
        told = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("format") == FORMAT


def write_graph(graph: Graph, folder: Path, told: Mapping[str, str]) -> Path:
    """Write a graph as NAME.onnx, its weights inside or, where they are many, in NAME.onnx.data, and check the file. told: its
    metadata.

    ONNX's checker and strict shape inference read it back: a graph that they do not accept is a ValueError of onnx's.
    """
    import onnx

    model = graph.model
    onnx.helper.set_model_props(model, dict(told))
    path = folder / f"{graph.name}.onnx"
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save_model(
        model,
        path,
        save_as_external_data=size > MOST_INSIDE,
        location=f"{path.name}.data",
        size_threshold=1024,
    )
    onnx.checker.check_model(path, full_check=True)
    return path


def write_description(folder: Path, described: Mapping[str, Any]) -> None:
    """Write export.json."""
    whole = {"format": FORMAT, "version": VERSION, **described}
    (folder / DESCRIPTION).write_text(json.dumps(whole, indent=1) + "\n", "utf-8")


def described(graph: Graph, file: Path) -> dict[str, Any]:
    """A graph as export.json has it: its file; dtype and shape of its inputs and outputs, in their order."""

    def values(of: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
        return {name: {"dtype": dtype, "shape": [BATCH, *shape]} for name, (dtype, shape) in of.items()}

    return {"file": file.name, "inputs": values(graph.inputs), "outputs": values(graph.outputs)}
