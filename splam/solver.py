"""The teacher's ODE solver: guided DDIM, multiple estimation (Eq. 18), and the cache of its trajectories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from splam.schedule import Schedule, epsilon_from_x0, path_end, x0_from_epsilon

Epsilon = Callable[[Tensor, Tensor], Tensor]
"""A guided noise prediction: (z (n, c, h, w), integer times (n,)) to epsilon (n, c, h, w)."""


def guided_epsilon(conditional: Tensor, unconditional: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Standard classifier-free guidance: eps_0 + w (eps_c - eps_0); w = 1 is no guidance (Ho & Salimans, 2022)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def ddim_step(z: Tensor, epsilon: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """One deterministic DDIM step from times t to s, each (n,) (Song et al., 2021, Eq. 12 with sigma = 0)."""
    x0 = (z - schedule.sigma(t) * epsilon) / schedule.alpha(t)
    return schedule.alpha(s) * x0 + schedule.sigma(s) * epsilon


def log_snr(t: Tensor, schedule: Schedule) -> Tensor:
    """lambda(t) = log(alpha(t) / sigma(t)) for times t (n,): (n, 1, 1, 1)."""
    return (schedule.alpha(t) / schedule.sigma(t)).log()


def extrapolated(x0: Tensor, before: Tensor, times: tuple[Tensor, Tensor, Tensor], schedule: Schedule) -> Tensor:
    """D of DPM-Solver++ 2M: the clean latent carried on, linearly in lambda, to the middle of the step from t to s.

    x0, before: the clean latents (n, c, h, w) found at t and, by the last step, at u; times: (u, t, s), each (n,). A
    DDIM step with D for x0 is 2M's. A step that ends at 0, where lambda runs off, is left first-order, diffusers'
    lower_order_final. Lu et al., 2022, arXiv:2211.01095, Alg. 2.
    """
    at_u, at_t, at_s = (log_snr(time, schedule) for time in times)
    ahead = (at_s - at_t) / (2 * (at_t - at_u))
    return x0 + torch.where((times[2] > 0).view(-1, 1, 1, 1), ahead, 0.0) * (x0 - before)


def check_skips(skip: int, solver_skip: int) -> None:
    """Multiple estimation takes k / k_phi whole steps: k must be a multiple of k_phi."""
    if skip % solver_skip:
        raise ValueError(
            f"skip k = {skip} is not a multiple of solver_skip k_phi = {solver_skip}: choose k from "
            f"{solver_skip}, {2 * solver_skip}, {3 * solver_skip}, ..."
        )


def multiple_estimation(
    epsilon: Epsilon, z_t: Tensor, t: Tensor, skip: int, solver_skip: int, schedule: Schedule, order: int = 1
) -> Tensor:
    """Eq. 18 / Alg. 1: z_t carried to s = max(t - k, 0) in ceil((t - s) / k_phi) guided DDIM steps.

    The paper adds w Phi(c) + (1 - w) Phi(0) to z; combining epsilon first is the same, since w + (1 - w) = 1.
    order 2 takes DPM-Solver++ 2M's steps, as many calls, instead.
    """
    return solver_chain(epsilon, z_t, t, skip // solver_skip, solver_skip, schedule, order)[-1]


def solver_chain(
    epsilon: Epsilon, z_t: Tensor, t: Tensor, steps: int, solver_skip: int, schedule: Schedule, order: int = 1
) -> list[Tensor]:
    """All points of multiple estimation: [z_t, z at t - k_phi, t - 2 k_phi, ...], ends clamped at time 0.

    order: 1 is DDIM, 2 is DPM-Solver++ 2M, whose first step is DDIM's too.
    """
    chain, before, u = [z_t], None, t
    for _ in range(steps):
        z, s = chain[-1], path_end(t, solver_skip)
        noise, alpha, sigma = epsilon(z, t), schedule.alpha(t), schedule.sigma(t)
        x0 = x0_from_epsilon(z, noise, alpha, sigma)
        if order == 2 and before is not None:
            noise = epsilon_from_x0(z, extrapolated(x0, before, (u, t, s), schedule), alpha, sigma)
        moved = ddim_step(z, noise, t, s, schedule)
        chain.append(torch.where((t > 0).view(-1, 1, 1, 1), moved, z))  # a path at 0 stays where it is
        before, u, t = x0, t, s
    return chain


@dataclass(frozen=True)
class SubPaths:
    """A batch of sub-paths: z_t (n, c, h, w) at t (n,), the solver's z_s at s (n,), captions as rows (n,)."""

    z_t: Tensor
    t: Tensor
    z_s: Tensor
    s: Tensor
    caption: Tensor

    def repeated(self, times: int) -> SubPaths:
        """Every path so many times over, the copies of one beside each other: (n times, ...)."""
        return SubPaths(**{name: value.repeat_interleave(times, 0) for name, value in vars(self).items()})


@dataclass(frozen=True)
class TrajectoryCache:
    """Teacher trajectories of one guidance scale, shared by every run that is compared on it.

    chain: (n, steps + 1, c, h, w), guided DDIM points at t, t - k_phi, ...; t: (n,); conditional and
    unconditional: epsilon of the first step, (n, c, h, w), from which any one-step path for any w and k
    follows; caption: (n,) rows of embeddings (m, tokens, d). second_order: the same draws' chain by DPM-Solver++ 2M,
    or none, (0,), where no run asks for it.
    """

    chain: Tensor
    t: Tensor
    conditional: Tensor
    unconditional: Tensor
    caption: Tensor
    embeddings: Tensor
    guidance_scale: Tensor
    solver_skip: Tensor
    second_order: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> TrajectoryCache:
        """Read a saved cache."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: run the trajectories stage (dvc repro trajectories)")
        return cls(**load_file(path))

    def one_step(self, rows: Tensor, skip: int, guidance_scale: float | Tensor, schedule: Schedule) -> SubPaths:
        """Paths of any skip k in one DDIM step (no multiple estimation), for any w: a number or (n,)."""
        w = guidance_scale.view(-1, 1, 1, 1) if isinstance(guidance_scale, Tensor) else guidance_scale
        t = self.t[rows]
        s = path_end(t, skip)
        epsilon = guided_epsilon(self.conditional[rows], self.unconditional[rows], w)
        z_t = self.chain[rows, 0]
        return SubPaths(z_t, t, ddim_step(z_t, epsilon, t, s, schedule), s, self.caption[rows])

    def multiple_steps(self, rows: Tensor, skip: int, order: int = 1) -> SubPaths:
        """Paths of skip k by multiple estimation: k / k_phi steps along the chain of that solver order."""
        solver_skip = int(self.solver_skip)
        check_skips(skip, solver_skip)
        steps = skip // solver_skip
        if steps >= self.chain.shape[1]:
            raise ValueError(
                f"k = {skip} needs {steps} solver steps, the cache holds {self.chain.shape[1] - 1}: raise "
                "trajectories.steps"
            )
        chain = self.second_order if order == 2 else self.chain
        if not len(chain):
            raise ValueError(
                f"the cache of w = {float(self.guidance_scale):g} has no chain of second order: name this w in "
                "trajectories.second_order"
            )
        t = self.t[rows]
        return SubPaths(self.chain[rows, 0], t, chain[rows, steps], path_end(t, skip), self.caption[rows])
