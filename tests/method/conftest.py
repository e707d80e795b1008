"""Sub-paths on which everything is known, and Stable Diffusion's scheduler settings."""

import pytest
import torch
from torch import Tensor

from splam.method.schedule import Schedule, path_end
from splam.method.solver import ddim_step
from splam.method.subpath import SubPath


@pytest.fixture
def scheduler_settings() -> dict:
    """Stable Diffusion's betas, for a scheduler of diffusers, with alpha_bar(0) as the last one."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return {**betas, "clip_sample": False, "set_alpha_to_one": False}


@pytest.fixture
def straight(schedule: Schedule, generator: torch.Generator) -> tuple[SubPath, Tensor, Tensor]:
    """Sub-paths of k = 100 by one DDIM step, some shortened at 0, with the clean latents and noise along them."""
    t = torch.tensor([19, 99, 119, 299, 599, 999])
    x0, noise = torch.randn(2, 6, 2, 4, 4, generator=generator, dtype=torch.float64)
    z_t, s = schedule.add_noise(x0, noise, t), path_end(t, 100)
    return SubPath(z_t, t, ddim_step(z_t, noise, t, s, schedule), s), x0, noise
