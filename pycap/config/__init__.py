"""Every option of training, and how recipe, file and command line are laid over it.

| file | its job |
|---|---|
| `options.py` | the dataclass and its checks |
| `files.py` | recipes, a run's config.yaml, what a resumed run was given |
| `command_line.py` | the command line |
"""

from pycap.config.command_line import parse_args
from pycap.config.files import (
    check_stage,
    laid_under,
    load,
    load_extra,
    read_options,
    recipe,
    recipes_dir,
    resumed,
    resumed_options,
    save,
    stages,
    to_dict,
    to_yaml,
    with_recipe,
)
from pycap.config.options import (
    BACKENDS,
    CNNS,
    DEVICES,
    FIELDS,
    PRECISIONS,
    SCORES,
    TYPES,
    ConfigError,
    TrainConfig,
    did_you_mean,
)

__all__ = [
    "BACKENDS",
    "CNNS",
    "DEVICES",
    "FIELDS",
    "PRECISIONS",
    "SCORES",
    "TYPES",
    "ConfigError",
    "TrainConfig",
    "check_stage",
    "did_you_mean",
    "laid_under",
    "load",
    "load_extra",
    "parse_args",
    "read_options",
    "recipe",
    "recipes_dir",
    "resumed",
    "resumed_options",
    "save",
    "stages",
    "to_dict",
    "to_yaml",
    "with_recipe",
]
