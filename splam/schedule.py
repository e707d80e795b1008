"""The noise schedule: alpha(t), sigma(t), the DDIM grid, and conversions between predictions.

Always float32 or better: in bfloat16 sigma is 4.8 % off at t = 19.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID_STEPS = 50  # the paper's DDIM grid, 5.2


@dataclass(frozen=True)
class Schedule:
    """alpha(t) = sqrt(alpha_bar_t) and sigma(t) = sqrt(1 - alpha_bar_t) for t = 0 ... T - 1, each (T,)."""

    alphas: Tensor
    sigmas: Tensor

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> Schedule:
        """From alpha_bar, (T,); float64 input gives a float64 schedule, anything else float32."""
        bar = alphas_cumprod if alphas_cumprod.dtype == torch.float64 else alphas_cumprod.float()
        return cls(bar.sqrt(), (1 - bar).sqrt())

    @classmethod
    def from_scheduler(cls, scheduler) -> Schedule:
        """From a diffusers scheduler's own betas (read, not assumed)."""
        bar = getattr(scheduler, "alphas_cumprod", None)
        if bar is None:
            raise ValueError(
                f"{type(scheduler).__name__} has no alphas_cumprod: this method needs a variance-preserving teacher"
            )
        return cls.from_alphas_cumprod(bar)

    @property
    def length(self) -> int:
        """T, the number of training times."""
        return len(self.alphas)

    def alpha(self, t: Tensor) -> Tensor:
        """alpha(t) for integer times t (n,), shaped (n, 1, 1, 1) to multiply images."""
        return self.alphas.to(t.device)[t].view(-1, 1, 1, 1)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma(t) for integer times t (n,), shaped (n, 1, 1, 1)."""
        return self.sigmas.to(t.device)[t].view(-1, 1, 1, 1)

    def ratio(self, t: Tensor, s: Tensor) -> Tensor:
        """r = alpha(t) / alpha(s), (n, 1, 1, 1)."""
        return self.alpha(t) / self.alpha(s)

    def to(self, device: torch.device | str) -> Schedule:
        """The schedule on another device."""
        return Schedule(self.alphas.to(device), self.sigmas.to(device))

    def double(self) -> Schedule:
        """The schedule in float64, for identities."""
        return Schedule(self.alphas.double(), self.sigmas.double())


def ddim_grid(length: int = 1000, steps: int = GRID_STEPS) -> Tensor:
    """The solver's times t_i = (T / steps)(i + 1) - 1, ascending: 19, 39, ..., 999 for 50 of 1000."""
    if length % steps:
        raise ValueError(f"{steps} grid steps do not divide the schedule's {length} times")
    return torch.arange(1, steps + 1) * (length // steps) - 1


def path_starts(skip: int, short_ends: str, length: int = 1000, steps: int = GRID_STEPS) -> Tensor:
    """Grid times a sub-path may start at: all ("clamped") or those >= k - 1 ("strict", the paper's U[k, T])."""
    grid = ddim_grid(length, steps)
    if short_ends == "clamped":
        return grid
    if short_ends == "strict":
        return grid[grid >= skip - 1]
    raise ValueError(f"short_ends is {short_ends!r}: choose 'clamped' or 'strict'")


def path_end(t: Tensor, skip: int) -> Tensor:
    """s = max(t - k, 0), the end of the sub-path that starts at t."""
    return (t - skip).clamp(min=0)


def epsilon_from_x0(z: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise in z = alpha x0 + sigma epsilon."""
    return (z - alpha * x0) / sigma


def x0_from_epsilon(z: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean latent in z = alpha x0 + sigma epsilon."""
    return (z - sigma * epsilon) / alpha


def epsilon_from_v(z: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Noise from v = alpha epsilon - sigma x0 (Salimans & Ho, 2022) where z = alpha x0 + sigma epsilon.

    alpha^2 + sigma^2 need not be 1, as on a sub-path at gamma < 1: epsilon = (sigma z + alpha v) / (alpha^2 + sigma^2).
    """
    return (sigma * z + alpha * v) / (alpha**2 + sigma**2)


def v_from_epsilon(z: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha epsilon - sigma x0, with x0 taken from z and epsilon."""
    return alpha * epsilon - sigma * x0_from_epsilon(z, epsilon, alpha, sigma)


def to_epsilon(prediction: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """A network's raw output as noise. prediction_type: diffusers' 'epsilon', 'v_prediction' or 'sample'."""
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return epsilon_from_v(z, prediction, alpha, sigma)
    if prediction_type == "sample":
        return epsilon_from_x0(z, prediction, alpha, sigma)
    raise ValueError(
        f"the teacher predicts {prediction_type!r}: supported are 'epsilon', 'v_prediction' and 'sample' "
        "(flow-matching teachers are not)"
    )
