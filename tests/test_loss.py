"""The training step: its value where the truth is known, and an independent reading of latent consistency."""

import dataclasses

import pytest
import torch
from diffusers import LCMScheduler

from splam import loss
from splam.models import tiny_scheduler
from splam.schedule import Schedule, path_end, v_from_epsilon
from splam.solver import SubPaths, ddim_step
from splam.subpath import sub_path_sigma

POINT = 0.7  # all data, in the tests where there is one


@pytest.fixture
def one_point(schedule, generator):
    """Sub-paths of k = 100 of data that are a single point: DDIM is exact on them. None ends near 0, where F is z."""
    t = torch.tensor([219, 319, 499, 799, 999])
    s = path_end(t, 100)
    z_t = schedule.alpha(t) * POINT + schedule.sigma(t) * torch.randn(5, 2, 4, 4, generator=generator).double()
    epsilon = (z_t - schedule.alpha(t) * POINT) / schedule.sigma(t)
    return SubPaths(z_t, t, ddim_step(z_t, epsilon, t, s, schedule), s, torch.arange(5))


def exact_network(schedule: Schedule, paths: SubPaths, objective: loss.Objective):
    """The true noise at any point of the paths, as the objective feeds and reads the network."""

    def network(z, time, gamma):
        g = gamma.view(-1, 1, 1, 1).to(z)
        t = time.long() if objective.gamma_conditioning == "embedding" else paths.t
        end = torch.equal(t, paths.s)
        sigma = schedule.sigma(t)
        if not end:
            sigma = sub_path_sigma(g, schedule.ratio(t, paths.s), sigma, schedule.sigma(paths.s))
        alpha = schedule.alpha(t)
        scale = 1.0 if objective.input_scaling == "raw" else (alpha**2 + sigma**2).rsqrt()
        epsilon = (z / scale - alpha * POINT) / sigma
        if objective.prediction_type == "v_prediction":
            return v_from_epsilon(z, epsilon, alpha * scale, sigma * scale)
        return epsilon

    return network


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("input_scaling", ["raw", "unit_variance"])
@pytest.mark.parametrize("distance", ["l2", "huber", "pseudo_huber"])
def test_the_truth_has_no_loss_where_ddim_is_exact(schedule, one_point, prediction_type, input_scaling, distance):
    objective = loss.Objective(
        schedule, prediction_type, input_scaling=input_scaling, distance=distance, sigma_form="linear"
    )
    network = exact_network(schedule, one_point, objective)
    gamma = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    assert loss.distillation_loss(network, network, one_point, gamma, objective) < 1e-10


def test_markov_sigma_is_not_exact_there(schedule, one_point):
    objective = loss.Objective(schedule, distance="l2", sigma_form="markov")
    network = exact_network(schedule, one_point, objective)
    gamma = torch.full((5,), 0.5, dtype=torch.float64)
    assert loss.distillation_loss(network, network, one_point, gamma, objective) > 1e-3


def test_gradient_goes_to_the_student_alone(schedule, one_point):
    weight, target = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    objective = loss.Objective(schedule)
    gamma = torch.full((5,), 0.5, dtype=torch.float64)
    networks = (lambda z, t, g, w=w: w * z for w in (weight, target))
    loss.distillation_loss(*networks, one_point, gamma, objective).backward()
    assert weight.grad.abs() > 0 and target.grad is None


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_gamma_one_is_latent_consistency_distillation(schedule, one_point, generator, prediction_type):
    """An independent reading of LCM's step (Luo et al., 2023, Alg. 1), boundary scalings and all, by LCMScheduler."""
    scheduler = LCMScheduler.from_config(dict(tiny_scheduler().config), prediction_type=prediction_type)
    weights = torch.randn(2, 2, generator=generator).double()

    def network(z, time, gamma=None):
        return torch.einsum("oc,nchw->nohw", weights, z) + time.view(-1, 1, 1, 1) / 1000

    def consistency(z, times):
        rows = []
        for one, time in zip(z, times.tolist(), strict=True):
            scheduler.set_timesteps(timesteps=[time], original_inference_steps=50)
            output = network(one[None], torch.tensor([time]))
            rows.append(scheduler.step(output, time, one[None]).denoised)
        return torch.cat(rows)

    objective = loss.Objective(schedule, prediction_type, distance="l2")
    ours = loss.distillation_loss(network, network, one_point, torch.ones(5), objective)
    theirs = (consistency(one_point.z_t, one_point.t) - consistency(one_point.z_s, one_point.s)).square().mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_scaled_input_has_unit_variance_and_changes_nothing_at_gamma_one(schedule, generator):
    seen = []

    def network(z, time, gamma):
        seen.append(z)
        return z

    t = torch.full((4000,), 999)
    alpha, sigma = schedule.alpha(t), 0.87 * schedule.sigma(t)
    z = alpha * torch.randn(4000, 1, 2, 2, generator=generator) + sigma * torch.randn(
        4000, 1, 2, 2, generator=generator
    )
    objective = loss.Objective(schedule, input_scaling="unit_variance")
    loss.consistency_function(network, z, t, torch.zeros(4000), alpha, sigma, objective)
    assert seen[0].std() == pytest.approx(1, abs=0.02)
    plain = dataclasses.replace(objective, input_scaling="raw")
    arguments = (z, t, torch.ones(4000), alpha, schedule.sigma(t))
    scaled, raw = (loss.consistency_function(network, *arguments, o) for o in (objective, plain))
    torch.testing.assert_close(scaled, raw, rtol=1e-6, atol=1e-6)


def test_equal_snr_time_is_fed(schedule, one_point):
    times = []

    def network(z, time, gamma):
        times.append(time)
        return z

    objective = loss.Objective(schedule, input_scaling="unit_variance", gamma_conditioning="equal_snr_time")
    for gamma in (0.0, 1.0):
        loss.distillation_outputs(network, network, one_point, torch.full((5,), gamma), objective)
    torch.testing.assert_close(times[0], one_point.s.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(times[2], one_point.t.double(), rtol=0, atol=1e-6)


def test_gamma_draws(generator):
    gamma = loss.draw_gamma(20_000, 0.25, generator)
    assert 0 <= gamma.min() and gamma.max() == 1
    assert (gamma == 1).double().mean() == pytest.approx(0.25, abs=0.01)
    assert gamma[gamma < 1].mean() == pytest.approx(0.5, abs=0.01)


def test_distances_by_hand():
    a, b = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2, 2)
    assert loss.distance(a, b, "l2", 0).tolist() == pytest.approx([12.5, 0.5])
    assert loss.distance(a, b, "huber", 1.0)[0] == pytest.approx((10**0.5 - 1 + 17**0.5 - 1) / 2)
    c = 0.00054 * 2**0.5
    assert loss.distance(a, b, "pseudo_huber", 0)[0] == pytest.approx((25 + c**2) ** 0.5 - c)
    with pytest.raises(ValueError, match="'l1': choose l2, huber or pseudo_huber"):
        loss.distance(a, b, "l1", 0)


@pytest.mark.parametrize("gamma", [0.0, 0.35, 1.0])
def test_a_v_student_between_the_ends_of_a_path(schedule, one_point, generator, gamma):
    """f = (alpha z - sigma v) / (alpha^2 + sigma^2) with sigma = sigma(gamma, t)."""
    t, s = one_point.t, one_point.s
    g = torch.full((5,), gamma, dtype=torch.float64).view(-1, 1, 1, 1)
    alpha = schedule.alpha(t)
    sigma = sub_path_sigma(g, schedule.ratio(t, s), schedule.sigma(t), schedule.sigma(s))
    z, v = (torch.randn(5, 2, 4, 4, generator=generator).double() for _ in range(2))
    objective = loss.Objective(schedule, "v_prediction")
    output = loss.consistency_function(lambda *_: v, z, t, g.flatten(), alpha, sigma, objective)
    x0 = (alpha * z - sigma * v) / (alpha**2 + sigma**2)
    c_skip = 0.25 / ((10 * t.double()) ** 2 + 0.25)
    c_out = 10 * t.double() / ((10 * t.double()) ** 2 + 0.25).sqrt()
    expected = c_skip.view(-1, 1, 1, 1) * z + c_out.view(-1, 1, 1, 1) * x0
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha)) == (gamma == 1)
