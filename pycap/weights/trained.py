"""The CNN of a run of pycap's own: a classifier's (`--stage pretrain`), or a captioner's."""

from __future__ import annotations

from pathlib import Path

from pycap import checkpoint
from pycap.weights.canonical import VGGWeights, WeightsError

_PREFIX = "cnn."


def read(path: Path) -> VGGWeights:
    """A checkpoint, or the best (else the last) one of a run; its arrays lie in a mapping of the file."""
    try:
        saved = checkpoint.load(path)
        spec = saved.spec
    except checkpoint.CheckpointError as error:
        raise WeightsError(f"{error}, or give a file of weights") from error
    ours = {name.removeprefix(_PREFIX): array for name, array in saved.model.items() if name.startswith(_PREFIX)}
    return VGGWeights(
        ours,
        saved.folder,
        f"pycap-{saved.config.stage}",
        spec.mean,
        spec.std,
        saved.sha256[checkpoint.MODEL],
        tuple(name for name in saved.model if not name.startswith(_PREFIX)),
    )
