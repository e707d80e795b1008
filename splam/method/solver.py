"""The teacher's ODE solver: guided DDIM steps, and multiple estimation (Eq. 18)."""

from collections.abc import Callable

import torch
from torch import Tensor

from splam.method.schedule import Schedule, path_end
from splam.method.subpath import SubPath, predicted_x0

Epsilon = Callable[[Tensor, Tensor], Tensor]
"""A guided noise prediction: (z (n, c, h, w), integer times (n,)) to epsilon (n, c, h, w)."""


def guided_epsilon(conditional: Tensor, unconditional: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Standard classifier-free guidance: eps_0 + w (eps_c - eps_0); w = 1 is no guidance (Ho & Salimans, 2022)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def ddim_step(z: Tensor, epsilon: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """One deterministic DDIM step from times t to s, each (n,) (Song et al., 2021, Eq. 12 with sigma = 0)."""
    x0 = predicted_x0(z, epsilon, schedule.alpha(t), schedule.sigma(t))
    return schedule.alpha(s) * x0 + schedule.sigma(s) * epsilon


def solver_steps(skip: int, solver_skip: int) -> int:
    """k / k_phi, the steps of multiple estimation. Raises ValueError where k is no multiple of k_phi."""
    if skip % solver_skip:
        raise ValueError(
            f"skip k = {skip} is not a multiple of solver_skip k_phi = {solver_skip}: choose k from "
            f"{solver_skip}, {2 * solver_skip}, {3 * solver_skip}, ..."
        )
    return skip // solver_skip


def solver_chain(
    epsilon: Epsilon, z_t: Tensor, t: Tensor, steps: int, solver_skip: int, schedule: Schedule
) -> list[Tensor]:
    """All points of multiple estimation: [z_t, z at t - k_phi, t - 2 k_phi, ...], ends clamped at time 0.

    Eq. 18 adds w Phi(c) + (1 - w) Phi(0) to z; combining epsilon first is the same, since w + (1 - w) = 1.
    """
    chain = [z_t]
    for _ in range(steps):
        z, s = chain[-1], path_end(t, solver_skip)
        moved = ddim_step(z, epsilon(z, t), t, s, schedule)
        chain.append(torch.where((t > 0).view(-1, 1, 1, 1), moved, z))  # a path at 0 stays where it is
        t = s
    return chain


def sub_path(epsilon: Epsilon, z_t: Tensor, t: Tensor, skip: int, solver_skip: int, schedule: Schedule) -> SubPath:
    """Alg. 1, lines 3-6: z_t carried to s = max(t - k, 0) by k / k_phi guided DDIM steps; solver_skip = k takes one."""
    chain = solver_chain(epsilon, z_t, t, solver_steps(skip, solver_skip), solver_skip, schedule)
    return SubPath(z_t, t, chain[-1], path_end(t, skip))
