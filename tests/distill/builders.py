"""Profiles, teachers and trainings small enough to run in seconds."""

from pathlib import Path

import torch

from splam.config import Params, Run, parse
from splam.distill.loop import Distillation, train
from splam.distill.paths import CachedPaths, OnlinePaths, TrajectoryCache
from splam.networks.teacher import Teacher
from splam.profile import compose
from tests.runs import SETTINGS, FakeStream, small_run

RUN = "splam-w3-k100-me"  # in both profiles
SMALL = [
    "trajectories.draws=24",
    "trajectories.batch_size=12",
    "training.iterations=6",
    "training.batch_size=4",
    "training.condition_width=16",
    "training.lora_rank=4",
    f"runs.{RUN}.training.snapshots=[]",
]


def profile(*overrides: str, name: str = "smoke") -> Params:
    """A profile made smaller still."""
    return parse(compose(name, [*SMALL, *overrides]), name)


def cached_run(method: str = "splam", training: dict | None = None, **run) -> Run:
    """A run of one solver step, for a trajectory cache."""
    settings = {"source": "trajectories", "iterations": 6, "learning_rate": 3e-3} | (training or {})
    return small_run(method, **({"skip": 20} | run), training=settings)


def cached(cache: TrajectoryCache, run: Run, teacher: Teacher, **facts) -> Distillation:
    """Its training, about to start."""
    return Distillation(run, teacher, CachedPaths(cache, run, teacher), facts)


def trained(job: Distillation, folder: Path) -> list[float]:
    """Train to the end into folder/out; the losses."""
    list(train(job, folder / "scratch", folder / "out"))
    return job.losses


def online(teacher: Teacher, stream=None, settings=SETTINGS, **run) -> OnlinePaths:
    """Sub-paths of a fake stream's images."""
    made = small_run(**run)
    return OnlinePaths(stream or FakeStream(made.training.batch_size), made, teacher, settings)


def weights(module: torch.nn.Module) -> torch.Tensor:
    """All weights in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
