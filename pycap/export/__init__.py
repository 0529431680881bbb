"""Export: a trained captioner as ONNX models for other runtimes, `pycap export CHECKPOINT --onnx DIR` (docs/export.md).

| file | its job |
|---|---|
| `graph.py` | an ONNX graph, node by node; pycap's weights in ONNX's layouts |
| `captioners.py` | the graphs of a captioner: the encoder, and one step of decoding |
| `folder.py` | a folder written whole or not at all; `export.json`, which says what is in it |
| `check.py` | what was written against the model itself, in ONNX Runtime where that is installed |
| `command.py` | the command, and `export_onnx` |
"""

from __future__ import annotations

from importlib.util import find_spec


class ExportError(RuntimeError):
    """A model that cannot be exported, or a folder that cannot take it; the text says why, and the remedy."""


def require() -> None:
    """ExportError, with the remedy, where the package `onnx` is missing."""
    if find_spec("onnx") is None:
        raise ExportError('onnx is not installed, which exporting needs: pip install "pycap-captioning[onnx]"')
