"""What leads beyond the paper's SPLAM: each recipe against an independent reference, and off by default."""

import dataclasses
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from runs import SETTINGS, FakeStream, small_run
from standins import save_sd
from test_solver import gaussian_epsilon, gaussian_flow

from splam import loss, sizes, solver
from splam.batches import skip_at
from splam.models import load_teacher, tiny_scheduler
from splam.online import OnlinePaths
from splam.params import RECIPES, Params, compose
from splam.schedule import ddim_grid, path_end
from splam.solver import SubPaths, ddim_step
from splam.subpath import sub_path_point, sub_path_sigma
from splam.train import Distillation, card_facts


@pytest.fixture
def paths(schedule, generator):
    """Three sub-paths of k = 100 in float64, of random latents and noise."""
    t = torch.tensor([999, 519, 59])
    z_t, epsilon = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    s = path_end(t, 100)
    return SubPaths(z_t, t, ddim_step(z_t, epsilon, t, s, schedule), s, torch.arange(3))


def network(z, time, gamma):
    """A smooth map that depends on all it is given."""
    return torch.tanh(z.flip(1) + time.view(-1, 1, 1, 1) / 1000) * (1 + gamma.view(-1, 1, 1, 1))


# gamma


@pytest.mark.parametrize(
    ("law", "inverse"),
    [
        ((1.0, 1.0), lambda u: u),
        ((2.0, 1.0), lambda u: u**0.5),
        ((1.0, 3.0), lambda u: 1 - (1 - u) ** (1 / 3)),
        ((0.5, 0.5), lambda u: torch.sin(math.pi / 2 * u) ** 2),
    ],
)
def test_gamma_follows_a_beta_law_by_its_inverse(law, inverse):
    """The inverses of these four are known in closed form; all take the same uniform numbers."""

    def draw(law):
        return loss.draw_gamma(4000, 0.0, torch.Generator().manual_seed(0), law)

    torch.testing.assert_close(draw(law), inverse(draw((1.0, 1.0))), rtol=1e-5, atol=1e-6)


def test_a_law_leaves_the_share_of_ones(generator):
    gamma = loss.draw_gamma(20_000, 0.25, generator, (2.0, 3.0))
    assert (gamma == 1).double().mean() == pytest.approx(0.25, abs=0.01)
    assert gamma[gamma < 1].mean() == pytest.approx(2 / 5, abs=0.01)


# Several points of one path


@pytest.mark.parametrize("gap", [1.0, 0.3])
@pytest.mark.parametrize("weight", ["none", "min_snr"])
def test_m_points_of_a_path_are_m_batches_of_one(schedule, paths, generator, gap, weight):
    objective = loss.Objective(schedule, target_gap=gap, loss_weight=weight, input_scaling="unit_variance")
    gamma = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    together = loss.distillation_loss(network, network, paths, gamma.flatten(), objective)
    alone = [loss.distillation_loss(network, network, paths, g, objective) for g in gamma.T]
    torch.testing.assert_close(together, torch.stack(alone).mean())


@pytest.mark.parametrize(("gap", "calls"), [(1.0, 3), (0.5, 12)])
def test_targets_that_are_the_same_are_computed_once(schedule, paths, gap, calls):
    seen = []

    def target(z, time, gamma):
        seen.append(len(z))
        return network(z, time, gamma)

    objective = loss.Objective(schedule, target_gap=gap)
    loss.distillation_outputs(network, target, paths, torch.full((12,), 0.9), objective)
    assert seen == [calls]


def test_a_batch_holds_m_fresh_gammas_for_each_path_however_it_is_cut(tmp_path):
    teacher = load_teacher(save_sd(tmp_path))

    def batch(size, share, shares, m):
        resolved = small_run(batch_size=size, gammas_per_path=m)
        return OnlinePaths(FakeStream(4), resolved, teacher, SETTINGS).batch(0, share, shares)

    whole = batch(4, 0, 1, 3)
    assert whole.gamma.shape == (12,) and len(whole.gamma.unique()) == 12 and len(whole.paths.t) == 4
    parts = [batch(2, share, 2, 3).gamma for share in range(2)]
    assert torch.equal(torch.cat(parts), whole.gamma)
    assert len(batch(4, 0, 1, 1).gamma) == 4


# The target on the same path


def test_a_gap_of_one_is_the_papers_target(schedule, paths, generator):
    gamma = torch.rand(3, generator=generator, dtype=torch.float64)
    point = loss.target_point(paths, gamma, loss.Objective(schedule))
    end = (paths.z_s, paths.s, torch.ones_like(gamma), schedule.alpha(paths.s), schedule.sigma(paths.s))
    assert all(torch.equal(a, b) for a, b in zip(point, end, strict=True))


def test_a_nearer_target_lies_on_the_path_or_at_its_end(schedule, paths):
    gamma = torch.tensor([0.9, 0.3, 0.7], dtype=torch.float64)
    z, t, at, alpha, sigma = loss.target_point(paths, gamma, loss.Objective(schedule, target_gap=0.5))
    assert t.tolist() == [999, 419, 59] and at.tolist() == pytest.approx([0.4, 1.0, 0.2])
    assert torch.equal(z[1], paths.z_s[1]) and torch.equal(sigma[1], schedule.sigma(paths.s)[1])
    ratio = schedule.ratio(paths.t, paths.s)[0]
    torch.testing.assert_close(z[0], sub_path_point(paths.z_t[0], paths.z_s[0], ratio, torch.tensor(0.4)))
    expected = sub_path_sigma(torch.tensor(0.4), ratio, schedule.sigma(t)[0], schedule.sigma(paths.s)[0])
    torch.testing.assert_close(sigma[0], expected)
    assert torch.equal(alpha, schedule.alpha(t))


# The weight of a time


@pytest.mark.parametrize(("distance", "degree"), [("l2", 2), ("huber", 1), ("pseudo_huber", 1)])
def test_min_snr_makes_errors_of_noise_count_alike(schedule, generator, distance, degree):
    """An error of epsilon moves f by sigma / alpha: below an SNR of 5 its loss is the same at all t."""
    t = torch.tensor([359, 599, 999])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert ((alpha / sigma) ** 2 < 5).all()
    error = torch.randn(1, 2, 4, 4, generator=generator, dtype=torch.float64) * sigma / alpha
    far = loss.distance(error, torch.zeros_like(error), distance, 1e-9) * loss.snr_weight(t, schedule, degree)
    torch.testing.assert_close(far, far[:1].expand(3), rtol=2e-3, atol=0)  # pseudo_huber's c bends it a little


def test_the_weight_is_capped_and_one_on_average(schedule):
    grid = ddim_grid()
    weight = loss.snr_weight(grid, schedule, 2)
    assert weight.mean() == pytest.approx(1)
    assert weight[0] == weight[1] == weight.max() and weight[-1] == weight.min()
    assert weight.max() / weight.min() == pytest.approx(5 / float((schedule.alphas[999] / schedule.sigmas[999]) ** 2))


# The solver of second order


def test_second_order_agrees_with_diffusers(schedule, generator):
    """DPM-Solver++ 2M along 999, 979, ..., 899, of a network that is not linear in z."""

    def epsilon(z, t):
        return torch.tanh(z) + t.view(-1, 1, 1, 1) / 500

    times = list(range(999, 99, -20))
    scheduler = DPMSolverMultistepScheduler.from_config(
        dict(tiny_scheduler("epsilon").config),
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(timesteps=times)
    z = torch.randn(2, 2, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([999, 999])
    ours = solver.solver_chain(epsilon, z, t, 5, 20, schedule, order=2)
    for step, time in enumerate(times[:5]):
        z = scheduler.step(epsilon(z, torch.tensor([time])), time, z).prev_sample
        torch.testing.assert_close(ours[step + 1], z.double(), rtol=1e-4, atol=1e-4)
    first = solver.solver_chain(epsilon, ours[0], t, 5, 20, schedule)
    assert torch.equal(first[1], ours[1]) and (first[5] - ours[5]).abs().max() > 1e-3


def test_second_order_converges_at_second_order(schedule, generator):
    """On a Gaussian, whose flow is known, halving k_phi quarters the error; DDIM's is larger."""
    epsilon, t = gaussian_epsilon(schedule, 0.7, 0.4), torch.full((64,), 599)
    z = torch.randn(64, 1, 1, 1, generator=generator, dtype=torch.float64)
    exact = gaussian_flow(z, t, t - 400, schedule, 0.7, 0.4)

    def error(k_phi, order):
        return float((solver.multiple_estimation(epsilon, z, t, 400, k_phi, schedule, order) - exact).abs().mean())

    errors = [error(k_phi, 2) for k_phi in (40, 20, 10)]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert orders == pytest.approx([2, 2], abs=0.35)
    assert errors[1] < error(20, 1) / 3


def test_second_order_ends_at_zero_by_ddim_and_stays_there(schedule, generator):
    t = torch.tensor([59, 19])
    z = torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64)
    chain = solver.solver_chain(lambda z, time: torch.tanh(z), z, t, 5, 20, schedule, order=2)
    assert all(point.isfinite().all() for point in chain)
    last = ddim_step(chain[2], torch.tanh(chain[2]), torch.tensor([19, 0]), torch.tensor([0, 0]), schedule)
    torch.testing.assert_close(chain[3][0], last[0])
    assert torch.equal(chain[5], torch.stack([chain[3][0], chain[1][1]]))


def test_a_run_carries_its_paths_by_the_solver_it_names(tmp_path):
    """k = 40 in two steps: the second one is 2M's, but where it ends at 0."""
    teacher = load_teacher(save_sd(tmp_path))
    first, second = (
        OnlinePaths(FakeStream(4), small_run(solver_order=n), teacher, SETTINGS).batch(1, 0, 1).paths for n in (1, 2)
    )
    assert torch.equal(first.z_t, second.z_t) and torch.equal(first.s, second.s)
    apart = (first.z_s - second.z_s).flatten(1).abs().amax(1)
    assert torch.equal(apart > 1e-5, first.s > 0)


# k


def test_random_k_takes_every_multiple_alike_and_is_a_function_of_the_iteration():
    resolved = small_run(skip=100, skip_law="random")
    drawn = [skip_at(i, resolved, 20) for i in range(2000)]
    counts = Counter(drawn)
    assert sorted(counts) == [20, 40, 60, 80, 100] and all(330 < n < 470 for n in counts.values())
    assert drawn == [skip_at(i, resolved, 20) for i in range(2000)]


def test_annealed_k_falls_through_every_multiple_in_equal_shares():
    resolved = small_run(skip=100, skip_law="annealed", iterations=50)
    drawn = [skip_at(i, resolved, 20) for i in range(50)]
    assert drawn == sorted(drawn, reverse=True) and (drawn[0], drawn[-1]) == (100, 20)
    assert max(Counter(drawn).values()) - min(Counter(drawn).values()) <= 2
    assert {skip_at(i, small_run(skip=100), 20) for i in range(50)} == {100}


def test_a_drawn_k_ends_the_paths_and_leaves_the_other_draws_alone(tmp_path):
    teacher = load_teacher(save_sd(tmp_path))
    fixed, drawn = (
        OnlinePaths(FakeStream(4), small_run(skip_law=law), teacher, SETTINGS) for law in ("fixed", "annealed")
    )
    late, usual = drawn.batch(3, 0, 1), fixed.batch(3, 0, 1)
    assert torch.equal(late.paths.s, path_end(late.paths.t, 20)) and torch.equal(
        usual.paths.s, path_end(late.paths.t, 40)
    )
    assert torch.equal(late.gamma, usual.gamma) and torch.equal(late.paths.z_t, usual.paths.z_t)


# What a recipe costs


@pytest.mark.parametrize(
    ("method", "settings"),
    [("lcm", {}), ("splam", {"gammas_per_path": 3}), ("splam", {"gammas_per_path": 2, "target_gap": 0.5})],
)
def test_network_calls_are_those_that_are_made(tmp_path, method, settings):
    """Rows through each network in one iteration; the student's backward pass is worth two forward ones."""
    teacher = load_teacher(save_sd(tmp_path))
    resolved = small_run(method, iterations=1, **settings)
    run = Distillation.start(resolved, teacher, OnlinePaths(FakeStream(4), resolved, teacher, SETTINGS))
    rows = Counter()
    for name, unet in {"teacher": teacher.unet, "target": run.target, "student": run.student}.items():
        unet.register_forward_hook(lambda _, inputs, output, name=name: rows.update({name: len(inputs[0])}))
    run.step(0)
    made = {**rows, "student": 3 * rows["student"]}
    assert sizes.training_calls(resolved, SETTINGS.solver_skip) == made


def test_a_drawn_k_costs_the_mean_of_its_steps():
    fixed, drawn = small_run(skip=100), small_run(skip=100, skip_law="random")
    calls = [sizes.path_calls(r.run, r.training, 20)["teacher"] for r in (fixed, drawn)]
    assert calls == [10, sum(2 * n for n in (1, 2, 3, 4, 5)) / 5]


def test_a_students_card_names_its_recipe_and_nothing_that_is_usual():
    params, teacher = Params.model_validate(compose("smoke")), SimpleNamespace(added=None)
    told = card_facts(params, small_run(gammas_per_path=4, target_gap=0.5), teacher).training
    assert (told["gammas per path"], told["target gap"]) == (4, 0.5) and "skip law" not in told
    assert not {key.replace("_", " ") for key in RECIPES} & set(card_facts(params, small_run(), teacher).training)


def test_by_default_every_recipe_is_the_papers():
    training = small_run().training
    assert (training.gamma_law, training.gammas_per_path, training.target_gap) == ((1.0, 1.0), 1, 1.0)
    assert (training.loss_weight, training.solver_order, training.skip_law) == ("none", 1, "fixed")
    objective = {field.name: field.default for field in dataclasses.fields(loss.Objective)}
    assert (objective["target_gap"], objective["loss_weight"]) == (1.0, "none")
