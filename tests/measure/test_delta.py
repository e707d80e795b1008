"""delta(t, k) of maps for which it is known."""

import pytest
import torch

from splam.config import Delta
from splam.measure.delta import delta
from splam.method.schedule import ddim_grid


@pytest.fixture
def latents_and_noise(generator):
    return torch.randn((2, 5, 3, 4, 4), generator=generator, dtype=torch.float64)


def settings(skip: int, first_time: int) -> Delta:
    return Delta(runs=[], images=5, skip=skip, first_time=first_time)


def test_delta_calls_the_network_once_a_time(schedule, latents_and_noise):
    calls = []

    def record(z, t):
        assert t.dtype == torch.int64 and t.shape == z.shape[:1] and len(t.unique()) == 1
        calls.append(int(t[0]))
        return z

    delta(record, *latents_and_noise, schedule, settings(40, 799))
    assert calls == [t for t in ddim_grid().tolist() if t >= 759]


@pytest.mark.parametrize("skip", [20, 100])
def test_delta_of_the_identity_is_the_closed_form(schedule, latents_and_noise, skip):
    latents, noise = latents_and_noise
    rows = delta(lambda z, t: z, latents, noise, schedule, settings(skip, 300))
    assert [row["t"] for row in rows] == list(range(319, 1000, 20))
    for row in rows:
        upper, lower = torch.tensor([row["t"]]), torch.tensor([row["t"] - skip])
        noised = schedule.add_noise(latents, noise, upper)
        change = noised - schedule.add_noise(latents, noise, lower)
        rms, l2 = change.square().mean((1, 2, 3)).sqrt(), change.flatten(1).norm(dim=1)
        assert row["delta_rms"] == pytest.approx(rms.mean().item()) and row["images"] == 5
        assert row["delta_rms_se"] == pytest.approx(rms.std().item() / 5**0.5)
        assert row["delta_l2"] == pytest.approx(l2.mean().item())
        assert row["delta_l2_se"] == pytest.approx(l2.std().item() / 5**0.5)
        assert row["x0_error_rms"] == pytest.approx((noised - latents).square().mean((1, 2, 3)).sqrt().mean().item())


@pytest.mark.parametrize(("skip", "first_time"), [(100, 79), (20, 1000)])
def test_times_that_have_no_lower_partner_are_refused(schedule, latents_and_noise, skip, first_time):
    with pytest.raises(ValueError, match=f"delta.first_time is {first_time}: choose {skip}"):
        delta(lambda z, t: z, *latents_and_noise, schedule, settings(skip, first_time))
