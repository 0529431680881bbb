"""What every rank of a test's job does: run after run, each as one call of `train.py` would. Started by mpirun:

    mpirun -n 2 python -m tests.train.parallel_job FOLDER

FOLDER/job.json holds the runs: `options` of a config, of the `last` rank other ones, the `fault` that befalls it, and whether
the run is to end with an error (`ends`), after which the next one begins; any other error ends the job. What rank R shows on
its screen is OUT_DIR.screen.R, and the error that ends a run is OUT_DIR.error.R.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import pycap
from pycap import distributed
from pycap.config import TrainConfig
from pycap.training import run as training
from pycap.training.trainer import Trainer

STEP = 2  # after which a fault comes


def _fault(trainer: Trainer, name: str) -> None:
    if name in ("signal", "kill"):
        os.kill(os.getpid(), signal.SIGINT if name == "signal" else signal.SIGKILL)
    elif name == "nan":
        trainer.model.projection.bias.data[5] = np.nan  # type: ignore[union-attr]
    elif name == "bit":
        trainer.model.projection.bias.data.view(np.uint32)[5] ^= 1  # type: ignore[union-attr]


def _run(options: dict[str, Any], fault: str) -> None:
    launch = Trainer.launch

    def faulty(self: Trainer, *batch: Any) -> Any:
        pending = launch(self, *batch)
        if self.step_number == STEP:
            _fault(self, fault)
        return pending

    elsewhere = (
        mock.patch.object(training, "current", lambda: "cuda") if fault == "device" else contextlib.nullcontext()
    )
    with mock.patch.object(Trainer, "launch", faulty), elsewhere:
        pycap.train(TrainConfig(**options))


def main() -> None:
    folder = Path(sys.argv[1])
    os.chdir(folder)
    with distributed.started() as ranks:
        for run in json.loads(Path("job.json").read_text()):
            is_last = ranks.rank == ranks.size - 1
            options = run["options"] | (run.get("last", {}) if is_last else {})
            with contextlib.redirect_stdout(io.StringIO()) as said:
                try:
                    _run(options, run.get("fault", "") if is_last else "")
                except Exception as error:
                    Path(f"{options['out_dir']}.error.{ranks.rank}").write_text(f"{type(error).__name__}: {error}")
                    if not run["ends"]:  # the others may be anywhere, and would wait for this rank
                        raise
            Path(f"{options['out_dir']}.screen.{ranks.rank}").write_text(said.getvalue())


if __name__ == "__main__":
    main()
