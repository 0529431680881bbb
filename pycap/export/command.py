"""`pycap export`: the command, and `export_onnx`, which it calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pycap import __version__, checkpoint
from pycap.captioner import Captioner
from pycap.export import ExportError, require
from pycap.export.captioners import graphs, state_sizes
from pycap.export.check import compare
from pycap.export.folder import DESCRIPTION, described, replaced, write_description, write_graph
from pycap.export.graph import IR_VERSION, OPSET
from pycap.models.captions import CaptionModel


def export_checkpoint(args: argparse.Namespace) -> int:
    """`pycap export`: a checkpoint's captioner as ONNX models in args.onnx; says what it wrote."""
    export_onnx(args.checkpoint, args.onnx, lambda line: print(line, flush=True))
    return 0


def export_onnx(path: str | Path, folder: str | Path, say: Callable[[str], object] = lambda line: None) -> None:
    """Write the captioner of a checkpoint, or of a run's best (else last) one, as ONNX models into `folder`.

    `folder` gets encoder.onnx, decoder.onnx, vocab.json and export.json (docs/export.md), in float32 whatever the model was
    trained in, and stands as a whole or not at all; an earlier export there is replaced. The process turns to the CPU. say:
    told, a line at a time, what has been done.

    Raises:
        CheckpointError: as for `pycap.load`; also for a classifier.
        ExportError: several checkpoints, weights that are not finite, onnx is missing, `folder` holds something else, or
            what was written does not compute what the model does.
    """
    require()
    import onnx

    if not isinstance(path, (str, Path)):
        raise ExportError(
            "one checkpoint is exported at a time; of an ensemble export each member, and take the mean of their probabilities"
        )
    source, folder = checkpoint.find(path), Path(folder)
    captioner = Captioner.load(source, "fp32", "cpu")
    (digest,) = captioner.digests
    vocab, config, spec = captioner.vocab, captioner.config, captioner.spec
    model = captioner.model
    assert isinstance(model, CaptionModel)
    broken = next((name for name, array in model.state_arrays().items() if not np.isfinite(array).all()), None)
    if broken is not None:
        raise ExportError(f"{source}: {broken} holds numbers that are not finite; export another checkpoint of the run")
    with replaced(folder) as new:
        models: dict[str, Any] = {}
        for graph in graphs(model, spec):
            file = write_graph(graph, new, {"pycap.checkpoint": digest})
            models[graph.name] = described(graph, file)
            size = sum(part.stat().st_size for part in new.glob(f"{file.name}*")) / 1e6
            say(f"{folder / file.name}: {', '.join(graph.inputs)} -> {', '.join(graph.outputs)}; {size:.1f} MB")
        vocab.save(new / checkpoint.VOCAB)
        ids = {"pad": vocab.PAD, "start": vocab.START, "end": vocab.END, "unk": vocab.UNK}
        whole = {
            "model": config.model,
            "cnn": config.cnn,
            "blind": config.blind,
            "image": spec.to_dict(),
            "words": {"count": len(vocab), **ids},
            "max_length": config.max_length,
            "state": list(state_sizes(model)),
            **models,
            "checkpoint": {"sha256": digest},
            "versions": {"pycap": __version__, "onnx": onnx.__version__, "opset": OPSET, "ir": IR_VERSION},
        }
        write_description(new, whole)
        say(f"ONNX's checker and shape inference passed; {compare(captioner, new)}")
    say(f"{folder / DESCRIPTION}: {config.model} on {config.cnn}, {spec.crop} px, {len(vocab)} words")
