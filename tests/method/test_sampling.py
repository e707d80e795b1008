"""Consistency sampling against LCMScheduler and on data that are known; samples that do not depend on their batch."""

import pytest
import torch
from diffusers import LCMScheduler

from splam.method import sampling
from splam.method.schedule import Schedule
from tests.method.gaussian import Gaussian


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_times_are_lcm_schedulers(steps):
    scheduler = LCMScheduler()
    scheduler.set_timesteps(steps, original_inference_steps=50)
    assert sampling.consistency_times(steps) == scheduler.timesteps.tolist()


def test_impossible_steps_are_named():
    with pytest.raises(ValueError, match="steps is 51: choose 1 to 50"):
        sampling.consistency_times(51)


def test_sampling_is_lcm_schedulers(scheduler_settings):
    """The same noise, network and times give the same latents as diffusers' loop."""
    scheduler = LCMScheduler(**scheduler_settings)
    schedule = Schedule.from_alphas_cumprod(scheduler.alphas_cumprod)

    def epsilon(z, t):
        return torch.tanh(z.flip(1)) + t.view(-1, 1, 1, 1) / 1000

    def network(z, sigma, t, gamma):
        assert torch.equal(sigma, schedule.sigma(t)) and (gamma == 1).all()
        return epsilon(z, t)

    ours = sampling.sample_consistency(network, sampling.generators([7]), (3, 4, 4), 4, schedule)
    scheduler.set_timesteps(4, original_inference_steps=50)
    source = torch.Generator().manual_seed(7)
    z = torch.randn(1, 3, 4, 4, generator=source)
    for t in scheduler.timesteps:
        z, denoised = scheduler.step(epsilon(z, t.view(1)), t, z, generator=source, return_dict=False)
    torch.testing.assert_close(ours, denoised, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 4])  # one would show that z at t = 999 is not all noise
def test_the_exact_network_draws_the_data(schedule, steps):
    """Of a Gaussian: the map to the ends of trajectories gives its mean and std in any number of steps."""
    data = Gaussian(schedule)
    sources = sampling.generators(range(400))
    z = sampling.sample_consistency(data.network, sources, (1, 8, 8), steps, schedule)
    assert (float(z.mean()), float(z.std())) == pytest.approx((data.mean, data.std), abs=0.01)
