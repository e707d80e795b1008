"""Two processes, sharded or not, do what one does; and what saves memory or time changes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import measure
from runs import SETTINGS, FakeStream, small_run
from standins import save_sd

from splam import parallel
from splam.models import load_teacher
from splam.online import OnlinePaths
from splam.train import Distillation

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def one(folder) -> dict:
    """What one process with the whole batch does."""
    return measure(folder, batch_size=4)


@pytest.fixture(scope="module")
def two(folder, tmp_path_factory) -> dict:
    """What two processes do: DDP with two micro-batches of one sample, FSDP with one of two."""
    out = tmp_path_factory.mktemp("two") / "results.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [*torchrun, str(HERE / "distributed_worker.py"), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_have_the_loss_and_the_gradient_of_one(one, two, kind):
    assert two[kind]["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two[kind]["gradient"].keys() == one["gradient"].keys()
    for name, gradient in one["gradient"].items():
        torch.testing.assert_close(two[kind]["gradient"][name], gradient, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_as_one_and_go_on_from_a_checkpoint(one, two, kind):
    assert two[kind]["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert two[kind]["went_on"] == two[kind]["repeated"]
    assert one["went_on"] == one["repeated"]
    for name, value in one["target"].items():
        torch.testing.assert_close(two[kind]["target"][name], value, rtol=0, atol=1e-3)


def test_sharding_halves_what_a_process_holds(one, two):
    assert two["ddp"]["local_weights"] == one["local_weights"]
    assert two["fsdp"]["local_weights"] < 0.6 * one["local_weights"]


def started(folder: Path, **training) -> Distillation:
    teacher, resolved = load_teacher(folder), small_run(**training)
    size = resolved.training.batch_size
    return Distillation.start(resolved, teacher, OnlinePaths(FakeStream(size), resolved, teacher, SETTINGS))


def test_compiled_networks_are_the_same_modules(folder, monkeypatch):
    """They keep their names and give the same loss (by dynamo's eager backend, which needs no C++ compiler)."""
    plain = started(folder)
    compiled = started(folder)
    parallel.compile_networks(compiled.student, compiled.target, compiled.teacher.unet, backend="eager")
    assert compiled.trained == plain.trained
    torch.testing.assert_close(compiled.step(0), plain.step(0), rtol=1e-5, atol=0)


def test_the_average_moves_on_optimizer_steps_alone(folder):
    run = started(folder, batch_size=2, accumulation=2)
    before = {name: value.clone() for name, value in run.target.named_parameters()}
    run.gradients(0)
    assert all(torch.equal(value, before[name]) for name, value in run.target.named_parameters())
    run.step(0)
    assert any(not torch.equal(value, before[name]) for name, value in run.target.named_parameters())


def test_eight_bit_adamw_names_the_package_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    weights = [torch.nn.Parameter(torch.ones(2))]
    with pytest.raises(ImportError, match="adamw_8bit needs the package bitsandbytes: install it, or set adamw"):
        parallel.make_optimizer(weights, small_run(optimizer="adamw_8bit").training)


def test_another_global_batch_is_no_resume(folder):
    state = started(folder, batch_size=4).state()
    with pytest.raises(ValueError, match="made with a global batch of 4, now it is 2"):
        started(folder, batch_size=2).load(state)
