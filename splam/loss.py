"""One training step of SPLAM and of LCM: Algorithm 1, over callables.

A network maps (z (n, c, h, w), time (n,), gamma (n,)) to its raw output (n, c, h, w); what else it is
conditioned on is bound by the caller. LCM (fix w) is the same step with gamma = 1 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from splam.schedule import Schedule, to_epsilon
from splam.solver import SubPaths
from splam.subpath import consistency_output, equal_snr_time, predicted_x0, sub_path_point, sub_path_sigma

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """What the loss is, apart from the data: the choices that method.md leaves open are fields."""

    schedule: Schedule
    prediction_type: str = "epsilon"
    sigma_form: str = "linear"
    input_scaling: str = "raw"
    gamma_conditioning: str = "embedding"
    distance: str = "huber"
    huber_c: float = 1e-3


def draw_gamma(count: int, one_probability: float, generator: torch.Generator) -> Tensor:
    """gamma ~ U[0, 1], replaced by 1 with the given probability: (count,)."""
    gamma = torch.rand(count, generator=generator)
    one = torch.rand(count, generator=generator) < one_probability
    return torch.where(one, 1.0, gamma)


def sub_path_epsilon(
    network: Network, z: Tensor, t: Tensor, gamma: Tensor, alpha_t: Tensor, sigma: Tensor, objective: Objective
) -> Tensor:
    """epsilon(z, c, gamma, t) of Eq. 14 for a point of noise level sigma on the sub-path that starts at t.

    unit_variance feeds the network z / sqrt(alpha_t^2 + sigma^2), z itself is kept; equal_snr_time also gives
    it the time of that signal-to-noise ratio. At gamma = 1 both leave everything as it is.
    """
    scale = torch.ones_like(sigma)
    if objective.input_scaling == "unit_variance":
        scale = (alpha_t**2 + sigma**2).rsqrt()
    time = t
    if objective.gamma_conditioning == "equal_snr_time":
        time = equal_snr_time(alpha_t, sigma, objective.schedule)
    output = network(z * scale, time, gamma)
    return to_epsilon(output, z * scale, alpha_t * scale, sigma * scale, objective.prediction_type)


def consistency_function(
    network: Network, z: Tensor, t: Tensor, gamma: Tensor, alpha_t: Tensor, sigma: Tensor, objective: Objective
) -> Tensor:
    """F(z, c, gamma, t) of Eq. 16 for a point of noise level sigma on the sub-path that starts at t."""
    epsilon = sub_path_epsilon(network, z, t, gamma, alpha_t, sigma, objective)
    return consistency_output(z, predicted_x0(z, epsilon, alpha_t, sigma), t)  # Eq. 14, Eq. 16


def published_function(network: Network, objective: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    """F(z, c, 1, t) of Eq. 19, as sampling and delta(t, k) call it: (z, t) to clean latents."""
    schedule = objective.schedule

    def consistency(z: Tensor, t: Tensor) -> Tensor:
        gamma = torch.ones(len(z), device=z.device)
        return consistency_function(network, z, t, gamma, schedule.alpha(t), schedule.sigma(t), objective)

    return consistency


def distillation_outputs(
    student: Network, target: Network, paths: SubPaths, gamma: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """The two sides of Eq. 17: F_theta on the sub-path, and F_theta- at its end (no gradient)."""
    schedule = objective.schedule
    alpha_t, sigma_t, sigma_s = schedule.alpha(paths.t), schedule.sigma(paths.t), schedule.sigma(paths.s)
    ratio = schedule.ratio(paths.t, paths.s)
    g = gamma.to(paths.z_t).view(-1, 1, 1, 1)
    z = sub_path_point(paths.z_t, paths.z_s, ratio, g)  # Eq. 12
    sigma = sub_path_sigma(g, ratio, sigma_t, sigma_s, objective.sigma_form)
    prediction = consistency_function(student, z, paths.t, gamma, alpha_t, sigma, objective)  # Alg. 1: F_theta
    with torch.no_grad():  # the algorithm prints F_theta here; Eq. 17 is right
        reference = published_function(target, objective)(paths.z_s, paths.s)
    return prediction, reference


def distillation_loss(
    student: Network, target: Network, paths: SubPaths, gamma: Tensor, objective: Objective
) -> Tensor:
    """Eq. 17: the distance of the two sides, averaged over the batch."""
    prediction, reference = distillation_outputs(student, target, paths, gamma, objective)
    return distance(prediction, reference, objective.distance, objective.huber_c)


def distance(a: Tensor, b: Tensor, kind: str, huber_c: float) -> Tensor:
    """d of Eq. 17.

    l2: mean squared error. huber: elementwise sqrt(d^2 + c^2) - c (LCM's). pseudo_huber: per sample
    sqrt(||d||^2 + c^2) - c with c = 0.00054 sqrt(dimensions) (Song & Dhariwal, 2023, arXiv:2310.14189).
    """
    error = a - b
    if kind == "l2":
        return error.square().mean()
    if kind == "huber":
        return ((error.square() + huber_c**2).sqrt() - huber_c).mean()
    if kind == "pseudo_huber":
        squared = error.flatten(1).square().sum(1)
        c = 0.00054 * error[0].numel() ** 0.5
        return ((squared + c**2).sqrt() - c).mean()
    raise ValueError(f"loss is {kind!r}: choose l2, huber or pseudo_huber")
