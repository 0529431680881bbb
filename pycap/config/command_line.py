"""The command line of training: parsed, and laid over recipe, resumed run and --config."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycap.config.files import agreeing, check_stage, read_options, recipe, resumed_options, stages, to_yaml
from pycap.config.options import FIELDS, PATHS, TYPES, ConfigError, TrainConfig, check_value, did_you_mean, type_name

_GROUPS = {  # first option of each group in --help
    "stage": "data and run",
    "model": "model",
    "optimizer": "optimisation",
    "pretrain_words": "length, validation and checkpoints",
    "resume": "start from",
    "device": "machine",
}


def parse_args(argv: Sequence[str] | None = None, prog: str = "train.py") -> TrainConfig:
    """Defaults < recipe < the resumed run's own options < --config FILE < command line, regardless of order there.

    An unknown or bad option prints one line that names it, with the nearest known one, and exits with status 2.
    `--print-config` prints the result and exits with status 0. `given` of the result holds what the user set.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = _parser(prog)
        argv = _normalise(argv)
        typed, print_config = _typed(parser, argv)
        config = _resolve(typed)
    except ConfigError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def _parser(prog: str) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [--stage NAME] [--data DIR] [options]",
        exit_on_error=False,
        description="Train a captioner. Options are laid over each other: defaults, then the recipe, then --config "
        "FILE, then the command line, in whatever order they stand there. - and _ are the same in names.",
    )
    group = parser.add_argument_group("recipe")
    group.add_argument("--recipe", type=str, metavar="NAME|FILE", help="another recipe than the stage's own")
    group.add_argument("--config", type=str, metavar="FILE", help="YAML file with options, over the recipe")
    group.add_argument("--print-config", action="store_true", help="print the resolved options as YAML and exit")
    for name, f in FIELDS.items():
        if name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[name])
        extra: dict[str, Any] = {}
        if TYPES[name] is bool:
            extra = {"nargs": "?", "const": True}
        elif f.metadata["choices"]:
            extra = {"metavar": "{" + ",".join(f.metadata["choices"]) + "}"}
        elif name in PATHS:
            extra = {"metavar": "PATH"}
        elif name == "stage":
            extra = {"metavar": "{" + ",".join(stages()) + "}"}
        else:
            extra = {"metavar": "N" if TYPES[name] is int else "X"}
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, type=TYPES[name], default=f.default, help=f.metadata["help"], **extra)
    return parser


def _normalise(argv: Sequence[str]) -> list[str]:
    """Option names with dashes; none as YAML's null; `--no-NAME` as `--NAME=false`; unknown names are an error."""
    known = [*(FIELDS), "recipe", "config", "print_config", "help"]
    out: list[str] = []
    optional = {"--" + n.replace("_", "-") for n, t in TYPES.items() if type(None) in getattr(t, "__args__", ())}
    for token in argv:
        if not token.startswith("--") or token == "--":
            is_none = token.lower() == "none" and bool(out) and out[-1] in optional
            out.append("null" if is_none else token)
            continue
        name, equals, value = token[2:].partition("=")
        name = name.replace("-", "_")
        if name not in known and name.startswith("no_") and TYPES.get(name[3:]) is bool:
            name, equals, value = name[3:], "=", "false"
        if name not in known:
            raise ConfigError(
                f"unknown option {token.partition('=')[0]}{did_you_mean(name, known).replace('_', '-')}; "
                "--help lists all"
            )
        flag = "--" + name.replace("_", "-")
        if flag in optional and value.lower() == "none":
            value = "null"
        out.append(f"{flag}{equals}{value}")
    return out


def _typed(parser: Any, argv: list[str]) -> tuple[dict[str, Any], bool]:
    """Only what stands on the command line, typed, and whether --print-config does."""
    from jsonargparse import ArgumentError

    try:
        parsed = parser.parse_args(argv)
    except ArgumentError as error:
        text = " ".join(str(error).split())
        named = re.match(r'Parser key "(\w+)".*(?:Got|Given) value: (.*)', text)
        if named and named[1] in FIELDS:
            text = f"{named[1]}: {named[2]!r} is not of type {type_name(named[1])}"
        raise ConfigError(text) from error
    present = {token[2:].partition("=")[0].replace("-", "_") for token in argv if token.startswith("--")}
    typed = {name: getattr(parsed, name) for name in (*FIELDS, "recipe", "config") if name in present}
    for name in FIELDS.keys() & typed.keys():
        check_value(FIELDS[name], typed[name])
    return typed, bool(parsed.print_config)


def _resolve(typed: dict[str, Any]) -> TrainConfig:
    recipe_name, config_file = typed.pop("recipe", None), typed.pop("config", None)
    user = {**(read_options(Path(config_file)) if config_file else {}), **typed}
    resumed = resumed_options(user["resume"]) if user.get("resume") else {}
    stage = user.get("stage") or resumed.get("stage") or (None if recipe_name else "coco")
    if stage is not None:
        check_stage(stage)
    base = agreeing(recipe(recipe_name or str(stage)), user)
    config = TrainConfig(**{**base, **resumed, **user})
    config.given = frozenset(user) | frozenset(resumed)
    return config.validate()
