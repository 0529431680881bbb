"""The command `pycap`: what was typed is read (`commands`) and done; how it ends."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from pycap.commands import parser as command_line
from pycap.commands import planning


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
    if argv[:1] in (["caption"], ["reproduce"]):
        from pycap.distributed import DistributedError, started

        try:
            with started():
                status = _run(argv)
        except DistributedError as error:
            sys.exit(f"pycap {argv[0]}: error: {error}")
    else:
        status = _run(argv)
    sys.exit(status)


def _run(argv: Sequence[str]) -> int:
    """The command's status; an error's text, or that of a wrong option, comes as SystemExit."""
    from pycap.distributed import alike, plain_warnings

    with alike():
        args = _arguments(argv)
    from pycap.caption import caption_files, merge_shards
    from pycap.doctor import examine
    from pycap.evaluate import evaluate_checkpoint, score_files
    from pycap.features import extract_features
    from pycap.import_vgg import import_vgg

    commands = {
        "caption": caption_files, "merge": merge_shards, "evaluate": evaluate_checkpoint, "score": score_files,
        "import-vgg": import_vgg, "features": extract_features, "doctor": examine, "select": _page, "serve": _page,
    }  # fmt: skip
    if args.command == "paper":  # training's modules take a while to load
        from pycap.paper import run_paper

        commands["paper"] = run_paper
    elif args.command == "reproduce":
        from pycap.reproduce.command import reproduce

        commands["reproduce"] = reproduce
    elif args.command == "export":
        from pycap.export.command import export_checkpoint

        commands["export"] = export_checkpoint
    try:
        with plain_warnings(f"pycap {args.command}"):
            return commands[args.command](args)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:  # DataError and Diverged among them
        sys.exit(f"pycap {args.command}: error: {error}")
    except MemoryError as error:  # of the host, or CuPy's of the GPU
        sys.exit(f"pycap {args.command}: error: out of memory ({error}); a smaller --batch-size takes less")


def _page(args: argparse.Namespace) -> int:
    """Pages need the packages of an extra."""
    from pycap.web import require

    require()
    if args.command == "select":
        from pycap.web.select import select

        return select(args)
    from pycap.web.serve import serve_checkpoint

    return serve_checkpoint(args)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    from pycap.config.options import did_you_mean

    parser, commands = command_line()
    if argv[:1] == ["doctor"] and "--plan" in argv:
        parser = planning()
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
