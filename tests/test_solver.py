"""The solver against diffusers, against an exact flow, and the cache against the solver."""

import math

import pytest
import torch

from splam import solver
from splam.schedule import Schedule, path_end


def gaussian_epsilon(schedule: Schedule, mean: float, deviation: float):
    """The exact noise prediction where data are N(mean, deviation^2)."""

    def epsilon(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return sigma * (z - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)

    return epsilon


def gaussian_flow(z, t, s, schedule, mean, deviation):
    """The exact ODE solution for that data: the standardised value is conserved."""

    def spread(time):
        return (schedule.alpha(time) ** 2 * deviation**2 + schedule.sigma(time) ** 2).sqrt()

    return schedule.alpha(s) * mean + spread(s) / spread(t) * (z - schedule.alpha(t) * mean)


def test_ddim_step_agrees_with_diffusers(generator):
    from splam.models import tiny_scheduler

    scheduler = tiny_scheduler("epsilon")
    scheduler.set_timesteps(50)
    schedule = Schedule.from_scheduler(scheduler)
    z, epsilon = torch.randn(2, 1, 2, 4, 4, generator=generator)
    for t in (999, 519, 39):
        s = torch.tensor([t - 20])
        wanted = scheduler.step(epsilon, t, z).prev_sample
        torch.testing.assert_close(solver.ddim_step(z, epsilon, torch.tensor([t]), s, schedule), wanted)


def test_combining_noise_equals_combining_increments(schedule, generator):
    """Eq. 18 as printed: z + w Phi(c) + (1 - w) Phi(0)."""
    z, conditional, unconditional = torch.randn(3, 2, 2, 4, 4, generator=generator, dtype=torch.float64)
    t, w = torch.tensor([999, 119]), 8.0
    s = path_end(t, 20)
    phi = [solver.ddim_step(z, e, t, s, schedule) - z for e in (conditional, unconditional)]
    printed = z + w * phi[0] + (1 - w) * phi[1]
    guided = solver.guided_epsilon(conditional, unconditional, w)
    torch.testing.assert_close(solver.ddim_step(z, guided, t, s, schedule), printed)


def test_no_guidance_is_conditional(generator):
    conditional, unconditional = torch.randn(2, 1, 1, 2, 2, generator=generator)
    torch.testing.assert_close(solver.guided_epsilon(conditional, unconditional, 1.0), conditional)


def test_multiple_estimation_converges_at_first_order(schedule, generator):
    """On a Gaussian, whose flow is known, halving k_phi halves the error."""
    mean, deviation, skip = 0.7, 0.4, 400
    epsilon = gaussian_epsilon(schedule, mean, deviation)
    t = torch.full((64,), 599)
    z = torch.randn(64, 1, 1, 1, generator=generator, dtype=torch.float64)
    exact = gaussian_flow(z, t, t - skip, schedule, mean, deviation)
    errors = [
        (solver.multiple_estimation(epsilon, z, t, skip, k_phi, schedule) - exact).abs().mean()
        for k_phi in (100, 50, 25)
    ]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert orders == pytest.approx([1, 1], abs=0.2)


def test_solver_counts_its_steps_and_stops_at_zero(schedule, generator):
    """ceil((t - s) / k_phi) calls matter: a path already at 0 stays there, whatever the network says."""
    t = torch.tensor([59, 999])
    z = torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64)
    seen = []

    def epsilon(z, time):
        seen.append(time.tolist())
        return torch.ones_like(z)

    chain = solver.solver_chain(epsilon, z, t, 5, 20, schedule)
    assert seen == [[59, 999], [39, 979], [19, 959], [0, 939], [0, 919]]
    assert torch.equal(chain[5][0], chain[3][0]) and not torch.equal(chain[5][1], chain[3][1])


def test_k_that_is_no_multiple_of_k_phi_is_an_error():
    with pytest.raises(ValueError, match="50 is not a multiple of solver_skip k_phi = 20"):
        solver.check_skips(50, 20)


@pytest.fixture
def cache(schedule, generator):
    """A cache made by the solver from a linear network."""
    single = Schedule(schedule.alphas.float(), schedule.sigmas.float())
    t = torch.tensor([999, 519, 59, 19])
    z, conditional, unconditional = torch.randn(3, 4, 2, 4, 4, generator=generator)

    def epsilon(z_i, time):
        both = (conditional, unconditional) if z_i is z else (0.5 * z_i, 0.1 * z_i)
        return solver.guided_epsilon(*both, 3.0)

    chain = torch.stack(solver.solver_chain(epsilon, z, t, 5, 20, single), 1)
    facts = (torch.tensor([0, 1, 1, 0]), torch.randn(2, 3, 5), torch.tensor(3.0), torch.tensor(20), torch.empty(0))
    return solver.TrajectoryCache(chain, t, conditional, unconditional, *facts), single


def test_cache_round_trip(cache, tmp_path):
    saved, _ = cache
    saved.save(tmp_path / "w3.safetensors")
    loaded = solver.TrajectoryCache.load(tmp_path / "w3.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(vars(saved).values(), vars(loaded).values(), strict=True))
    with pytest.raises(FileNotFoundError, match="trajectories stage"):
        solver.TrajectoryCache.load(tmp_path / "w9.safetensors")


def test_cached_paths_with_and_without_multiple_estimation(cache):
    saved, schedule = cache
    rows = torch.arange(4)
    one, many = saved.one_step(rows, 20, 3.0, schedule), saved.multiple_steps(rows, 20)
    torch.testing.assert_close(one.z_s, many.z_s)  # at k = k_phi the two are the same
    long = saved.multiple_steps(rows, 100)
    assert long.s.tolist() == [899, 419, 0, 0] and torch.equal(long.z_s, saved.chain[:, 5])
    assert not torch.allclose(long.z_s, saved.one_step(rows, 100, 3.0, schedule).z_s)
    with pytest.raises(ValueError, match="raise trajectories.steps"):
        saved.multiple_steps(rows, 120)


def test_one_step_takes_a_scale_for_each_sample(cache):
    saved, schedule = cache
    rows = torch.arange(2)
    mixed = saved.one_step(rows, 20, torch.tensor([3.0, 8.0]), schedule)
    assert torch.equal(mixed.z_s[0], saved.one_step(rows, 20, 3.0, schedule).z_s[0])
    assert torch.equal(mixed.z_s[1], saved.one_step(rows, 20, 8.0, schedule).z_s[1])
