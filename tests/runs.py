"""Small runs for tests of training, and a fake stream of images."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from splam.config import Run, Trajectories

SETTINGS = Trajectories(guidance_scales=[3], draws=1, steps=5, batch_size=1, empty_captions=0.25)
TRAINING = {
    "iterations": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "ema_decay": 0.9,
    "loss": "huber",
    "bf16": False,
    "checkpoint_seconds": 60,
    "condition_width": 8,
    "lora_rank": 2,
    "source": "data",
}


def small_run(
    method: str = "splam", skip: int = 40, seed: int = 5, training: dict[str, Any] | None = None, **run
) -> Run:
    """A run with multiple estimation of k = 40, a global batch of 4, and whatever else is asked for.

    method: "splam lora" has an adapter.
    """
    method, _, adapter = method.partition(" ")
    facts = {"name": "run", "seed": seed, "method": method, "guidance_scale": 3, "skip": skip}
    facts["adapter"] = adapter or None
    facts |= {"multiple_estimation": True, "input_scaling": "unit_variance", "training": TRAINING | (training or {})}
    return Run(**{**facts, **run})


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass
class FakeStream:
    """Batch number n of random images and captions that name it; `entered` is where it was entered.

    Sample i of the line is the same however it is cut into batches.
    """

    size: int
    pixels: int = 32
    entered: list[int] = field(default_factory=list)

    def batches(self, start=0, stride=1):
        self.entered.append(start)
        for number in itertools.count(start, stride):
            places = range(number * self.size, (number + 1) * self.size)
            sources = (torch.Generator().manual_seed(i) for i in places)
            images = [torch.rand(3, self.pixels, self.pixels, generator=source) for source in sources]
            yield torch.stack(images) * 2 - 1, [f"image {i}" for i in places]
