"""Eq. 12-16 as identities in float64."""

import pytest
import torch

from splam.method import subpath
from splam.method.schedule import path_end
from splam.method.subpath import SubPath, sub_path_point


def same(value: float, count: int = 6) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
def test_linear_sigma_is_exact_for_one_ddim_step(schedule, straight, gamma):
    """z_{gamma,t} = alpha(t) x_0 + sigma(gamma, t) epsilon, so that Eq. 14 with the true epsilon gives x_0."""
    path, x0, noise = straight
    z, sigma = sub_path_point(path, same(gamma), schedule)
    torch.testing.assert_close(z, schedule.alpha(path.t) * x0 + sigma * noise)
    torch.testing.assert_close(subpath.predicted_x0(z, noise, schedule.alpha(path.t), sigma), x0)


def test_markov_sigma_is_exact_for_the_forward_process(schedule):
    """There z_t = r z_s + sqrt(1 - r^2) n with fresh n: the two noises' shares of z_{gamma,t}, squared, add up."""
    t, gamma = torch.tensor([19, 119, 599, 999]), torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    s, none = path_end(t, 100), torch.zeros(4, 1, 1, 1, dtype=torch.float64)
    ratio, level = schedule.ratio(t, s), schedule.sigma(s)
    shared, sigma = sub_path_point(SubPath(ratio * level, t, level, s), gamma, schedule, "markov")
    fresh, _ = sub_path_point(SubPath((1 - ratio**2).sqrt(), t, none, s), gamma, schedule, "markov")
    torch.testing.assert_close((shared**2 + fresh**2).sqrt(), sigma)


def test_boundary_condition(generator):
    """F(z, 0) = z exactly, whatever the network says (Eq. 16)."""
    z, x0 = torch.randn(2, 3, 2, 4, 4, generator=generator)
    assert torch.equal(subpath.consistency_output(z, x0, torch.zeros(3, dtype=torch.long)), z)


def test_gamma_embedding_vanishes_at_one_and_is_continuous():
    gamma = torch.linspace(0, 1, 1001, dtype=torch.float64)
    embedding = subpath.gamma_embedding(gamma, 16, 10.0)
    assert embedding.shape == (1001, 16) and (embedding[-1] == 0).all()
    assert embedding[0].abs().max() > 0.1
    assert 0.009 < embedding.diff(dim=0).abs().max() < 0.01 + 1e-9  # 10 rad, in 1000 steps
    between = subpath.gamma_embedding(gamma, 6, 9.0)[:, 1]  # the sines of the middle one of three frequencies
    torch.testing.assert_close(between, (3 * gamma).sin() - torch.tensor(3.0).double().sin())  # geometric: 1, 3, 9
    with pytest.raises(ValueError, match="condition_width is 15: it must be even"):
        subpath.gamma_embedding(gamma, 15, 10.0)


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_equal_snr_time(schedule, gamma):
    """gamma = 1 gives t and gamma = 0 gives s; between them it is a time of the same sigma / alpha."""
    t = torch.tensor([39, 119, 599, 999])
    s, none = path_end(t, 20), torch.zeros(4, 1, 1, 1, dtype=torch.float64)
    _, sigma = sub_path_point(SubPath(none, t, none, s), same(gamma, 4), schedule)
    time = subpath.equal_snr_time(schedule.alpha(t), sigma, schedule)
    torch.testing.assert_close(time.round(), {0.0: s, 1.0: t}.get(gamma, time.round()).double())
    low, high = ((schedule.sigma(u) / schedule.alpha(u)).log() for u in (time.floor().long(), time.ceil().long()))
    found = low + (high - low) * time.frac().view(-1, 1, 1, 1)
    torch.testing.assert_close(found, (sigma / schedule.alpha(t)).log(), rtol=0, atol=1e-6)
