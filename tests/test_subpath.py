"""Eq. 12-16 as identities in float64."""

import pytest
import torch

from splam import subpath
from splam.schedule import path_end
from splam.solver import ddim_step


@pytest.fixture
def path(schedule, generator):
    """One-DDIM-step sub-paths of k = 100 at several times: (z_t, z_s, t, s, epsilon)."""
    t = torch.tensor([19, 119, 299, 599, 999])
    s = path_end(t, 100)
    z_t, epsilon = torch.randn(2, 5, 2, 4, 4, generator=generator, dtype=torch.float64)
    return z_t, ddim_step(z_t, epsilon, t, s, schedule), t, s, epsilon


def test_ends_of_the_sub_path(schedule, path):
    z_t, z_s, t, s, _ = path
    ratio = schedule.ratio(t, s)
    torch.testing.assert_close(subpath.sub_path_point(z_t, z_s, ratio, torch.tensor(1.0)), z_t, rtol=0, atol=0)
    torch.testing.assert_close(subpath.sub_path_point(z_t, z_s, ratio, torch.tensor(0.0)), ratio * z_s, rtol=0, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_linear_sigma_is_exact_for_one_ddim_step(schedule, path, gamma):
    """z_{gamma,t} = alpha_t x0 + sigma(gamma, t) epsilon, so Eq. 14 with the true epsilon gives x0 at every gamma."""
    z_t, z_s, t, s, epsilon = path
    g, ratio, alpha = torch.tensor(gamma, dtype=torch.float64), schedule.ratio(t, s), schedule.alpha(t)
    z = subpath.sub_path_point(z_t, z_s, ratio, g)
    sigma = subpath.sub_path_sigma(g, ratio, schedule.sigma(t), schedule.sigma(s))
    x0 = (z_t - schedule.sigma(t) * epsilon) / alpha
    torch.testing.assert_close(subpath.predicted_x0(z, epsilon, alpha, sigma), x0)


@pytest.mark.parametrize("form", ["linear", "markov"])
def test_sigma_forms_meet_at_the_ends(schedule, path, form):
    _, _, t, s, _ = path
    ratio, sigma_t, sigma_s = schedule.ratio(t, s), schedule.sigma(t), schedule.sigma(s)
    ends = [subpath.sub_path_sigma(torch.tensor(g), ratio, sigma_t, sigma_s, form) for g in (0.0, 1.0)]
    torch.testing.assert_close(ends[0], ratio * sigma_s)
    torch.testing.assert_close(ends[1], sigma_t)


@pytest.mark.parametrize(("skip", "t", "excess"), [(20, 19, 0.28), (20, 39, 0.09), (100, 119, 0.22)])
def test_linear_is_above_markov_by_the_stated_share(schedule, skip, t, excess):
    """method.md: linear is above markov by up to 28 % at t = 19 and 9 % at 39 (k = 20), 22 % at 119 (k = 100)."""
    time = torch.tensor([t])
    s = path_end(time, skip)
    gamma = torch.linspace(0, 1, 1001, dtype=torch.float64).view(-1, 1, 1, 1)
    arguments = gamma, schedule.ratio(time, s), schedule.sigma(time), schedule.sigma(s)
    ratio = subpath.sub_path_sigma(*arguments) / subpath.sub_path_sigma(*arguments, "markov")
    assert ratio.min() > 1 - 1e-12
    assert ratio.max() - 1 == pytest.approx(excess, abs=0.005)


def test_unknown_sigma_form_is_named(schedule):
    one = torch.ones(1)
    with pytest.raises(ValueError, match="'quadratic'"):
        subpath.sub_path_sigma(one, one, one, one, "quadratic")


def test_boundary_condition(generator):
    """F(z, 0) = z exactly, whatever the network says (Eq. 16)."""
    z, x0 = torch.randn(2, 3, 2, 4, 4, generator=generator)
    assert torch.equal(subpath.consistency_output(z, x0, torch.zeros(3, dtype=torch.long)), z)


def test_boundary_scalings_are_lcms(generator):
    from diffusers import LCMScheduler

    scheduler = LCMScheduler()
    for t in (0, 19, 499, 999):
        wanted = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(t))
        found = subpath.boundary_scalings(torch.tensor([t]))
        assert [float(f) for f in found] == pytest.approx([float(w) for w in wanted], rel=1e-6)


def test_sub_path_objective_splits_into_its_two_distances(schedule, path):
    """Eq. 10 = dist_Delta + dist_0 - sigma_t epsilon, zero where epsilon is the same at both ends (Eq. 11)."""
    z_t, z_s, t, s, epsilon = path
    ratio = schedule.ratio(t, s)
    total = subpath.dist_delta(z_t, z_s, ratio) + subpath.dist_zero(epsilon, ratio, schedule.sigma(s))
    torch.testing.assert_close(total, schedule.sigma(t) * epsilon)


def test_gamma_embedding_vanishes_at_one_and_is_continuous():
    gamma = torch.linspace(0, 1, 1001, dtype=torch.float64)
    embedding = subpath.gamma_embedding(gamma, 16, 10.0)
    assert embedding.shape == (1001, 16)
    assert torch.equal(embedding[-1], torch.zeros(16, dtype=torch.float64))
    assert embedding.diff(dim=0).abs().max() < 10.0 / 1000 + 1e-9
    assert embedding[0].abs().max() > 0.1
    with pytest.raises(ValueError, match="even"):
        subpath.gamma_embedding(gamma, 15, 10.0)


def test_equal_snr_time_meets_both_ends(schedule):
    """gamma = 1 gives t and gamma = 0 gives s: the scaled point there is z_s itself."""
    t = torch.tensor([39, 119, 599, 999])
    s = path_end(t, 20)
    ratio, alpha = schedule.ratio(t, s), schedule.alpha(t)
    for gamma, wanted in ((1.0, t), (0.0, s)):
        g = torch.tensor(gamma, dtype=torch.float64)
        sigma = subpath.sub_path_sigma(g, ratio, schedule.sigma(t), schedule.sigma(s))
        torch.testing.assert_close(subpath.equal_snr_time(alpha, sigma, schedule), wanted.double(), atol=1e-6, rtol=0)
