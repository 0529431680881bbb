"""What every rank of a test's job does: run after run, each as one call of `train.py` would; started by mpirun.

    mpirun -n 2 python -m tests.train.parallel_job JOB.json

JOB.json holds runs, each the options of a config, and the folder to stand in. The first rank's screen is OUT_DIR.screen.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import pycap
from pycap import distributed
from pycap.config import TrainConfig


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    os.chdir(job["folder"])
    with distributed.started() as ranks:
        for options in job["runs"]:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                pycap.train(TrainConfig(**options))
            Path(f"{options['out_dir']}.screen.{ranks.rank}").write_text(said.getvalue())


if __name__ == "__main__":
    main()
