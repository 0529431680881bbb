"""Training: `pycap.train(config)`, and the command `python train.py`. What does the work is in `pycap.training`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycap.config import TrainConfig
    from pycap.training.run import RunResult


def train(config: TrainConfig) -> RunResult:
    """Train a captioner, or the classifier of stage `pretrain`, as `config` says; returns the run's folder and scores.

    Raises ConfigError, DataError, CheckpointError, DeviceError, BackendError, Diverged, WrongGradient, each with what to do
    about it; Stopped after Ctrl-C or SIGTERM, when everything is saved.
    """
    from pycap.training.run import run

    return run(config)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Exit status: 0 done; 1 an error, told in one line; 2 a wrong option; 128 + n for signal n."""
    from pycap import config as configuration
    from pycap.backends import BackendError
    from pycap.checkpoint import CheckpointError
    from pycap.data import DataError
    from pycap.device import DeviceError
    from pycap.distributed import DistributedError, alike, plain_warnings, started

    try:
        with started() as ranks:
            with alike():
                config = configuration.parse_args(argv)
            from pycap.optim import OptimizerStateError
            from pycap.schedules import ScheduleStateError
            from pycap.training.gradients import WrongGradient
            from pycap.training.run import Stopped
            from pycap.training.trainer import Diverged

            try:
                with plain_warnings("train.py"):
                    train(config)
            except Stopped as stop:
                if ranks.rank == 0:
                    print(stop, flush=True)
                sys.exit(128 + stop.signal_number)
            except (
                configuration.ConfigError, DataError, CheckpointError, DeviceError, BackendError, Diverged,
                WrongGradient, OptimizerStateError, ScheduleStateError, DistributedError, OSError,
            ) as error:  # fmt: skip
                sys.exit(f"train.py: error: {error}")
            except MemoryError as error:  # of the host, or CuPy's of the GPU
                sys.exit(
                    f"train.py: error: out of memory ({error}); --micro-batch N takes less, with the same gradients"
                )
    except DistributedError as error:
        sys.exit(f"train.py: error: {error}")
    except KeyboardInterrupt:  # before there is anything to save, or a second one
        sys.exit(130)
