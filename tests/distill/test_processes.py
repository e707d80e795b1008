"""Processes: two train as one does, a killed training goes on with the same bits, and the command line names errors."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from splam.config import ROOT, load_params
from splam.distill.__main__ import main
from splam.distill.checkpoints import locked
from splam.distill.loop import open_distillation, train
from splam.networks.student import load_unet
from splam.profile import compose
from tests.distill.builders import RUN, SMALL, weights
from tests.networks.conftest import changed

UNET, SCRATCH = "unet/config.json", f"scratch/distill/smoke/{RUN}"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def write_params(folder: Path, *overrides: str) -> None:
    """Write folder/params.yaml: a training from images that saves a checkpoint after every iteration."""
    settings = ["training.source=data", "training.checkpoint_seconds=1.0e-9", *overrides]
    (folder / "params.yaml").write_text(yaml.safe_dump(compose("smoke", [*SMALL, *settings])))


def arguments(folder: Path, teacher: Path, data: Path, *overrides: str) -> list[str]:
    """A command line that trains below a folder."""
    folder.mkdir()
    write_params(folder, *overrides)
    (folder / "teacher").symlink_to(teacher)
    return [RUN, "--params", str(folder / "params.yaml"), "--build", str(folder), "--data", str(data)]


def killed_at(command: list[str], folder: Path, iteration: int) -> None:
    """Start a training and kill it, and all it started, as soon as it has a checkpoint of an iteration."""
    process = psutil.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 1800
    while not any(int(p.stem[-8:]) >= iteration for p in (folder / SCRATCH).glob("checkpoint-*.pt")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    for each in [process, *process.children(recursive=True)]:
        each.kill()  # SIGKILL
        each.wait()
    assert not (folder / "runs").exists()


def test_a_killed_training_goes_on_with_the_same_bits(teacher_folder, data, tmp_path):
    """Of two processes, with dropout, whose masks must come back too."""
    teacher, iteration = changed(teacher_folder, tmp_path / "teacher", UNET, dropout=0.1), random.randint(1, 4)
    for name in ("whole", "cut"):
        line = arguments(tmp_path / name, teacher, data, "training.processes=2", "training.iterations=12")
        if name == "cut":
            killed_at([*TORCHRUN, "splam.distill", *line], tmp_path / name, iteration)
        subprocess.run([*TORCHRUN, "splam.distill", *line], cwd=ROOT, check=True, capture_output=True, timeout=1800)
    whole, cut = (tmp_path / name / "runs" / RUN for name in ("whole", "cut"))
    assert (cut / "losses.csv").read_text() == (whole / "losses.csv").read_text(), f"killed after {iteration}"
    weights = [load_file(f / "pipeline/unet/diffusion_pytorch_model.safetensors") for f in (cut, whole)]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert not (tmp_path / "cut" / SCRATCH).exists()  # nothing is left of a finished run


def test_two_processes_train_as_one_and_go_on_where_it_stopped(teacher_folder, data, tmp_path):
    """The notebook trains in its own process, torchrun on several: both from the same checkpoints."""
    folder, scratch = tmp_path / "build", tmp_path / "build" / SCRATCH
    line = arguments(folder, teacher_folder, data)
    job = open_distillation(load_params(folder / "params.yaml"), RUN, folder, data)
    steps = train(job, scratch, folder / "out")
    alone = [next(steps) for _ in range(3)]
    shutil.copytree(scratch, tmp_path / "kept")
    alone += list(steps)
    shutil.copytree(tmp_path / "kept", scratch)
    cut = ("processes=2", "batch_size=1", "gradient_accumulation_steps=2")
    write_params(folder, *(f"training.{part}" for part in cut))
    asked = {f"ACCELERATE_{name}": "true" for name in ("USE_FSDP", "USE_DEEPSPEED", "USE_MEGATRON_LM")}
    environment = os.environ | asked | {"ACCELERATE_MIXED_PRECISION": "bf16"}  # which is for the profile to say
    how = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 1800}
    done = subprocess.run([*TORCHRUN, "splam.distill", *line], **how)
    assert done.returncode == 0, done.stderr[-3000:]
    together = pd.read_csv(folder / "runs" / RUN / "losses.csv").loss
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    np.testing.assert_allclose(together[:3], alone[:3], rtol=1e-6)  # those of the checkpoint
    unets = (load_unet(part / "pipeline/unet", job.teacher.unet) for part in (folder / "out", folder / "runs" / RUN))
    start, (one, two) = weights(job.teacher.unet), map(weights, unets)
    # Rounding parts them by 1e-5 of the way that they have come, gradients that are not exchanged by 0.16 of it.
    assert (two - one).norm() < 1e-3 * (one - start).norm()


def test_the_command_line_names_what_is_wrong(teacher_folder, data, tmp_path):
    line = arguments(tmp_path / "build", teacher_folder, data)
    with pytest.raises(SystemExit, match="there is no run 'splam-s9'"):
        main(["splam-s9", *line[1:]])
    with locked(tmp_path / "build" / SCRATCH), pytest.raises(SystemExit, match=f"{RUN} is being trained by another"):
        main(line)
    with pytest.raises(SystemExit, match="none/teacher is"):
        main([RUN, *line[1:3], "--build", str(tmp_path / "none")])
