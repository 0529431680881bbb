"""The command `pycap`: train, caption, evaluate, score, import-vgg, features, doctor."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def _parser() -> argparse.ArgumentParser:
    from pycap import __version__
    from pycap.config import BACKENDS, DEVICES, PRECISIONS

    parser = argparse.ArgumentParser(prog="pycap", description="Train image captioners, and caption images with them.")
    parser.add_argument("--version", action="version", version=f"pycap {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a captioner (options: pycap train --help)", add_help=False)

    caption = commands.add_parser("caption", help="caption images")
    caption.add_argument("checkpoint", help="a checkpoint, or a run's folder")
    caption.add_argument("images", nargs="+", help="image files, or folders of them (searched recursively, sorted)")
    caption.add_argument("--output", metavar="FILE", help="write JSON Lines here (default: print them)")
    caption.add_argument(
        "--length-penalty", type=float, default=0.0, metavar="A", help="divide by length to this power"
    )

    evaluate = commands.add_parser("evaluate", help="caption a split of a data set and score it")
    evaluate.add_argument("checkpoint", help="a checkpoint, or a run's folder")
    evaluate.add_argument("--data", required=True, metavar="DIR", help="the data set's folder")
    evaluate.add_argument(
        "--stage", help="its kind, or several joined by + (docs/data.md; default: what the model was trained on)"
    )
    evaluate.add_argument("--split", default="val", choices=("train", "val", "test", "all"))
    evaluate.add_argument("--images", type=_positive, metavar="N", help="only the first N")
    evaluate.add_argument("--output", metavar="FILE", help="write COCO results JSON here")

    score = commands.add_parser("score", help="score a COCO results file")
    score.add_argument("results", help='[{"image_id": ..., "caption": ...}]')
    score.add_argument("annotations", help="COCO captions file")

    vgg = commands.add_parser("import-vgg", help="convert a pre-trained VGG into a file of pycap's own")
    vgg.add_argument(
        "file", metavar="FILE", help="Keras' .h5, torchvision's or timm's .safetensors, .pth, Frossard's .npz"
    )
    vgg.add_argument("--output", required=True, metavar="PATH", help="a .safetensors file, or a folder to put it in")

    features = commands.add_parser("features", help="keep a CNN's fc7 vectors of images in an HDF5 file")
    features.add_argument(
        "paths",
        nargs="*",
        metavar="CHECKPOINT | IMAGE_OR_FOLDER",
        help="a checkpoint or a run, unless --vgg-weights is given; then images, unless --data is given",
    )
    features.add_argument("--vgg-weights", "--vgg_weights", metavar="FILE", help="a pre-trained VGG (docs/weights.md)")
    features.add_argument("--data", metavar="DIR", help="a data set's folder")
    features.add_argument("--stage", help="its kind: coco, flickr8k, ... (default: what the checkpoint was trained on)")
    features.add_argument(
        "--split", action="append", choices=("train", "val", "test"), help="only this one (may be repeated)"
    )
    features.add_argument(
        "--resize",
        type=_positive,
        metavar="N",
        help="resize images to this before the centre crop (default: as in training; for --vgg-weights: nothing is cut off)",
    )
    features.add_argument("--output", required=True, metavar="FILE", help="made, or completed where it is there")

    doctor = commands.add_parser(
        "doctor",
        help="what this machine has, which kernels run where, and how much memory a training run needs",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--plan", action="store_true", help="how much GPU memory training needs; options of pycap train may follow"
    )
    doctor.add_argument(
        "--vocabulary", type=_positive, default=10_000, metavar="N", help="with --plan: words (default: %(default)s)"
    )

    for command in (caption, evaluate):
        command.add_argument("--beam-size", "--beam_size", type=_positive, default=3, metavar="N")
    for command in (caption, evaluate, features):
        command.add_argument(
            "--batch-size", "--batch_size", type=_positive, default=16, metavar="N", help="images at once"
        )
        command.add_argument(
            "--device", choices=DEVICES, default="auto", help="where to compute (default: %(default)s)"
        )
        command.add_argument("--backend", choices=BACKENDS, default="auto", help="whose kernels (default: %(default)s)")
        command.add_argument(
            "--precision", choices=PRECISIONS, help="of products and activations (default: as the model was trained)"
        )
        command.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Exit status: 0 done, 1 an error told in one line, 2 a wrong option, 130 Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:
        from pycap.train import main as train

        train(argv[1:])
        return
    parser = _parser()
    args, options = parser.parse_known_args(argv)
    if options and not (args.command == "doctor" and args.plan):
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    args.options = options
    from pycap.caption import caption_files
    from pycap.doctor import examine
    from pycap.evaluate import evaluate_checkpoint, score_files
    from pycap.features import extract_features
    from pycap.import_vgg import import_vgg

    commands = {
        "caption": caption_files, "evaluate": evaluate_checkpoint, "score": score_files, "import-vgg": import_vgg,
        "features": extract_features, "doctor": examine,
    }  # fmt: skip
    try:
        status = commands[args.command](args)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:  # DataError, CheckpointError and BackendError among them
        sys.exit(f"pycap {args.command}: error: {error}")
    except MemoryError as error:  # of the host, or CuPy's of the GPU
        sys.exit(f"pycap {args.command}: error: out of memory ({error}); a smaller --batch-size takes less")
    sys.exit(status)
