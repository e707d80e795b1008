"""Sampling against diffusers' own schedulers, and samples that do not depend on their batch."""

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from splam import sampling
from splam.models import tiny_scheduler
from splam.schedule import Schedule
from splam.subpath import consistency_output, predicted_x0


@pytest.mark.parametrize("steps, times", [(1, [999]), (2, [999, 499]), (4, [999, 759, 499, 259]), (8, None)])
def test_times_are_lcm_schedulers(steps, times):
    scheduler = LCMScheduler.from_config(tiny_scheduler().config)
    scheduler.set_timesteps(steps, original_inference_steps=50)
    assert sampling.consistency_times(steps) == scheduler.timesteps.tolist()
    assert times is None or sampling.consistency_times(steps) == times


@pytest.mark.parametrize("steps", [0, 51])
def test_impossible_steps_are_named(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}: choose 1 to 50"):
        sampling.consistency_times(steps)


def test_multistep_sampling_is_lcm_schedulers(generator):
    """The same noise, network and times give the same latents as diffusers' loop."""
    schedule = Schedule.from_scheduler(tiny_scheduler())

    def network(z, t):
        return torch.tanh(z) + t.view(-1, 1, 1, 1) / 1000

    def consistency(z, t):
        x0 = predicted_x0(z, network(z, t), schedule.alpha(t), schedule.sigma(t))
        return consistency_output(z, x0, t)

    ours = sampling.sample_consistency(consistency, sampling.generators([7]), (3, 4, 4), 4, schedule)
    scheduler = LCMScheduler.from_config(tiny_scheduler("epsilon").config, clip_sample=False)
    scheduler.set_timesteps(4, original_inference_steps=50)
    source = torch.Generator().manual_seed(7)
    z = torch.randn(1, 3, 4, 4, generator=source)
    for t in scheduler.timesteps:
        step = scheduler.step(network(z, t.view(1)), t, z, generator=source)
        z = step.prev_sample
    torch.testing.assert_close(ours, step.denoised, rtol=1e-4, atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch():
    schedule = Schedule.from_scheduler(tiny_scheduler())

    def draw(seeds):
        return sampling.sample_consistency(lambda z, t: z / 2, sampling.generators(seeds), (1, 2, 2), 4, schedule)

    torch.testing.assert_close(draw([3, 4, 5])[1:2], draw([4]), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ddim", "dpmsolver", "dpmsolver++", "unipc"])
def test_every_baseline_finds_a_single_point(name):
    """With exact noise of one-point data, any solver ends at the point, whatever its number of steps."""
    schedule = Schedule.from_scheduler(tiny_scheduler())

    def exact(z, t):
        return (z - schedule.alpha(t) * 0.5) / schedule.sigma(t)

    for steps in (1, 4):
        scheduler = sampling.baseline_scheduler(name, dict(tiny_scheduler("epsilon").config))
        z = sampling.sample_scheduler(scheduler, exact, sampling.generators([0]), (1, 4, 4), steps)
        assert int(scheduler.timesteps[0]) == 999  # full noise at the start
        assert (z - 0.5).abs().max() < 0.15, (name, steps)


def test_ddim_baseline_is_diffusers_ddim():
    schedule = sampling.baseline_scheduler("ddim", dict(tiny_scheduler().config))
    assert isinstance(schedule, DDIMScheduler) and not schedule.config.set_alpha_to_one
    assert schedule.config.beta_start == tiny_scheduler().config.beta_start


def test_unknown_scheduler_is_named():
    with pytest.raises(ValueError, match="'euler': choose ddim, dpmsolver"):
        sampling.baseline_scheduler("euler", dict(tiny_scheduler().config))
