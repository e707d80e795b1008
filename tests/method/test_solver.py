"""The solver against diffusers, against an exact flow, and at the short ends of paths."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from splam.method import solver
from splam.method.schedule import Schedule, path_end
from tests.method.gaussian import Gaussian


@pytest.mark.parametrize("t", [999, 519, 39, 19])  # the step from 19 ends at 0
def test_ddim_step_is_diffusers(scheduler_settings, generator, t):
    scheduler = DDIMScheduler(**scheduler_settings)
    scheduler.set_timesteps(50)
    schedule = Schedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    z, epsilon = torch.randn(2, 1, 2, 4, 4, generator=generator)
    start = torch.tensor([t])
    ours = solver.ddim_step(z, epsilon, start, path_end(start, 20), schedule)
    torch.testing.assert_close(ours, scheduler.step(epsilon, t, z).prev_sample)


def test_guidance_is_the_standard_one(generator):
    """w = 1 is the caption's prediction, w = 0 the empty caption's, and each sample may have its own w."""
    conditional, unconditional = torch.randn(2, 3, 1, 2, 2, generator=generator, dtype=torch.float64)
    w = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64).view(3, 1, 1, 1)
    wanted = torch.stack([conditional[0], unconditional[1], 3 * conditional[2] - 2 * unconditional[2]])
    torch.testing.assert_close(solver.guided_epsilon(conditional, unconditional, w), wanted)


def test_multiple_estimation_converges_at_first_order(schedule, generator):
    """On a Gaussian, whose flow is known, halving k_phi halves the error."""
    data, t = Gaussian(schedule), torch.full((64,), 599)
    z = torch.randn(64, 1, 1, 1, generator=generator, dtype=torch.float64)
    exact = data.flow(z, t, t - 400)
    ends = [solver.sub_path(data.epsilon, z, t, 400, k_phi, schedule).z_s for k_phi in (100, 50, 25)]
    errors = [float((end - exact).abs().mean()) for end in ends]
    assert [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)] == pytest.approx([1, 1], abs=0.2)


def test_the_solver_stops_at_zero(schedule, generator):
    """A path takes ceil((t - s) / k_phi) steps that matter: one that has come to 0 stays there, bit for bit."""
    t, seen = torch.tensor([59, 999]), []
    z = torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64)

    def epsilon(z, time):
        seen.append(time.tolist())
        return torch.ones_like(z)

    chain = solver.solver_chain(epsilon, z, t, 5, 20, schedule)
    assert seen == [[59, 999], [39, 979], [19, 959], [0, 939], [0, 919]]
    assert torch.equal(chain[5][0], chain[3][0]) and not torch.equal(chain[5][1], chain[3][1])
    path = solver.sub_path(epsilon, z, t, 100, 20, schedule)
    assert path.s.tolist() == [0, 899] and path.t is t
    assert torch.equal(path.z_t, z) and torch.equal(path.z_s, chain[-1])


def test_k_that_is_no_multiple_of_k_phi_is_an_error():
    with pytest.raises(ValueError, match="50 is not a multiple of solver_skip k_phi = 20"):
        solver.solver_steps(50, 20)
