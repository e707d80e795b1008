"""Sub-paths from the cache: what the solver gives, for any w and k, and shared by the runs that are compared."""

import pytest
import torch

from splam.distill.paths import CachedPaths
from splam.method.solver import sub_path
from tests.distill.builders import cached_run


def batch(cache, run, teacher, share=0, shares=1):
    return CachedPaths(cache, run, teacher).batch(3, share, shares)


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


@pytest.mark.parametrize("skip", [20, 100])
def test_lcm_star_has_its_own_w_for_each_sample_and_any_k(cache, teacher, skip):
    made = batch(cache, cached_run("lcm_star", skip=skip, multiple_estimation=False), teacher)
    assert len(made.guidance_scale.unique()) == 4 and (made.gamma == 1).all()
    assert made.guidance_scale.min() >= 3 and made.guidance_scale.max() <= 15
    assert cached_run().training.lcm_star_scales == (3, 15)  # LCM's [2, 14] is w - 1
    guided = teacher.guided(made.captions, made.guidance_scale.view(-1, 1, 1, 1))
    expected = sub_path(guided, made.path.z_t, made.path.t, skip, skip, teacher.schedule)
    torch.testing.assert_close(made.path.z_s, expected.z_s, rtol=1e-4, atol=1e-5)
    assert torch.equal(made.path.s, (made.path.t - skip).clamp(min=0))


def test_a_path_of_no_whole_steps_is_refused(cache, teacher):
    with pytest.raises(ValueError, match="skip k = 50 is not a multiple of solver_skip k_phi = 20"):
        batch(cache, cached_run(skip=50), teacher)


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
