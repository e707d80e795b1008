"""A few training steps with random weights, for their time and memory: those do not depend on what the weights are."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from splam.models import Teacher, tiny_scheduler
from splam.online import OnlinePaths
from splam.params import ResolvedRun, Trajectories
from splam.schedule import Schedule
from splam.sizes import Shapes
from splam.train import Distillation

WARM_UP, TIMED = 2, 4  # steps of one process, without accumulation


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one process: seconds of one sample, and bytes at the peak; 0 on a CPU, where torch does not count them."""

    seconds_per_sample: float
    peak_bytes: int


class RandomTeacher(Teacher):
    """A teacher of given shapes whose captions are all the same: the text encoder's part of a step is small."""

    @classmethod
    def of(cls, shapes: Shapes, bf16: bool, device: torch.device | str) -> RandomTeacher:
        """Random networks on a device. The text encoder is left out."""
        torch.manual_seed(0)
        with torch.device(device):
            unet, vae = UNet2DConditionModel.from_config(shapes.unet), AutoencoderKL.from_config(shapes.vae)
        for part in (unet, vae):
            part.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        scheduler = tiny_scheduler("epsilon")
        schedule = Schedule.from_scheduler(scheduler).to(device)
        return cls(unet, vae, torch.nn.Identity(), None, schedule, dict(scheduler.config), Path(), bf16)

    def embed(self, captions: list[str]) -> Tensor:
        """Noise (n, 77, d)."""
        return torch.randn(len(captions), 77, self.unet.config.cross_attention_dim, device=self.device)


@dataclasses.dataclass(frozen=True)
class RandomImages:
    """A stream of noise images, so that reading data is not what is measured."""

    size: int
    pixels: int

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
        """The same batch for ever."""
        images = torch.rand(self.size, 3, self.pixels, self.pixels) * 2 - 1
        while True:
            yield images, ["a caption"] * self.size


def measure(shapes: Shapes, resolved: ResolvedRun, settings: Trajectories, device: torch.device | str) -> Measured:
    """Train a few steps of one process. Raises torch.cuda.OutOfMemoryError where they do not fit."""
    device = torch.device(device)
    alone = {"accumulation": 1, "processes": 1, "sharding": "none", "source": "online", "warmup": 0}
    training = resolved.training.model_copy(update=alone)
    resolved = dataclasses.replace(resolved, training=training)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    teacher = RandomTeacher.of(shapes, training.bf16, device)
    source = OnlinePaths(RandomImages(training.batch_size, shapes.pixels), resolved, teacher, settings)
    run = Distillation.start(resolved, teacher, source)
    for step in range(WARM_UP):
        run.step(step).item()
    start = time.perf_counter()
    for step in range(TIMED):
        run.step(WARM_UP + step).item()  # .item() waits for the GPU
    seconds = (time.perf_counter() - start) / (TIMED * training.batch_size)
    return Measured(seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)
