"""Distil one run: `python -m splam.distill RUN`, or on N processes `torchrun --nproc-per-node N -m splam.distill RUN`.

A run that was killed resumes from its last checkpoint, bit for bit, when the same command is run again.
"""

import argparse
import sys
from pathlib import Path

from splam.config import PARAMS, ROOT, ParamsError, load_params
from splam.data.images import DataError
from splam.distill.checkpoints import CheckpointError
from splam.distill.loop import open_distillation, train


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m splam.distill", description=__doc__)
    parser.add_argument("run", help="a name under `runs` in the parameters")
    parser.add_argument("--params", type=Path, default=PARAMS, help="%(default)s")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="of all stages (%(default)s)")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="what the data stage wrote (%(default)s)")
    options = parser.parse_args(arguments)
    run, build = options.run, options.build
    try:
        params = load_params(options.params)
        job = open_distillation(params, run, build, options.data)
        list(train(job, build / "scratch/distill" / params.profile / run, build / "runs" / run))
    except (ParamsError, DataError, CheckpointError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
