"""The grid and its short ends, and noising."""

import torch
from diffusers import DDIMScheduler

from splam.method import schedule as sch


def test_noising_is_diffusers(scheduler_settings, generator):
    """The one place where alpha and sigma come from alpha_bar."""
    scheduler = DDIMScheduler(**scheduler_settings)
    z, noise = torch.randn(2, 3, 2, 4, 4, generator=generator)
    t = torch.tensor([0, 19, 999])
    schedule = sch.Schedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    torch.testing.assert_close(schedule.add_noise(z, noise, t), scheduler.add_noise(z, noise, t))


def test_half_precision_gives_a_float32_schedule():
    assert sch.Schedule.from_alphas_cumprod(torch.full((10,), 0.5, dtype=torch.bfloat16)).sigmas.dtype == torch.float32


def test_the_papers_grid_and_its_short_ends():
    assert sch.path_starts(100, "clamped").tolist() == list(range(19, 1000, 20))
    assert sch.path_starts(100, "strict").tolist() == list(range(99, 1000, 20))
    assert sch.path_end(torch.tensor([19, 99, 119]), 100).tolist() == [0, 0, 19]
