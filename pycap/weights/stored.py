"""The canonical form on disk: a safetensors file that also says where its weights came from and how pixels reach them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from pycap.data.images import PreprocessSpec
from pycap.tensorfile import map_arrays
from pycap.weights.canonical import VGGWeights, WeightsError

FORMAT, VERSION = "pycap-vgg", "1"


def save(weights: VGGWeights, path: str | os.PathLike[str]) -> None:
    """Write the file beside its place, and rename it there: a whole one or none."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "source": weights.source,
        "source_file": weights.path.name,
        "source_sha256": weights.sha256,
        "cnn": weights.cnn,
        "preprocess": json.dumps(weights.preprocess().to_dict()),
    }
    temporary = path.with_name(f".{path.name}.pycap-new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: np.ascontiguousarray(a) for n, a in weights.arrays.items()}, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)  # safetensors' 0600 would hide the weights from the group
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, (SafetensorError, OSError)):
            raise WeightsError(f"{path}: cannot be written ({error}); free space or give another --output") from error
        raise


def read(path: Path) -> VGGWeights | None:
    """What `save` wrote; None for a safetensors file that others did."""
    try:
        arrays, metadata = map_arrays(path)
    except ValueError as error:  # TensorFileError among them
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error
    if metadata.get("format") != FORMAT:
        return None
    if metadata.get("version") != VERSION:
        raise WeightsError(
            f"{path}: version {metadata.get('version')!r}, and this pycap reads {VERSION}; import the source file again"
        )
    try:
        spec = PreprocessSpec.from_dict(json.loads(metadata["preprocess"]))
        source, sha256, cnn = (metadata[key] for key in ("source", "source_sha256", "cnn"))
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path}: damaged metadata ({error!r}); import the source file again") from error
    weights = VGGWeights(arrays, path, source, spec.mean, spec.std, sha256)
    if weights.cnn != cnn:
        raise WeightsError(
            f"{path}: says that it holds a {cnn} and holds a {weights.cnn}; import the source file again"
        )
    return weights
