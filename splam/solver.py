"""The teacher's ODE solver: guided DDIM, multiple estimation (Eq. 18), and the cache of its trajectories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from splam.schedule import Schedule, path_end

Epsilon = Callable[[Tensor, Tensor], Tensor]
"""A guided noise prediction: (z (n, c, h, w), integer times (n,)) to epsilon (n, c, h, w)."""


def guided_epsilon(conditional: Tensor, unconditional: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Standard classifier-free guidance: eps_0 + w (eps_c - eps_0); w = 1 is no guidance (Ho & Salimans, 2022)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def ddim_step(z: Tensor, epsilon: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """One deterministic DDIM step from times t to s, each (n,) (Song et al., 2021, Eq. 12 with sigma = 0)."""
    x0 = (z - schedule.sigma(t) * epsilon) / schedule.alpha(t)
    return schedule.alpha(s) * x0 + schedule.sigma(s) * epsilon


def check_skips(skip: int, solver_skip: int) -> None:
    """Multiple estimation takes k / k_phi whole steps: k must be a multiple of k_phi."""
    if skip % solver_skip:
        raise ValueError(
            f"skip k = {skip} is not a multiple of solver_skip k_phi = {solver_skip}: choose k from "
            f"{solver_skip}, {2 * solver_skip}, {3 * solver_skip}, ..."
        )


def multiple_estimation(
    epsilon: Epsilon, z_t: Tensor, t: Tensor, skip: int, solver_skip: int, schedule: Schedule
) -> Tensor:
    """Eq. 18 / Alg. 1: z_t carried to s = max(t - k, 0) in ceil((t - s) / k_phi) guided DDIM steps.

    The paper adds w Phi(c) + (1 - w) Phi(0) to z; combining epsilon first is the same, since w + (1 - w) = 1.
    """
    return solver_chain(epsilon, z_t, t, skip // solver_skip, solver_skip, schedule)[-1]


def solver_chain(
    epsilon: Epsilon, z_t: Tensor, t: Tensor, steps: int, solver_skip: int, schedule: Schedule
) -> list[Tensor]:
    """All points of multiple estimation: [z_t, z at t - k_phi, t - 2 k_phi, ...], ends clamped at time 0."""
    chain = [z_t]
    for _ in range(steps):
        s = path_end(t, solver_skip)
        moved = ddim_step(chain[-1], epsilon(chain[-1], t), t, s, schedule)
        chain.append(torch.where((t > 0).view(-1, 1, 1, 1), moved, chain[-1]))  # a path at 0 stays where it is
        t = s
    return chain


@dataclass(frozen=True)
class SubPaths:
    """A batch of sub-paths: z_t (n, c, h, w) at t (n,), the solver's z_s at s (n,), captions as rows (n,)."""

    z_t: Tensor
    t: Tensor
    z_s: Tensor
    s: Tensor
    caption: Tensor


@dataclass(frozen=True)
class TrajectoryCache:
    """Teacher trajectories of one guidance scale, shared by every run that is compared on it.

    chain: (n, steps + 1, c, h, w), guided DDIM points at t, t - k_phi, ...; t: (n,); conditional and
    unconditional: epsilon of the first step, (n, c, h, w), from which any one-step path for any w and k
    follows; caption: (n,) rows of embeddings (m, tokens, d).
    """

    chain: Tensor
    t: Tensor
    conditional: Tensor
    unconditional: Tensor
    caption: Tensor
    embeddings: Tensor
    guidance_scale: Tensor
    solver_skip: Tensor

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

    def multiple_steps(self, rows: Tensor, skip: int) -> SubPaths:
        """Paths of skip k by multiple estimation: k / k_phi steps along the cached chain."""
        solver_skip = int(self.solver_skip)
        check_skips(skip, solver_skip)
        steps = skip // solver_skip
        if steps >= self.chain.shape[1]:
            raise ValueError(
                f"k = {skip} needs {steps} solver steps, the cache holds {self.chain.shape[1] - 1}: raise "
                "trajectories.steps"
            )
        t = self.t[rows]
        return SubPaths(self.chain[rows, 0], t, self.chain[rows, steps], path_end(t, skip), self.caption[rows])
