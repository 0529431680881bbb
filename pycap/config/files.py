"""Options in files: recipes, a run's config.yaml, and what a resumed run was given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from pycap.config.options import FIELDS, TYPES, ConfigError, TrainConfig, check_value, did_you_mean, shown

_EXTRA_KEYS = ("preprocess",)  # what a checkpoint's config.yaml holds besides options
_MOST_BYTES = 64 << 10  # twenty times what all options take; PyYAML reads some 100 kB a second
_DEEPEST = 20
_LONGEST = 100  # letters of an option's name


def recipes_dir() -> Path:
    """The installed package data `pycap.recipes`, or in a checkout its recipes/."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "recipes", here.parent / "recipes"):
        if (folder / "coco.yaml").is_file():
            return folder
    raise ConfigError(
        f"recipes: coco.yaml is neither in {here.parent / 'recipes'} nor in {here / 'recipes'}; reinstall pycap"
    )


def stages() -> list[str]:
    """Names of the stages: the recipes that carry `stage:` with their own name. Other recipes are variants."""
    found = []
    for path in sorted(recipes_dir().glob("*.yaml")):
        if any(line.split("#")[0].strip() == f"stage: {path.stem}" for line in path.read_text("utf-8").splitlines()):
            found.append(path.stem)
    return found


def check_stage(stage: str) -> None:
    """ConfigError, listing the stages, unless `stage` is one."""
    known = stages()
    if stage not in known:
        raise ConfigError(f"stage: no stage {shown(stage)}{did_you_mean(stage, known)}; stages: {', '.join(known)}")


def recipe(name: str) -> dict[str, Any]:
    """The options of a recipe, given by its name or as a YAML file."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else recipes_dir() / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in recipes_dir().glob("*.yaml"))
        raise ConfigError(
            f"recipe: no {name!r}{did_you_mean(name, known)}; recipes: {', '.join(known)}, or a YAML file"
        )
    return read_options(path)


def with_recipe(config: TrainConfig, name: str) -> TrainConfig:
    """`config` with a recipe laid under what the user gave."""
    return laid_under(config, recipe(name))


def laid_under(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    """`config` with `options`, but for those that the user gave: on the command line or in --config, or, for a config made
    in Python, whatever differs from the defaults."""
    given = config.given
    if given is None:
        given = frozenset(n for n, f in FIELDS.items() if getattr(config, n) != f.default)
    base = agreeing(options, {name: getattr(config, name) for name in given})
    new = replace(config, **{k: v for k, v in base.items() if k not in given})
    new.given = config.given
    return new.validate()


def agreeing(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's options; where the user's (given) freeze the CNN, or do without it, without those that say when it learns."""
    learns = not (given.get("freeze_cnn") or given.get("blind"))
    return {k: v for k, v in base.items() if learns or k not in ("finetune_cnn_after", "pretrain_words")}


@cache
def _plain_loader() -> Any:
    """YAML's values (`yaml.SafeLoader`: no tag makes an object of Python's), without what would make an option other than what
    its line says, or a short file large: a key that stands twice, of which YAML takes the last; names for values (&, *)."""
    import yaml

    class PlainLoader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise yaml.composer.ComposerError(
                    None, None, f"*{event.anchor}: write the value itself", event.start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                seen: set[Any] = set()
                for key, _ in node.value:
                    name = self.construct_object(key, deep=True)
                    if name in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"{name} stands in it twice", key.start_mark
                        )
                    seen.add(name)
            return found

    return PlainLoader


def _read_yaml(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(
                f"{path}: more than {_MOST_BYTES} bytes, which no options take; give lines of `option: value`"
            )
        text, depth = content.decode("utf-8"), 0
        for event in yaml.parse(text, yaml.SafeLoader):  # the loader takes time with the square of the depth
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ConfigError(f"{path}: lists in lists, more than {_DEEPEST} deep; options are values")
        raw = yaml.load(text, _plain_loader())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except ConfigError:
        raise
    # PyYAML lets through what its constructors raise: of a 13th month, a number of thousands of digits, `!!timestamp x`.
    except (yaml.YAMLError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())[:500]}") from error
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}: holds {type(raw).__name__}, not lines of `option: value`")
    return raw


def read_options(path: Path) -> dict[str, Any]:
    """Options of a YAML file, with the types of TrainConfig. Unknown keys and wrong types are errors."""
    options: dict[str, Any] = {}
    for key, value in _read_yaml(path).items():
        name = key.replace("-", "_") if isinstance(key, str) and len(key) <= _LONGEST else ""
        if name in _EXTRA_KEYS:
            continue
        if name not in FIELDS:
            raise ConfigError(f"{path}: unknown option {key if name else shown(key)}{did_you_mean(name, FIELDS)}")
        options[name] = _coerce(name, value)
        try:
            check_value(FIELDS[name], options[name])
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return options


def _coerce(name: str, value: Any) -> Any:
    """What YAML reads otherwise than people mean it: 1e-3 (a string in YAML 1.1), 1 for a float, paths."""
    kinds = getattr(TYPES[name], "__args__", (TYPES[name],))
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if float in kinds and type(value) is int:
        try:
            return float(value)
        except OverflowError:  # a number of hundreds of digits: check_value names it
            return value
    if float in kinds and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value  # check_value names the option and the value
    return value


def resumed_options(path: Path) -> dict[str, Any]:
    """Options of the run to continue, given by its or its checkpoint's folder; it goes on in the run's own folder."""
    for folder, run in ((path, path), (path / "last", path)):
        if (folder / "config.yaml").is_file():
            options = read_options(folder / "config.yaml")
            is_checkpoint = folder == path and (path / "state.json").is_file()
            return {**options, "resume": path, "out_dir": path.parent if is_checkpoint else run, "init_from": None}
    raise ConfigError(
        f"resume: {path} holds no config.yaml; give a run's folder (runs/NAME) or a checkpoint in it (runs/NAME/last)"
    )


def resumed(path: str | os.PathLike[str], **changes: Any) -> TrainConfig:
    """The config that continues a run exactly, as --resume does; `changes` (epochs=, max_steps=) go over the run's."""
    options = {**resumed_options(Path(path)), **changes}
    config = TrainConfig(**options)
    config.given = frozenset(options)
    return config.validate()


def load(path: str | os.PathLike[str]) -> TrainConfig:
    """Read what `save` wrote (a checkpoint's config.yaml too); options that the file lacks have their defaults."""
    options = read_options(Path(path))
    try:
        return TrainConfig(**options).validate()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_extra(path: str | os.PathLike[str], key: str) -> dict[str, Any]:
    """The mapping that a checkpoint's config.yaml holds under `key` besides the options ("preprocess")."""
    value = _read_yaml(Path(path)).get(key)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: has no {key}: (found {shown(value)}); it is not a checkpoint's config.yaml")
    return value


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values only, for YAML or JSON; paths as strings."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}


def to_yaml(config: TrainConfig, extra: Mapping[str, Any] | None = None) -> str:
    """The config as YAML text, in the order of its fields; `extra` keys follow."""
    import yaml

    class PlainDumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # `_plain_loader` reads none
            return True

    return yaml.dump({**to_dict(config), **(extra or {})}, Dumper=PlainDumper, sort_keys=False, allow_unicode=True)


def save(config: TrainConfig, path: str | os.PathLike[str]) -> None:
    """Write YAML to a temporary file, sync it, and rename it over `path`."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(to_yaml(config))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
