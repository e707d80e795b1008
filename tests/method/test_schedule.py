"""The grid and its short ends, noising, and conversions between predictions."""

import pytest
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


def test_grid_is_the_papers():
    assert sch.ddim_grid().tolist() == list(range(19, 1000, 20))


def test_short_ends():
    assert torch.equal(sch.path_starts(100, "clamped"), sch.ddim_grid())
    assert sch.path_starts(100, "strict").tolist() == list(range(99, 1000, 20))
    assert sch.path_end(torch.tensor([19, 99, 119]), 100).tolist() == [0, 0, 19]


@pytest.mark.parametrize("scale", [1.0, 0.83])  # 0.83: as on a sub-path, where alpha^2 + sigma^2 is not 1
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_becomes_the_noise(generator, scale, kind):
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    alpha = torch.tensor(0.3, dtype=torch.float64)
    sigma = scale * (1 - alpha**2).sqrt()
    prediction = {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[kind]
    torch.testing.assert_close(sch.to_epsilon(prediction, alpha * x0 + sigma * noise, alpha, sigma, kind), noise)
