"""The noise schedule: alpha(t), sigma(t), the DDIM grid, and conversions between predictions.

Always float32 or better: in bfloat16 sigma is 4.8 % off at t = 19.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

GRID_STEPS = 50  # the paper's DDIM grid, 5.2


@dataclass(frozen=True)
class Schedule:
    """alpha(t) = sqrt(alpha_bar_t) and sigma(t) = sqrt(1 - alpha_bar_t) for t = 0 ... T - 1, each (T,)."""

    alphas: Tensor
    sigmas: Tensor

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> Self:
        """From alpha_bar, (T,); float64 input gives a float64 schedule, anything else float32."""
        bar = alphas_cumprod if alphas_cumprod.dtype == torch.float64 else alphas_cumprod.float()
        return cls(bar.sqrt(), (1 - bar).sqrt())

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

    def add_noise(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = alpha(t) z + sigma(t) noise, for clean latents and noise (n, c, h, w) and times t (n,)."""
        return self.alpha(t) * z + self.sigma(t) * noise

    def to(self, device: torch.device | str) -> Self:
        """The schedule on another device."""
        return Schedule(self.alphas.to(device), self.sigmas.to(device))


def ddim_grid(length: int = 1000) -> Tensor:
    """The solver's times t_i = (T / 50)(i + 1) - 1, ascending: 19, 39, ..., 999 for T = 1000."""
    if length % GRID_STEPS:
        raise ValueError(f"{GRID_STEPS} grid steps do not divide the schedule's {length} times")
    return torch.arange(1, GRID_STEPS + 1) * (length // GRID_STEPS) - 1


def path_starts(skip: int, short_ends: str, length: int = 1000) -> Tensor:
    """Grid times a sub-path may start at: all ("clamped") or those >= k - 1 ("strict", the paper's U[k, T])."""
    grid = ddim_grid(length)
    if short_ends == "clamped":
        return grid
    if short_ends == "strict":
        return grid[grid >= skip - 1]
    raise ValueError(f"short_ends is {short_ends!r}: choose 'clamped' or 'strict'")


def path_end(t: Tensor, skip: int) -> Tensor:
    """s = max(t - k, 0), the end of the sub-path that starts at t."""
    return (t - skip).clamp(min=0)


def to_epsilon(prediction: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """A network's raw output as the noise in z = alpha x_0 + sigma epsilon.

    prediction_type: diffusers' 'epsilon', 'v_prediction' (v = alpha epsilon - sigma x_0; Salimans & Ho, 2022) or
    'sample' (x_0). alpha^2 + sigma^2 need not be 1: on a sub-path at gamma < 1 it is not.
    """
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return (sigma * z + alpha * prediction) / (alpha**2 + sigma**2)
    if prediction_type == "sample":
        return (z - alpha * prediction) / sigma
    raise ValueError(
        f"the teacher predicts {prediction_type!r}: supported are 'epsilon', 'v_prediction' and 'sample' "
        "(flow-matching teachers are not)"
    )
