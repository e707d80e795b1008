"""Algorithm 1: one training step of SPLAM and of LCM, which is the same step with gamma = 1 throughout.

A network is a callable (z, sigma, t, gamma) -> epsilon, the noise in z = alpha(t) x_0 + sigma epsilon, closed over its
captions: z (n, c, h, w), sigma (n, 1, 1, 1), t and gamma (n,).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from splam.method.schedule import Schedule
from splam.method.subpath import SubPath, consistency_output, predicted_x0, sub_path_point

Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """What Eq. 17 leaves open: the form of sigma(gamma, t) (linear, markov) and d (l2, huber, pseudo_huber)."""

    schedule: Schedule
    sigma_form: str = "linear"
    distance: str = "huber"
    huber_c: float = 1e-3


def distillation_loss(student: Network, target: Network, path: SubPath, gamma: Tensor, objective: Objective) -> Tensor:
    """Eq. 17, a mean over the batch. path: Alg. 1, lines 3-6 (solver.sub_path); gamma (n,): line 7 (draw_gamma)."""
    schedule = objective.schedule
    z, sigma = sub_path_point(path, gamma, schedule, objective.sigma_form)  # Eq. 12, 13
    output = consistency(student, z, sigma, path.t, gamma, schedule)  # Eq. 14, 16
    with torch.no_grad():  # F_theta-: the algorithm prints F_theta here, Eq. 17 is right
        aim = consistency(target, path.z_s, schedule.sigma(path.s), path.s, torch.ones_like(gamma), schedule)
    return distance(output, aim, objective.distance, objective.huber_c).mean()  # Eq. 17


def draw_gamma(
    count: int, one_probability: float, generator: torch.Generator, law: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Alg. 1, line 7: gamma ~ Beta(a, b), of which (1, 1) is the paper's U[0, 1], or 1 with a given probability: (n,).

    Each gamma is one uniform number through Beta's inverse distribution, so equal seeds stay paired across laws.
    """
    gamma = torch.rand(count, generator=generator)
    if law != (1.0, 1.0):
        gamma = torch.from_numpy(betaincinv(*law, gamma.double().numpy())).float()
    one = torch.rand(count, generator=generator) < one_probability
    return torch.where(one, 1.0, gamma)


def consistency(network: Network, z: Tensor, sigma: Tensor, t: Tensor, gamma: Tensor, schedule: Schedule) -> Tensor:
    """F(z, c, gamma, t) of Eq. 16, for z with noise level sigma on the sub-path that starts at t: (n, c, h, w)."""
    epsilon = network(z, sigma, t, gamma)
    x0 = predicted_x0(z, epsilon, schedule.alpha(t), sigma)  # Eq. 14
    return consistency_output(z, x0, t)  # Eq. 16


def distance(a: Tensor, b: Tensor, kind: str, huber_c: float) -> Tensor:
    """d of Eq. 17 for each sample: (n, ...) to (n,).

    l2: mean squared error. huber: elementwise sqrt(d^2 + c^2) - c (LCM's). pseudo_huber: per sample
    sqrt(||d||^2 + c^2) - c with c = 0.00054 sqrt(dimensions) (Song & Dhariwal, 2023, arXiv:2310.14189).
    """
    error = (a - b).flatten(1)
    if kind == "l2":
        return error.square().mean(1)
    if kind == "huber":
        return ((error.square() + huber_c**2).sqrt() - huber_c).mean(1)
    if kind == "pseudo_huber":
        c = 0.00054 * error.shape[1] ** 0.5
        return (error.square().sum(1) + c**2).sqrt() - c
    raise ValueError(f"loss is {kind!r}: choose l2, huber or pseudo_huber")


@torch.no_grad()
def update_target(target: nn.Module, student: nn.Module, decay: float) -> None:
    """Alg. 1, last line, after the optimizer's step: theta- <- mu theta- + (1 - mu) theta, of what is trained."""
    pairs = zip(target.parameters(), student.parameters(), strict=True)
    averages, parameters = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
    torch._foreach_lerp_(averages, parameters, 1 - decay)  # all in one call: a loop is 1 % of a tiny training
