"""The sub-path: the straight line between two points of one ODE trajectory (Eq. 12-16).

Symbols as in the paper: t and s are the start and end of the sub-path, r = alpha(t) / alpha(s), gamma is the position
on it (1 is z_t, 0 is r z_s). Tensors broadcast: latents (n, c, h, w), coefficients (n, 1, 1, 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from splam.method.schedule import Schedule

SIGMA_DATA = 0.5  # sigma_d of LCM's boundary scalings
TIME_SCALING = 10.0  # LCM's timestep_scaling


@dataclass(frozen=True)
class SubPath:
    """A batch of sub-paths: z_t (n, c, h, w) at t (n,), and the solver's z_s at s (n,)."""

    z_t: Tensor
    t: Tensor
    z_s: Tensor
    s: Tensor


def sub_path_point(path: SubPath, gamma: Tensor, schedule: Schedule, form: str = "linear") -> tuple[Tensor, Tensor]:
    """Where gamma (n,) lies on each path: z_{gamma,t} (n, c, h, w) and its noise level sigma(gamma, t) (n, 1, 1, 1)."""
    g, ratio = gamma.to(path.z_t).view(-1, 1, 1, 1), schedule.ratio(path.t, path.s)
    z = (1 - g) * ratio * path.z_s + g * path.z_t  # Eq. 12
    return z, sub_path_sigma(g, ratio, schedule.sigma(path.t), schedule.sigma(path.s), form)


def sub_path_sigma(gamma: Tensor, ratio: Tensor, sigma_t: Tensor, sigma_s: Tensor, form: str = "linear") -> Tensor:
    """sigma(gamma, t), the noise level of z_{gamma,t}.

    linear: (1 - gamma) r sigma_s + gamma sigma_t, the paper's (4.2); exact where z_s is one DDIM step from z_t.
    markov: sqrt(r^2 sigma_s^2 + gamma^2 (1 - r^2)), what the authors' released code uses; exact for the Markov
    forward process, never larger than linear.
    """
    if form == "linear":
        return (1 - gamma) * ratio * sigma_s + gamma * sigma_t
    if form == "markov":
        return (ratio**2 * sigma_s**2 + gamma**2 * (1 - ratio**2)).sqrt()
    raise ValueError(f"sigma_form is {form!r}: choose 'linear' or 'markov'")


def predicted_x0(z: Tensor, epsilon: Tensor, alpha_t: Tensor, sigma: Tensor) -> Tensor:
    """Eq. 14: f = (z_{gamma,t} - sigma(gamma, t) epsilon) / alpha(t); alpha at the start, at every gamma."""
    return (z - sigma * epsilon) / alpha_t


def boundary_scalings(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip(t) and c_out(t) of Eq. 16 for times (n,), each (n, 1, 1, 1); c_skip(0) = 1 and c_out(0) = 0."""
    scaled = (TIME_SCALING * t.double()).view(-1, 1, 1, 1)
    norm = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, scaled / norm.sqrt()


def consistency_output(z: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Eq. 16: F = c_skip(t) z + c_out(t) f, so that F(z, 0) = z exactly."""
    c_skip, c_out = boundary_scalings(t)
    return c_skip.to(z.dtype) * z + c_out.to(z.dtype) * x0


def gamma_embedding(gamma: Tensor, width: int, max_frequency: float) -> Tensor:
    """e(gamma) - e(1), sinusoidal, (n,) to (n, width): continuous, and zero at gamma = 1 (4.2, after Eq. 19).

    Frequencies run from 1 rad to max_frequency rad over [0, 1], geometrically. The paper gives none; with
    hundreds of radians gamma = 1 would be an isolated point that no training example comes near.
    """
    if width % 2:
        raise ValueError(f"condition_width is {width}: it must be even (sines and cosines)")
    steps = torch.linspace(0, 1, width // 2, dtype=gamma.dtype, device=gamma.device)
    frequencies = max_frequency**steps

    def waves(position: Tensor) -> Tensor:
        angle = position[:, None] * frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    return waves(gamma) - waves(torch.ones_like(gamma))


def equal_snr_time(alpha_t: Tensor, sigma: Tensor, schedule: Schedule) -> Tensor:
    """The fractional time t' (n,) at which the schedule's alpha / sigma equals alpha_t / sigma(gamma, t): SPLAM-tau.

    Linear in log(sigma / alpha) between integer times, clamped to the schedule. The sub-path point, scaled to unit
    variance, is a variance-preserving latent of exactly that time.
    """
    table = (schedule.sigmas / schedule.alphas).log().to(sigma)
    wanted = (sigma / alpha_t).log().flatten()
    upper = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
    low, high = table[upper - 1], table[upper]
    return (upper - 1 + (wanted - low) / (high - low)).clamp(0, len(table) - 1)
