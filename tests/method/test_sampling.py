"""Consistency sampling against LCMScheduler."""

import pytest
import torch
from diffusers import LCMScheduler

from splam.method import sampling
from splam.method.schedule import Schedule


def test_impossible_steps_are_named():
    with pytest.raises(ValueError, match="steps is 51: choose 1 to 50"):
        sampling.consistency_times(51)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_sampling_is_lcm_schedulers(scheduler_settings, steps):
    """The same noise, network and times give the same latents as diffusers' loop."""
    scheduler = LCMScheduler(**scheduler_settings)
    schedule = Schedule.from_alphas_cumprod(scheduler.alphas_cumprod)

    def epsilon(z, t):
        return torch.tanh(z.flip(1)) + t.view(-1, 1, 1, 1) / 1000

    def network(z, sigma, t, gamma):
        assert torch.equal(sigma, schedule.sigma(t)) and (gamma == 1).all()
        return epsilon(z, t)

    ours = sampling.sample_consistency(network, sampling.generators([7, 8]), (3, 4, 4), steps, schedule)
    scheduler.set_timesteps(steps, original_inference_steps=50)
    sources = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    z = torch.cat([torch.randn(1, 3, 4, 4, generator=source) for source in sources])
    for t in scheduler.timesteps:
        z, denoised = scheduler.step(epsilon(z, t.view(1)), t, z, generator=sources, return_dict=False)
    torch.testing.assert_close(ours, denoised, rtol=1e-4, atol=1e-4)
