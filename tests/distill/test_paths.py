"""Sub-paths from the cache: what the solver gives, for any w and k, and shared by the runs that are compared."""

import pytest
import torch

from splam.distill.paths import CachedPaths
from splam.method.solver import sub_path
from tests.distill.builders import cached_run

ROWS = torch.arange(5)


def batch(cache, run, teacher, share=0, shares=1):
    return CachedPaths(cache, run, teacher).batch(3, share, shares)


def solved(cache, teacher, w, skip, solver_skip):
    """The end of the paths of ROWS by the solver itself."""
    captions = cache.embeddings[cache.caption[ROWS]].float()
    z_t, t = cache.chain[ROWS, 0], cache.t[ROWS]
    return sub_path(teacher.guided(captions, w), z_t, t, skip, solver_skip, teacher.schedule).z_s


@pytest.mark.parametrize("skip", [20, 100])
def test_one_step_paths_follow_for_any_w_and_k(cache, teacher, skip):
    scales = torch.tensor([1.0, 3.0, 5.0, 8.0, 14.0])
    path = cache.one_step(ROWS, skip, scales, teacher.schedule)
    expected = solved(cache, teacher, scales.view(-1, 1, 1, 1), skip, skip)
    torch.testing.assert_close(path.z_s, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(path.s, (path.t - skip).clamp(min=0))


def test_several_steps_are_the_chains(cache, teacher):
    path = cache.multiple_steps(ROWS, 60)
    torch.testing.assert_close(path.z_s, solved(cache, teacher, 3.0, 60, 20), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="skip k = 50 is not a multiple of solver_skip k_phi = 20"):
        cache.multiple_steps(ROWS, 50)


@pytest.mark.parametrize(("multiple_estimation", "solver_skip"), [(True, 20), (False, 100)])
def test_a_run_takes_its_own_steps(cache, teacher, multiple_estimation, solver_skip):
    run = cached_run(skip=100, multiple_estimation=multiple_estimation)
    made = batch(cache, run, teacher)
    expected = sub_path(
        teacher.guided(made.captions, 3.0), made.path.z_t, made.path.t, 100, solver_skip, teacher.schedule
    )
    torch.testing.assert_close(made.path.z_s, expected.z_s, rtol=1e-4, atol=1e-5)


def test_runs_share_their_draws(cache, teacher):
    """LCM and SPLAM of one seed see the same trajectories in the same order; gamma is 1 for LCM."""
    lcm, splam = (batch(cache, cached_run(method), teacher) for method in ("lcm", "splam"))
    assert torch.equal(lcm.path.z_t, splam.path.z_t) and torch.equal(lcm.captions, splam.captions)
    assert (lcm.gamma == 1).all() and (splam.gamma < 1).all() and len(splam.gamma.unique()) == 4
    other = batch(cache, cached_run(seed=6), teacher)
    assert not torch.equal(other.path.z_t, splam.path.z_t) and not torch.equal(other.gamma, splam.gamma)


def test_lcm_star_has_its_own_w_for_each_sample(cache, teacher):
    made = batch(cache, cached_run("lcm_star"), teacher)
    assert len(made.guidance_scale.unique()) == 4 and (made.gamma == 1).all()
    assert made.guidance_scale.min() >= 3 and made.guidance_scale.max() <= 15
    assert cached_run().training.lcm_star_scales == (3, 15)  # LCM's [2, 14] is w - 1
    guided = teacher.guided(made.captions, made.guidance_scale.view(-1, 1, 1, 1))
    expected = sub_path(guided, made.path.z_t, made.path.t, 20, 20, teacher.schedule)
    torch.testing.assert_close(made.path.z_s, expected.z_s, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["splam", "lcm_star"])
def test_shares_make_up_one_global_batch(cache, teacher, method):
    whole = batch(cache, cached_run(method, training={"batch_size": 8}), teacher)
    halves = [batch(cache, cached_run(method), teacher, share=share, shares=2) for share in range(2)]
    for name in ("captions", "gamma", "guidance_scale"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name))
    assert torch.equal(torch.cat([half.path.z_s for half in halves]), whole.path.z_s)


def test_strict_paths_are_whole(cache, teacher):
    run = cached_run(skip=400, multiple_estimation=False, training={"short_ends": "strict", "batch_size": 24})
    path = batch(cache, run, teacher).path
    assert (path.t - path.s == 400).logical_or(path.t == 399).all() and (cache.t < 399).any()
