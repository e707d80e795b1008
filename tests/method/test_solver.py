"""The solver at the short ends of paths; its steps are checked in test_loss.py."""

import pytest
import torch

from splam.method import solver


def test_the_solver_stops_at_zero(schedule, generator):
    """A path takes ceil((t - s) / k_phi) steps that matter: one that has come to 0 stays there, bit for bit."""
    t, seen = torch.tensor([59, 999]), []
    z = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)

    def epsilon(z, time):
        seen.append(time.tolist())
        return 7 * z.flip(1)  # so far from z that a step from 0 to 0 would show in the last bits

    chain = solver.solver_chain(epsilon, z, t, 5, 20, schedule)
    assert seen == [[59, 999], [39, 979], [19, 959], [0, 939], [0, 919]]
    assert torch.equal(chain[5][0], chain[3][0]) and not torch.equal(chain[5][1], chain[3][1])
    path = solver.sub_path(epsilon, z, t, 100, 20, schedule)
    assert path.s.tolist() == [0, 899] and path.t is t
    assert torch.equal(path.z_t, z) and torch.equal(path.z_s, chain[-1])


def test_k_that_is_no_multiple_of_k_phi_is_an_error():
    with pytest.raises(ValueError, match="50 is not a multiple of solver_skip k_phi = 20"):
        solver.solver_steps(50, 20)
