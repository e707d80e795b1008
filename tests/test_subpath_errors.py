"""Eq. 15 taken apart: identities in float64, a student whose error is known, and finished runs of every kind."""

import json

import pandas as pd
import pytest
import torch

from splam import figures, train
from splam.batches import CachedPaths
from splam.data import emoji
from splam.loss import Objective, consistency_function, published_function
from splam.models import call_unet, load_student
from splam.params import Params, compose, resolve
from splam.schedule import path_end
from splam.solver import SubPaths, ddim_step
from splam.subpath import boundary_scalings, sub_path_point, sub_path_sigma
from splam.subpath_errors import TERMS, draw_latents, path_errors, path_terms, paths_from, run_errors
from splam.trajectories import build_cache, make_draws

GAMMAS = [0.0, 0.4, 1.0]


@pytest.fixture
def paths(schedule, generator) -> SubPaths:
    """Sub-paths of k = 100 in one DDIM step by a noise that is the same at both ends."""
    t = torch.tensor([119, 499, 999])
    s = path_end(t, 100)
    z_t, epsilon = torch.randn((2, 3, 2, 4, 4), generator=generator, dtype=torch.float64)
    return SubPaths(z_t, t, ddim_step(z_t, epsilon, t, s, schedule), s, torch.arange(3))


def true_epsilon(paths, schedule):
    sigma = schedule.sigma(paths.t) - schedule.ratio(paths.t, paths.s) * schedule.sigma(paths.s)
    return (paths.z_t - schedule.ratio(paths.t, paths.s) * paths.z_s) / sigma


def some_network(z, time, gamma):
    return torch.tanh(z + 0.3 * gamma.to(z).view(-1, 1, 1, 1)) * (1 + time.view(-1, 1, 1, 1) / 1000)


def test_the_noise_of_a_straight_path_has_no_error(schedule, paths):
    epsilon = true_epsilon(paths, schedule)
    terms = path_terms(lambda z, t, g: epsilon, paths, GAMMAS, Objective(schedule))
    ratio, sigma_s = schedule.ratio(paths.t, paths.s), schedule.sigma(paths.s)
    for gamma in GAMMAS:
        delta, zero, *errors = terms[gamma]
        torch.testing.assert_close(delta, gamma * (schedule.sigma(paths.t) - ratio * sigma_s) * epsilon)
        torch.testing.assert_close(zero, ratio * sigma_s * epsilon)
        assert max(error.abs().max() for error in errors) < 1e-13


@pytest.mark.parametrize("form", ["linear", "markov"])
@pytest.mark.parametrize("scaling", ["raw", "unit_variance"])
def test_the_residual_is_the_difference_that_the_loss_sees(schedule, paths, form, scaling):
    objective = Objective(schedule, sigma_form=form, input_scaling=scaling)
    alpha_t, ratio = schedule.alpha(paths.t), schedule.ratio(paths.t, paths.s)

    def predicted(output, z, t):  # f of Eq. 14, from F of Eq. 16
        c_skip, c_out = boundary_scalings(t)
        return (output - c_skip * z) / c_out

    end = predicted(published_function(some_network, objective)(paths.z_s, paths.s), paths.z_s, paths.s)
    for gamma, (_, _, error_delta, error_zero, error) in path_terms(some_network, paths, GAMMAS, objective).items():
        g = torch.full_like(alpha_t, gamma)
        z = sub_path_point(paths.z_t, paths.z_s, ratio, g)
        sigma = sub_path_sigma(g, ratio, schedule.sigma(paths.t), schedule.sigma(paths.s), form)
        output = consistency_function(some_network, z, paths.t, g.flatten(), alpha_t, sigma, objective)
        torch.testing.assert_close(error, alpha_t * (predicted(output, z, paths.t) - end), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(error_delta + error_zero, error, rtol=1e-12, atol=1e-12)
        assert gamma or error_delta.abs().max() == 0


def test_an_error_that_grows_with_gamma_is_one_of_dist_delta(schedule, paths):
    epsilon = true_epsilon(paths, schedule)

    def wrong(z, time, gamma):
        return epsilon + 0.1 * gamma.view(-1, 1, 1, 1) * (time == paths.t).view(-1, 1, 1, 1)

    terms = path_terms(wrong, paths, GAMMAS, Objective(schedule))
    for gamma, (_, _, error_delta, error_zero, _) in terms.items():
        ratio = schedule.ratio(paths.t, paths.s)
        g = torch.full_like(ratio, gamma)
        sigma = sub_path_sigma(g, ratio, schedule.sigma(paths.t), schedule.sigma(paths.s))
        torch.testing.assert_close(error_delta, -0.1 * gamma * sigma.expand_as(error_delta), rtol=1e-9, atol=1e-12)
        assert error_zero.abs().max() < 1e-13


def test_paths_are_noised_forward_and_solved_by_the_teacher(schedule, generator):
    latents, noise = torch.randn((2, 3, 2, 4, 4), generator=generator, dtype=torch.float64)
    calls = []

    def epsilon(z, t):
        calls.append(int(t[0]))
        return noise

    for solver_skip, asked in ((20, [99, 79, 59, 39, 19]), (100, [99])):
        calls.clear()
        paths = paths_from(epsilon, latents, noise, 99, 100, solver_skip, Objective(schedule))
        assert calls == asked and paths.s.tolist() == [0, 0, 0]
        # the true noise carries a point to the same image and noise at the end
        expected = schedule.alpha(paths.s) * latents + schedule.sigma(paths.s) * noise
        torch.testing.assert_close(paths.z_s, expected)


def test_errors_are_averaged_over_images_of_all_batches():
    sizes = torch.tensor([1.0, 2.0, 6.0])

    def terms(rows, time):
        return {0.5: sizes[rows].view(1, -1, 1, 1, 1) * torch.arange(1, 6).view(-1, 1, 1, 1, 1) + torch.zeros(2, 2, 2)}

    (row,) = path_errors(terms, [99], 3, 2)
    assert (row["t"], row["gamma"], row["images"]) == (99, 0.5, 3)
    assert [row[name] for name in TERMS] == pytest.approx([3, 6, 9, 12, 15])
    assert row["error_se"] == pytest.approx(5 * sizes.double().std().item() / 3**0.5)


OVERRIDES = [
    "teacher.dtype=float32",
    "trajectories.guidance_scales=[3]",
    "trajectories.draws=24",
    "training.iterations=6",
    "training.batch_size=4",
    "training.bf16=false",
    "training.condition_width=8",
    "world.text_tokens=8",
    "runs.lcm-w3-k20.training=" + json.dumps({"snapshots": []}),
    "runs.splam-w3-k20.training=" + json.dumps({"snapshots": []}),
]


def test_finished_runs_are_taken_apart(teacher, tmp_path):
    params = Params.model_validate(compose("smoke", overrides=OVERRIDES))
    emoji.build(tmp_path / "data", 0, 1, 1, every=120, workers=1)
    cache = build_cache(params, teacher, make_draws(params, tmp_path / "data", teacher.schedule.length), 3.0)
    held = draw_latents(params, teacher, tmp_path / "data", 3)
    for name in ("lcm-w3-k20-s0", "splam-w3-k20-s0"):
        with pytest.raises(FileNotFoundError, match=f"dvc repro distill@{name}"):
            run_errors(params, name, teacher, tmp_path / "runs", held, [99], GAMMAS)
        resolved = resolve(params, name)
        source = CachedPaths(cache, resolved, teacher)
        train.train(resolved, teacher, source, tmp_path / "scratch" / name, tmp_path / "runs" / name)
        rows = run_errors(params, name, teacher, tmp_path / "runs", held, [99, 999], GAMMAS)
        assert [(row["t"], row["gamma"]) for row in rows] == [(t, g) for t in (99, 999) for g in GAMMAS]
        assert all(row["error"] > 0 and row["images"] == 3 and row["run"] == resolved.run_name for row in rows)
        assert (tmp_path / "runs" / name / "gamma.safetensors").is_file() == (resolved.run.method == "splam")


def test_the_picture_has_a_column_for_each_run():
    values = {name: 0.1 for term in TERMS for name in (term, f"{term}_se")}
    rows = [{"system": run, "t": t, "gamma": g, **values} for run in "ab" for t in (99, 499, 999) for g in GAMMAS]
    above_a, above_b, below_a, _ = figures.subpath_errors(pd.DataFrame(rows)).axes
    assert above_a.get_title() == "a, γ = 1" and above_b.get_title() == "b, γ = 1"
    assert below_a.get_legend_handles_labels()[1] == ["t = 99", "t = 499", "t = 999"]
    assert len(above_a.get_legend_handles_labels()[1]) == 3


def test_a_loaded_student_is_the_published_one_with_gammas_weights(teacher, tmp_path):
    params = Params.model_validate(compose("smoke", overrides=OVERRIDES))
    resolved = resolve(params, "splam-w3-k20-s0")
    emoji.build(tmp_path / "data", 0, 1, 1, every=120, workers=1)
    cache = build_cache(params, teacher, make_draws(params, tmp_path / "data", teacher.schedule.length), 3.0)
    train.train(resolved, teacher, CachedPaths(cache, resolved, teacher), tmp_path / "scratch", tmp_path / "run")
    student = load_student(tmp_path / "run", teacher.unet, resolved.run, resolved.training)
    plain = type(teacher.unet).from_pretrained(tmp_path / "run/pipeline/unet")
    assert student.time_embedding.cond_proj.weight.abs().max() > 0
    z, t, captions = torch.randn(2, 4, 8, 8), torch.tensor([19, 999]), teacher.embed(["a", "b"])
    published, at_one, elsewhere = (
        call_unet(unet, z, t, captions, condition)
        for unet, condition in ((plain, None), (student, torch.zeros(2, 8)), (student, torch.ones(2, 8)))
    )
    torch.testing.assert_close(at_one, published)
    assert (elsewhere - published).abs().max() > 1e-6
