"""A training that is killed outright goes on with the same bits."""

import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from standins import save_sd

from splam import train
from splam.data import emoji
from splam.params import write_params

ROOT = Path(__file__).resolve().parents[1]
RUN = "splam-w3-k20"
OVERRIDES = [
    "teacher.dtype=float32",
    "training.iterations=8",
    "training.batch_size=2",
    "training.bf16=false",
    "training.condition_width=8",
    "training.checkpoint_seconds=1.0e-9",  # after every iteration
    "training.source=online",
    f"runs.{RUN}.training={{snapshots: []}}",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A teacher with dropout, whose masks must come back too, and a handful of images."""
    folder = tmp_path_factory.mktemp("world")
    save_sd(folder / "teacher", dropout=0.1)
    emoji.build(folder / "data", 0, 1, 1, every=130, workers=1)
    return folder


def command(world: Path, folder: Path, processes: int) -> list[str]:
    """The command line that trains into folder."""
    write_params(
        "smoke", ROOT / "conf/profile", [*OVERRIDES, f"training.processes={processes}"], folder / "params.yaml"
    )
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    arguments = {"--params": folder / "params.yaml", "--teacher": world / "teacher", "--data": world / "data"}
    arguments |= {"--scratch": folder / "scratch", "--out": folder / "out"}
    flags = [str(part) for pair in arguments.items() for part in pair]
    return [sys.executable, "-m", *(torchrun if processes > 1 else []), "splam.train", f"{RUN}-s0", *flags]


def trained(line: list[str]) -> None:
    """Run a command to its end; one of a single process in this one, where all is imported."""
    module, *arguments = line[2:]
    if module == train.__name__:
        assert train.main(arguments) == 0
    else:
        subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=1800)


def killed_at(line: list[str], folder: Path, iteration: int) -> None:
    """Start a training and kill it, and all it started, as soon as it has a checkpoint of an iteration."""
    process = psutil.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 1800
    while not any(int(p.stem[-8:]) >= iteration for p in (folder / "scratch").glob("*/checkpoint-*.pt")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    for one in [process, *process.children(recursive=True)]:
        one.kill()  # SIGKILL
        one.wait()
    assert not (folder / "out").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_training_goes_on_with_the_same_bits(world, tmp_path, processes):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    trained(command(world, whole, processes))
    iteration = random.randint(1, 4)
    line = command(world, cut, processes)
    killed_at(line, cut, iteration)
    trained(line)
    assert (cut / "out/log.csv").read_text() == (whole / "out/log.csv").read_text(), f"killed after {iteration}"
    weights = [load_file(f / "out/pipeline/unet/diffusion_pytorch_model.safetensors") for f in (cut, whole)]
    assert all((weights[0][name] == value).all() for name, value in weights[1].items()), f"killed after {iteration}"
    assert not list((cut / "scratch").iterdir())
