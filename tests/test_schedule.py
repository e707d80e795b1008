"""The schedule: the grid, its short ends, and conversions between predictions."""

import pytest
import torch

from splam import schedule as sch


def test_grid_is_the_papers():
    grid = sch.ddim_grid()
    assert grid[0] == 19 and grid[1] == 39 and grid[-1] == 999 and len(grid) == 50


def test_grid_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="50 grid steps do not divide"):
        sch.ddim_grid(length=990)


def test_short_ends():
    assert len(sch.path_starts(100, "clamped")) == 50
    strict = sch.path_starts(100, "strict")
    assert strict.min() == 99 and len(strict) == 46
    with pytest.raises(ValueError, match="short_ends"):
        sch.path_starts(100, "loose")


def test_path_end_is_clamped_at_zero():
    assert sch.path_end(torch.tensor([19, 99, 119]), 100).tolist() == [0, 0, 19]


def test_alpha_and_sigma_are_on_the_circle(schedule):
    torch.testing.assert_close(schedule.alphas**2 + schedule.sigmas**2, torch.ones(1000, dtype=torch.float64))


def test_half_precision_betas_give_a_float32_schedule():
    assert sch.Schedule.from_alphas_cumprod(torch.full((10,), 0.5, dtype=torch.bfloat16)).sigmas.dtype == torch.float32


def test_a_scheduler_without_alphas_is_named():
    with pytest.raises(ValueError, match="object has no alphas_cumprod"):
        sch.Schedule.from_scheduler(object())


@pytest.mark.parametrize("scale", [1.0, 0.83])  # 0.83: a sub-path point, where alpha^2 + sigma^2 is not 1
def test_predictions_round_trip(generator, scale):
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    alpha, sigma = torch.tensor(0.3, dtype=torch.float64) * scale, torch.tensor(0.91, dtype=torch.float64) * scale
    z = alpha * x0 + sigma * noise
    torch.testing.assert_close(sch.x0_from_epsilon(z, noise, alpha, sigma), x0)
    torch.testing.assert_close(sch.to_epsilon(noise, z, alpha, sigma, "epsilon"), noise)
    torch.testing.assert_close(sch.to_epsilon(x0, z, alpha, sigma, "sample"), noise)
    v = sch.v_from_epsilon(z, noise, alpha, sigma)
    torch.testing.assert_close(v, alpha * noise - sigma * x0)
    torch.testing.assert_close(sch.to_epsilon(v, z, alpha, sigma, "v_prediction"), noise)


def test_flow_teachers_are_refused():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="flow"):
        sch.to_epsilon(one, one, one, one, "flow_prediction")
