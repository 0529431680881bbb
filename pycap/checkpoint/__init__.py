"""Checkpoints: folders of safetensors, JSON and YAML with a checksum for every byte, replaced as a whole so that a whole one
always exists.

| file | job |
|---|---|
| `layout.py` | what a folder holds, where it stands while it is being replaced, and its error |
| `versions.py` | which version a folder is of: read, migrated or refused |
| `integrity.py` | checksums of files and of tensors: made, and compared |
| `writing.py` | `save` |
| `reading.py` | `load`, and that arrays fit a model |
"""

from pycap.checkpoint.layout import CONFIG, MODEL, OPTIMIZER, STATE, SUMS, VOCAB, CheckpointError, find
from pycap.checkpoint.reading import Checkpoint, load, match
from pycap.checkpoint.versions import VERSION, CheckpointWarning
from pycap.checkpoint.writing import recover, save

__all__ = [
    "CONFIG", "MODEL", "OPTIMIZER", "STATE", "SUMS", "VERSION", "VOCAB", "Checkpoint", "CheckpointError",
    "CheckpointWarning", "find", "load", "match", "recover", "save",
]  # fmt: skip
