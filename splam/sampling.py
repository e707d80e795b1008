"""Sampling: multistep consistency sampling, and diffusers' schedulers for the teacher.

Every sample has its own generator, so that it depends on the batch it is drawn in only by rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from splam.schedule import Schedule, ddim_grid


def generators(seeds: list[int]) -> list[torch.Generator]:
    """One generator a sample, on the CPU, so that noise does not depend on the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(sources: list[torch.Generator], shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """The next normal draw of every generator: (n, *shape), float32."""
    return torch.cat([torch.randn((1, *shape), generator=g) for g in sources]).to(device)


def consistency_times(steps: int, length: int = 1000) -> list[int]:
    """LCMScheduler's times: 1 step [999]; 2 steps [999, 499]; 4 steps [999, 759, 499, 259]."""
    grid = ddim_grid(length).flip(0)
    if not 1 <= steps <= len(grid):
        raise ValueError(f"steps is {steps}: choose 1 to {len(grid)}")
    return [int(grid[i * len(grid) // steps]) for i in range(steps)]


def sample_consistency(
    consistency: Callable[[Tensor, Tensor], Tensor],
    sources: list[torch.Generator],
    shape: tuple[int, ...],
    steps: int,
    schedule: Schedule,
) -> Tensor:
    """Multistep consistency sampling (Song et al., 2023, Alg. 1): the model's guess, noised to the next time.

    consistency: F(z (n, c, h, w), t (n,)) at gamma = 1 (Eq. 19); returns clean latents (n, *shape).
    """
    device = schedule.alphas.device
    z = draw_noise(sources, shape, device)
    times = consistency_times(steps, schedule.length)
    for i, time in enumerate(times):
        x0 = consistency(z, torch.full((len(z),), time, device=device))
        if i + 1 == len(times):
            return x0
        s = torch.tensor([times[i + 1]], device=device)
        z = schedule.alpha(s) * x0 + schedule.sigma(s) * draw_noise(sources, shape, device)
    raise AssertionError("unreachable: consistency_times is never empty")


def baseline_scheduler(name: str, config: dict):
    """diffusers' scheduler for an undistilled teacher, with trailing times, so that it starts at full noise.

    config: the teacher's scheduler config, whose betas and prediction type are kept.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    betas = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    kept = {k: config[k] for k in betas if config.get(k) is not None}
    if name == "ddim":
        return DDIMScheduler(**kept, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing")
    if name in ("dpmsolver", "dpmsolver++"):
        return DPMSolverMultistepScheduler(
            **kept, algorithm_type=name, timestep_spacing="trailing", final_sigmas_type="sigma_min"
        )
    if name == "unipc":
        return UniPCMultistepScheduler(**kept, timestep_spacing="trailing", final_sigmas_type="sigma_min")
    raise ValueError(f"scheduler is {name!r}: choose ddim, dpmsolver, dpmsolver++ or unipc")


def sample_scheduler(
    scheduler,
    output: Callable[[Tensor, Tensor], Tensor],
    sources: list[torch.Generator],
    shape: tuple[int, ...],
    steps: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw with a diffusers scheduler; output(z, t) is the guided raw network output. Clean latents (n, *shape)."""
    z = draw_noise(sources, shape, device) * scheduler.init_noise_sigma
    scheduler.set_timesteps(steps, device=device)
    for time in scheduler.timesteps:
        t = torch.full((len(z),), int(time), device=device)
        z = scheduler.step(output(scheduler.scale_model_input(z, time), t), time, z).prev_sample
    return z
