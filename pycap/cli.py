"""The command `pycap`: train, caption, merge, evaluate, score, paper, import-vgg, features, doctor."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycap.bulk.share import Shard

#: Scores that are not printed unless they are asked for.
_ALSO = ("bleu_keras", "meteor_nltk")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The command line's parser, and those of the commands."""
    from pycap import __version__
    from pycap.config import BACKENDS, DEVICES, PRECISIONS
    from pycap.data.forms import FILE_FORMATS, FORMATS

    parser = argparse.ArgumentParser(prog="pycap", description="Train image captioners, and caption images with them.")
    parser.add_argument("--version", action="version", version=f"pycap {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    doctor.add_argument(
        "--ranks", type=_positive, default=1, metavar="N", help="with --plan: GPUs that share each batch (default: 1)"
    )

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
        command.add_argument(
            "--device", choices=DEVICES, default="auto", help="where to compute (default: %(default)s)"
        )
        command.add_argument("--backend", choices=BACKENDS, default="auto", help="whose kernels (default: %(default)s)")
        command.add_argument(
            "--precision", choices=PRECISIONS, help="of products and activations (default: as the model was trained)"
        )
        command.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")
    return parser, commands.choices


def _add_decoding(command: argparse.ArgumentParser) -> None:
    """Options that say how captions are made of probabilities (docs/decoding.md); `_decoding` reads them."""
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


def _decoding(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The arguments of `Captioner.caption`, and what they are in words. ValueError for options that contradict each other."""
    from pycap.decode import Sampling

    given = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "samples", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    options = {"batch_size": args.batch_size, "max_length": args.max_length, "sampling": None}
    if not given.keys() - {"seed"}:
        if given:
            raise ValueError(
                "--seed is of what is drawn, and nothing is: give --temperature, --top-k, --top-p or --samples"
            )
        beam_size = args.beam_size or 3
        return options | {"beam_size": beam_size, "length_penalty": args.length_penalty or 0.0}, f"beam {beam_size}"
    if (args.beam_size or 1) > 1 or args.length_penalty:
        search = f"--beam-size {args.beam_size}" if (args.beam_size or 1) > 1 else "--length-penalty"
        drawn = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{search} is of a search, and {drawn} of drawing at random: leave one of them out")
    how = ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in given.items())
    return options | {"sampling": Sampling(**given)}, f"drawn with {how}"


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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Exit status: 0 done, 1 an error told in one line, 2 a wrong option, 128 + n signal n."""
    try:
        _command(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # before there is anything to save, or a second one
        sys.exit(130)


def _command(argv: list[str]) -> None:
    if argv[:1] == ["train"]:
        from pycap.train import main as train

        train(argv[1:])
        return
    if argv[:1] == ["caption"]:
        from pycap.distributed import DistributedError, started

        try:
            with started():
                status = _run(argv)
        except DistributedError as error:
            sys.exit(f"pycap caption: error: {error}")
    else:
        status = _run(argv)
    sys.exit(status)


def _run(argv: Sequence[str]) -> int:
    """The command's status; an error's text, or that of a wrong option, comes as SystemExit."""
    from pycap.distributed import alike

    with alike():
        args = _arguments(argv)
    from pycap.caption import caption_files, merge_shards
    from pycap.doctor import examine
    from pycap.evaluate import evaluate_checkpoint, score_files
    from pycap.features import extract_features
    from pycap.import_vgg import import_vgg

    commands = {
        "caption": caption_files, "merge": merge_shards, "evaluate": evaluate_checkpoint, "score": score_files,
        "import-vgg": import_vgg, "features": extract_features, "doctor": examine,
    }  # fmt: skip
    if args.command == "paper":  # training's modules take a while to load
        from pycap.paper import run_paper

        commands["paper"] = run_paper
    try:
        return commands[args.command](args)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:  # DataError and Diverged among them
        sys.exit(f"pycap {args.command}: error: {error}")
    except MemoryError as error:  # of the host, or CuPy's of the GPU
        sys.exit(f"pycap {args.command}: error: out of memory ({error}); a smaller --batch-size takes less")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    from pycap.config.options import did_you_mean

    parser, commands = _parser()
    args, options = parser.parse_known_args(argv)
    if options and args.command != "paper" and not (args.command == "doctor" and args.plan):
        known = re.findall("--[a-z][a-z-]+", commands[args.command].format_help())
        near = did_you_mean(options[0].partition("=")[0], known) if options[0].startswith("-") else ""
        commands[args.command].error(f"unrecognized arguments: {' '.join(options)}{near}")
    args.options = options
    if args.command in ("caption", "evaluate"):
        try:
            args.decoding, args.how = _decoding(args)
            if args.ensemble:
                args.how += f", {1 + len(args.ensemble)} checkpoints together"
        except ValueError as error:
            parser.error(str(error))
    return args
