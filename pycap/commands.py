"""What can be typed after `pycap`: the commands and their options."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycap.bulk.share import Shard

#: Scores that are not printed unless they are asked for.
_ALSO = ("bleu_keras", "meteor_nltk")


def parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The command line's parser, and those of the commands."""
    from pycap import __version__
    from pycap.config import BACKENDS, DEVICES, PRECISIONS
    from pycap.data.forms import FILE_FORMATS, FORMATS

    whole = argparse.ArgumentParser(prog="pycap", description="Train image captioners, and caption images with them.")
    whole.add_argument("--version", action="version", version=f"pycap {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a captioner (options: pycap train --help)", add_help=False)

    caption = commands.add_parser("caption", help="caption images")
    caption.add_argument("checkpoint", help="a checkpoint, or a run's folder")
    caption.add_argument(
        "images",
        nargs="+",
        help="image files, folders of them (searched recursively, sorted), lists (.txt, or - for the standard input), "
        "archives (.tar, .tar.gz, .tgz), stores (.h5) (docs/captioning.md)",
    )
    caption.add_argument(
        "--output",
        metavar="FILE",
        help="write the captions here (default: print them); with --format txt-sidecar a folder",
    )
    caption.add_argument("--resume", action="store_true", help="go on with what an earlier call began to write")
    caption.add_argument(
        "--skip-existing", "--skip_existing", action="store_true", help="only images that --output has no caption of"
    )
    caption.add_argument("--shard", type=_shard, metavar="I/N", help="only part I of N of the images; then pycap merge")

    merge = commands.add_parser("merge", help="put together what the shards of pycap caption wrote")
    merge.add_argument("file", metavar="FILE", help="the --output of the shards")

    evaluate = commands.add_parser("evaluate", help="caption a split of a data set and score it")
    evaluate.add_argument("checkpoint", help="a checkpoint, or a run's folder")
    evaluate.add_argument("--data", required=True, metavar="DIR", help="the data set's folder")
    evaluate.add_argument(
        "--stage", help="its kind, or several joined by + (docs/data.md; default: what the model was trained on)"
    )
    evaluate.add_argument("--split", default="val", choices=("train", "val", "test", "all"))
    evaluate.add_argument("--images", type=_positive, metavar="N", help="only the first N")
    evaluate.add_argument("--output", metavar="FILE", help="write the captions here")

    score = commands.add_parser("score", help="score a file of captions")
    score.add_argument("results", help="COCO results, what pycap caption wrote, or an ImageCLEF run")
    score.add_argument("annotations", help="COCO captions file, or lines of IMAGE_ID<TAB>sentence")
    score.add_argument("--separator", metavar="S", help="between id and caption of an ImageCLEF run (default: found)")

    paper = commands.add_parser(
        "paper",
        help="the chain of the ImageCLEF 2016 paper, and its tables (options of pycap train may follow)",
        allow_abbrev=False,
    )
    paper.add_argument(
        "--data",
        metavar="DIR",
        help="holds coco/, flickr8k/, flickr30k/, imageclef/, target/ (none: drawn demo domains)",
    )
    paper.add_argument("--vgg-weights", "--vgg_weights", metavar="FILE", help="pre-trained VGG (needed with --data)")
    paper.add_argument("--out-dir", "--out_dir", default="runs/paper", metavar="DIR", help="(default: %(default)s)")
    pairs = paper.add_mutually_exclusive_group()
    pairs.add_argument("--picks", metavar="FILE", help="picked pairs for the last fine-tuning, JSON Lines")
    pairs.add_argument(
        "--auto-select", "--auto_select", action="store_true", help="take the most probable distinct captions instead"
    )

    vgg = commands.add_parser("import-vgg", help="convert a pre-trained VGG into a file of pycap's own")
    vgg.add_argument(
        "file", metavar="FILE", help="Keras' .h5, torchvision's or timm's .safetensors, .pth, Frossard's .npz"
    )
    vgg.add_argument("--output", required=True, metavar="PATH", help="a .safetensors file, or a folder to put it in")

    select = commands.add_parser(
        "select", help="pick good pairs of images and captions by hand, on a page in the browser"
    )
    select.add_argument("results", metavar="RESULTS", help="what pycap caption --output wrote, JSON Lines")
    select.add_argument("--images", required=True, metavar="DIR", help="the folder that the captioned images are in")
    select.add_argument(
        "--output", metavar="FILE", help="decisions go here, and are gone on with (default: picks.jsonl beside RESULTS)"
    )
    select.add_argument(
        "--target", type=_positive, default=1000, metavar="N", help="pairs wanted (default: %(default)s)"
    )
    select.add_argument(
        "--order",
        choices=("logprob", "random", "diverse"),
        default="logprob",
        help="most probable captions first, any, or most probable first with each caption once (default: %(default)s)",
    )
    select.add_argument("--seed", type=int, default=0, metavar="S", help="of --order random (default: %(default)s)")
    select.add_argument(
        "--per-caption",
        "--per_caption",
        type=_positive,
        metavar="N",
        help="further images with the same caption come last (default: no limit; --order diverse: 1)",
    )
    select.add_argument(
        "--features", metavar="FILE.h5", help="of pycap features: images that look like an earlier one come last"
    )
    select.add_argument(
        "--similarity",
        type=_share,
        default=0.95,
        metavar="C",
        help="with --features: cosine from which two images look alike (default: %(default)s)",
    )
    select.add_argument("--checkpoint", metavar="NAME", help="what made the captions: noted with each pick")
    select.add_argument(
        "--port",
        type=_port,
        default=8765,
        metavar="N",
        help="of the page's address; 0: any that is free (default: %(default)s)",
    )
    select.add_argument("--no-browser", "--no_browser", action="store_true", help="only print the page's address")

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
    features.add_argument(
        "--output", required=True, metavar="FILE", help="an HDF5 file: made, or completed where it is there"
    )

    export = commands.add_parser("export", help="write a captioner as ONNX models, for other runtimes (docs/export.md)")
    export.add_argument("checkpoint", help="a checkpoint, or a run's folder")
    export.add_argument(
        "--onnx", required=True, metavar="DIR", help="the folder to write: made, or replaced where it is an export"
    )

    doctor = commands.add_parser(
        "doctor",
        help="whether a data folder can be trained on (pycap doctor DIR); what this machine has, and what a run needs of it",
        description="With folders: look at captions and at every image, and say what is wrong and what helps (docs/data.md). "
        "Without: what this machine has, and which kernels run where.",
        epilog="Status with folders: 0 nothing found, or warnings and notes; 1 an error found. No file is written without "
        "--output.",
    )
    doctor.add_argument("folders", nargs="*", metavar="DIR", help="a data set, as --data takes it; or a file of picks")
    _add_planning(doctor)
    doctor.add_argument(
        "--stage", metavar="KIND", help="what the folder holds, or a stage (default: found by its files)"
    )
    doctor.add_argument("--data", metavar="DIR", help="as DIR; with --datasets the folder that holds the sets")
    doctor.add_argument(
        "--datasets", metavar="A+B", help="sets that are trained on together, as pycap train takes them"
    )
    doctor.add_argument(
        "--sample", type=_positive, metavar="N", help="read the files of N images only (default: of all of them)"
    )
    doctor.add_argument(
        "--word-count-threshold",
        "--word_count_threshold",
        type=_positive,
        default=5,
        metavar="N",
        help="as of pycap train: words seen less often are unknown (default: %(default)s)",
    )
    doctor.add_argument(
        "--output", metavar="FILE", help="write the report here too: a page (.html), .json, .md or .txt"
    )
    doctor.add_argument("--strict", action="store_true", help="status 1 for warnings too")

    reproduce = commands.add_parser(
        "reproduce", help="make a run again from its beginning, and say where it first differs (docs/reliability.md)"
    )
    reproduce.add_argument("run", metavar="RUN", help="a run's folder: nothing in it is changed")
    reproduce.add_argument(
        "--out-dir",
        "--out_dir",
        metavar="DIR",
        help="keep the run made again here (default: RUN-reproduced, which stays only if they differ)",
    )
    reproduce.add_argument("--until-step", "--until_step", type=_positive, metavar="N", help="only the first N steps")
    reproduce.add_argument("--keep-going", "--keep_going", action="store_true", help="go on where they differ")
    reproduce.add_argument("--json", action="store_true", help="print JSON")
    reproduce.add_argument("--data", metavar="DIR", help="where the data is now (default: where it was)")
    reproduce.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: as many as then)")
    reproduce.add_argument("--device", choices=DEVICES, help="where to compute (default: where it was)")
    reproduce.add_argument("--backend", choices=BACKENDS, help="whose kernels (default: as the run was told)")

    serve = commands.add_parser("serve", help="a REST service that captions images, and a page to try it")
    _add_serving(serve)

    for command in (evaluate, score):
        command.add_argument("--also", type=_also, default=[], metavar="A,B", help=f"more scores: {', '.join(_ALSO)}")
        command.add_argument("--per-image", metavar="FILE", help="write each image's scores here, as JSON Lines")
    for command, forms, form in ((caption, FORMATS, "jsonl"), (evaluate, FILE_FORMATS, "coco"), (merge, FORMATS, None)):
        default = "%(default)s" if form else "as the shards were begun"
        command.add_argument("--format", choices=forms, default=form, help=f"of --output (default: {default})")
        command.add_argument(
            "--separator",
            default="\\t" if form else None,
            metavar="S",
            help="between id and caption in --format imageclef (default: a tab)",
        )
    for command in (caption, evaluate):
        _add_decoding(command)
    for command in (caption, evaluate, features):
        command.add_argument(
            "--batch-size", "--batch_size", type=_positive, default=16, metavar="N", help="images at once (default: 16)"
        )
    for command in (caption, evaluate, features, serve):
        command.add_argument(
            "--device", choices=DEVICES, default="auto", help="where to compute (default: %(default)s)"
        )
        command.add_argument("--backend", choices=BACKENDS, default="auto", help="whose kernels (default: %(default)s)")
        command.add_argument(
            "--precision", choices=PRECISIONS, help="of products and activations (default: as the model was trained)"
        )
        command.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")
    return whole, commands.choices


def planning() -> argparse.ArgumentParser:
    """The parser of `pycap doctor --plan`, which options of training may follow: it knows no folders, so that it takes none of
    their values for one."""
    parser = argparse.ArgumentParser(
        prog="pycap doctor", description="What a training run needs; its options may follow."
    )
    parser.add_argument("command", choices=("doctor",), help=argparse.SUPPRESS)
    _add_planning(parser)
    return parser


def _add_planning(command: argparse.ArgumentParser) -> None:
    """Options of `pycap doctor` that have no data folder."""
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--plan",
        action="store_true",
        help="what a run needs of the GPU's memory and of the disk; options of pycap train may follow",
    )
    command.add_argument(
        "--vocabulary", type=_positive, default=10_000, metavar="N", help="with --plan: words (default: %(default)s)"
    )
    command.add_argument(
        "--ranks", type=_positive, default=1, metavar="N", help="with --plan: GPUs that share each batch (default: 1)"
    )


def _add_serving(command: argparse.ArgumentParser) -> None:
    """Options of `pycap serve` (docs/serving.md)."""
    command.add_argument("checkpoint", help="a checkpoint, or a run's folder")
    command.add_argument(
        "--ensemble", nargs="+", default=[], metavar="CKPT", help="further checkpoints, which decide together"
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: all (default: %(default)s, this machine only)",
    )
    command.add_argument("--port", type=_port, default=8000, metavar="N", help="0: any free one (default: %(default)s)")
    command.add_argument(
        "--beam-size",
        "--beam_size",
        type=_positive,
        default=3,
        metavar="N",
        help="where a request names none (default: 3)",
    )
    command.add_argument(
        "--max-beam-size", "--max_beam_size", type=_positive, default=10, metavar="N", help="(default: 10)"
    )
    command.add_argument("--max-length", type=_positive, metavar="N", help="most words (default: as in training)")
    command.add_argument(
        "--max-batch", "--max_batch", type=_positive, default=16, metavar="N", help="images at once (default: 16)"
    )
    command.add_argument(
        "--queue",
        type=_positive,
        default=64,
        metavar="N",
        help="requests in hand; others are answered 503 (default: 64)",
    )
    command.add_argument(
        "--max-bytes",
        "--max_bytes",
        type=_quantity,
        default="10M",
        metavar="N",
        help="of an image (default: %(default)s)",
    )
    command.add_argument(
        "--max-pixels",
        "--max_pixels",
        type=_quantity,
        default="40M",
        metavar="N",
        help="of an image (default: %(default)s)",
    )
    command.add_argument(
        "--timeout", type=_positive, default=30, metavar="S", help="seconds until a request is answered (default: 30)"
    )
    command.add_argument("--examples", metavar="DIR", help="images that the page offers to try")
    command.add_argument(
        "--cors",
        nargs="+",
        type=_origin,
        default=[],
        metavar="ORIGIN",
        help="pages elsewhere that may call the service, as https://example.org; *: all",
    )
    command.add_argument("--verbose", action="store_true", help="log a line a request")


def _add_decoding(command: argparse.ArgumentParser) -> None:
    """Options that say how captions are made of probabilities (docs/decoding.md); `cli._decoding` reads them."""
    command.add_argument(
        "--ensemble", nargs="+", default=[], metavar="CKPT", help="further checkpoints, which decide together"
    )
    command.add_argument("--beam-size", "--beam_size", type=_positive, metavar="N", help="1 is greedy (default: 3)")
    command.add_argument(
        "--length-penalty", type=float, metavar="A", help="divide by length to this power (default: 0)"
    )
    command.add_argument("--max-length", type=_positive, metavar="N", help="most words (default: as in training)")
    command.add_argument(
        "--temperature", type=float, metavar="T", help="draw words from probability^(1/T); 0 is greedy"
    )
    command.add_argument("--top-k", type=_positive, metavar="K", help="draw only from the K most probable words")
    command.add_argument("--top-p", type=float, metavar="P", help="draw only from the fewest words that sum to P")
    command.add_argument(
        "--samples", type=_positive, metavar="N", help="draw N captions an image; the most probable is the caption"
    )
    command.add_argument("--seed", type=int, metavar="S", help="of what is drawn (default: 0)")


def _also(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in _ALSO:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(_ALSO)}")
    return names


def _shard(text: str) -> Shard:
    from pycap.bulk.share import Shard

    try:
        return Shard.parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} does not lie in 0..65535")
    return value


def _origin(text: str) -> str:
    """As browsers send it; one that is written otherwise would match none."""
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", text):
        raise argparse.ArgumentTypeError(f"{text} is no origin, as https://example.org is, without a path")
    return text


def _quantity(text: str) -> int:
    """A count, with k, M or G for thousands, millions and thousands of millions."""
    parts = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([kKmMgG]?)", text, re.ASCII)
    count = int(float(parts[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[parts[2].lower()]) if parts else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count such as 500k, 10M or 1.5G")
    return count
