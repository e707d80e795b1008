"""The training step: an implementation apart from it, its value where the truth is known, and LCM's step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler

from splam.method import loss
from splam.method.schedule import ddim_grid, to_epsilon
from splam.method.solver import guided_epsilon, sub_path
from tests.method import reference

GAMMA = torch.tensor([0.05, 0.9, 0.3, 0.5, 0.7, 0.97], dtype=torch.float64)
DISTANCES = ["l2", "huber", "pseudo_huber"]


def batched(function):
    """A function of one sample in numpy, as a network of the package."""

    def network(z, *facts):
        columns = [fact.flatten().tolist() for fact in facts]
        rows = [function(sample.numpy(), *row) for sample, *row in zip(z, *columns, strict=True)]
        return torch.from_numpy(np.stack(rows))

    return network


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("sigma_form", ["linear", "markov"])
@pytest.mark.parametrize(("skip", "solver_skip"), [(20, 20), (100, 20), (100, 100)])
def test_an_independent_implementation_agrees(schedule, straight, distance, sigma_form, skip, solver_skip):
    """Random networks for teacher, student and target, at 0 < gamma < 1, with paths that are shortened at 0."""
    z_t, t, w = straight[0].z_t, straight[0].t, torch.tensor([1.0, 0.0, 3.0, 8.0, 2.0, 3.0], dtype=torch.float64)
    student, target = (reference.random_network(seed, 32, 3) for seed in (0, 1))
    teacher = reference.random_network(2, 32, 2)

    def epsilon(z, time):
        both = (batched(lambda x, u, c=c: teacher(x, u / 1000, c))(z, time) for c in (1, 0))
        return guided_epsilon(*both, w.view(-1, 1, 1, 1))

    path = sub_path(epsilon, z_t, t, skip, solver_skip, schedule)
    students = [lambda x, level, u, g, f=f: f(x, level, u / 1000, g) for f in (student, target)]
    objective = loss.Objective(schedule, sigma_form, distance, huber_c=0.1)
    ours = loss.distillation_loss(*map(batched, students), path, GAMMA, objective)
    alpha = schedule.alphas.numpy()
    settings = SimpleNamespace(alpha=alpha, sigma=(1 - alpha**2) ** 0.5, skip=skip, solver_skip=solver_skip)
    vars(settings).update(sigma_form=sigma_form, distance=distance, huber_c=0.1)
    samples = zip(z_t.numpy(), t.tolist(), GAMMA.tolist(), w.tolist(), strict=True)
    wanted = reference.loss(*students, lambda x, u, c: teacher(x, u / 1000, c), samples, settings)
    assert float(ours) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_truth_has_no_loss_where_ddim_is_exact(schedule, straight, distance):
    """The path's own noise solves Eq. 17, but for what F(z, 0) = z asks: the end of all is z_0, not x_0.

    The network does not look at z, so that a wrong point or noise level has a loss. What c_skip leaves is below 1e-4.
    """
    path, x0, noise = straight
    z_0 = schedule.add_noise(x0, noise, torch.zeros_like(path.t))

    def truth(z, sigma, t, gamma):
        return noise - schedule.alpha(t) / sigma * (z_0 - x0)

    objective = loss.Objective(schedule, "linear", distance)
    assert loss.distillation_loss(truth, truth, path, GAMMA, objective) < 1e-7
    assert loss.distillation_loss(truth, truth, path, GAMMA, loss.Objective(schedule, "markov", distance)) > 1e-4


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_gamma_one_is_latent_consistency_distillation(schedule, straight, scheduler_settings, prediction_type):
    """An independent reading of LCM's step (Luo et al., 2023, Alg. 1), boundary scalings and all, by LCMScheduler."""
    scheduler, path = LCMScheduler(**scheduler_settings, prediction_type=prediction_type), straight[0]

    def output(z, time):
        return torch.tanh(z.flip(1)) + time.view(-1, 1, 1, 1) / 1000

    def network(z, sigma, time, gamma):
        return to_epsilon(output(z, time), z, schedule.alpha(time), sigma, prediction_type)

    def consistency(z, times):
        rows = []
        for one, time in zip(z, times, strict=True):
            scheduler.set_timesteps(timesteps=[int(time)], original_inference_steps=50)
            rows.append(scheduler.step(output(one[None], time), int(time), one[None]).denoised)
        return torch.cat(rows)

    ours = loss.distillation_loss(network, network, path, torch.ones(6), loss.Objective(schedule, distance="l2"))
    theirs = (consistency(path.z_t, path.t) - consistency(path.z_s, path.s)).square().mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("law", "power"), [((1.0, 1.0), 1.0), ((2.0, 1.0), 0.5)])
def test_gamma_draws(law, power):
    """Beta(2, 1) is the square root of a uniform number; laws and shares of ones leave the uniform numbers paired."""
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    gamma = loss.draw_gamma(20_000, 0.25, torch.Generator().manual_seed(0), law)
    assert (gamma == 1).double().mean() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(gamma[gamma < 1], uniform[gamma < 1] ** power, rtol=1e-5, atol=1e-6)


def test_the_target_is_the_average_of_what_is_trained():
    student, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    student.bias.requires_grad_(False)
    target.load_state_dict({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([5.0])})
    with torch.no_grad():
        student.weight.copy_(torch.tensor([[11.0, -8.0]]))
    loss.update_target(target, student, 0.9)
    assert target.weight.tolist() == [pytest.approx([2.0, 1.0])] and target.bias == 5


def test_training_carries_the_data_to_the_noisiest_time(schedule, generator):
    """A student of one number for each t: it comes from F(z, 0) = z, a link of k after another, through the target."""
    point, t = torch.full((50, 1, 1, 1), 0.7, dtype=torch.float64), ddim_grid()
    student, target = (torch.nn.Embedding.from_pretrained(torch.zeros(1000, 1).double(), False) for _ in range(2))
    optimizer = torch.optim.SGD(student.parameters(), lr=12.5)  # half the way to the target in each step
    objective = loss.Objective(schedule, distance="l2")

    def network(table):
        return lambda z, sigma, time, gamma: (z - schedule.alpha(time) * table(time).view(-1, 1, 1, 1)) / sigma

    for _ in range(150):
        noise = torch.randn(50, 1, 1, 1, generator=generator, dtype=torch.float64)
        path = sub_path(lambda *_, n=noise: n, schedule.add_noise(point, noise, t), t, 100, 100, schedule)
        gamma, before = loss.draw_gamma(50, 0.0, generator), target.weight.clone()
        optimizer.zero_grad()
        loss.distillation_loss(network(student), network(target), path, gamma, objective).backward()
        assert target.weight.grad is None
        optimizer.step()
        loss.update_target(target, student, 0.8)
        torch.testing.assert_close(target.weight, 0.8 * before + 0.2 * student.weight)
    assert (target.weight[t] - 0.7).abs().max() < 0.05
