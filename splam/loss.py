"""One training step of SPLAM and of LCM: Algorithm 1, over callables.

A network maps (z (n, c, h, w), time (n,), gamma (n,)) to its raw output (n, c, h, w); what else it is
conditioned on is bound by the caller. LCM (fix w) is the same step with gamma = 1 throughout.

Beyond the paper, each off by default: m points of one path (as many gammas as there are), gamma from a Beta law,
target_gap and loss_weight of the objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from splam.schedule import Schedule, ddim_grid, to_epsilon
from splam.solver import SubPaths
from splam.subpath import consistency_output, equal_snr_time, predicted_x0, sub_path_point, sub_path_sigma

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
SNR_LIMIT = 5.0  # min-SNR's (Hang et al., 2023)


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
    target_gap: float = 1.0
    loss_weight: str = "none"


def draw_gamma(
    count: int, one_probability: float, generator: torch.Generator, law: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """gamma ~ Beta(a, b), of which (1, 1) is U[0, 1], replaced by 1 with the given probability: (count,).

    One uniform number makes one gamma, by the inverse of Beta's distribution: equal seeds stay paired over laws.
    """
    gamma = torch.rand(count, generator=generator)
    if law != (1.0, 1.0):
        gamma = torch.from_numpy(betaincinv(*law, gamma.double().numpy())).float()
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


Point = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Where F is evaluated: z (n, c, h, w), t and gamma (n,), alpha(t) and the noise level sigma (n, 1, 1, 1)."""


def point_on(paths: SubPaths, gamma: Tensor, objective: Objective) -> Point:
    """z_{gamma,t} of each path, gamma (n,)."""
    schedule, t, s = objective.schedule, paths.t, paths.s
    ratio, g = schedule.ratio(t, s), gamma.to(paths.z_t).view(-1, 1, 1, 1)
    z = sub_path_point(paths.z_t, paths.z_s, ratio, g)  # Eq. 12
    sigma = sub_path_sigma(g, ratio, schedule.sigma(t), schedule.sigma(s), objective.sigma_form)
    return z, t, gamma, schedule.alpha(t), sigma


def target_point(paths: SubPaths, gamma: Tensor, objective: Objective) -> Point:
    """Where F_theta- is evaluated: at gamma - target_gap on the same path; at its end where that is not above 0.

    The end is z_s at time s with gamma = 1: the paper's target, for every gamma, at target_gap = 1. It must stay the
    last link: points of one path that were only asked to agree with each other would be content with any constant.
    """
    schedule, nearer = objective.schedule, gamma - objective.target_gap
    end = paths.z_s, paths.s, torch.ones_like(gamma), schedule.alpha(paths.s), schedule.sigma(paths.s)
    inside = point_on(paths, nearer.clamp(min=0), objective)
    choices = zip(inside, end, strict=True)
    return tuple(torch.where((nearer > 0).view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in choices)


def distillation_outputs(
    student: Network, target: Network, paths: SubPaths, gamma: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """The two sides of Eq. 17, each (n m, c, h, w): F_theta on the sub-path, and F_theta- at its end (no gradient).

    gamma: (n m,), m for each of the n paths, those of one path beside each other; the paper's m is 1. The networks are
    called with n m points, the target with n where its point is the same for all m.
    """
    points = paths.repeated(len(gamma) // len(paths.t))
    prediction = consistency_function(student, *point_on(points, gamma, objective), objective)  # Alg. 1: F_theta
    with torch.no_grad():  # the algorithm prints F_theta here; Eq. 17 is right
        if objective.target_gap < 1:
            reference = consistency_function(target, *target_point(points, gamma, objective), objective)
        else:
            reference = published_function(target, objective)(paths.z_s, paths.s)
    return prediction, reference.repeat_interleave(len(prediction) // len(reference), 0)


def distillation_loss(
    student: Network, target: Network, paths: SubPaths, gamma: Tensor, objective: Objective
) -> Tensor:
    """Eq. 17: the distance of the two sides, averaged over the batch."""
    prediction, reference = distillation_outputs(student, target, paths, gamma, objective)
    far = distance(prediction, reference, objective.distance, objective.huber_c)
    if objective.loss_weight == "none":
        return far.mean()
    weight = snr_weight(paths.t, objective.schedule, degree=2 if objective.distance == "l2" else 1)
    return (weight.repeat_interleave(len(far) // len(weight)) * far).mean()


def snr_weight(t: Tensor, schedule: Schedule, degree: int) -> Tensor:
    """min(alpha(t) / sigma(t), sqrt(5))^degree, (n,), over its mean on the DDIM grid. degree: of the distance d.

    F is read as a clean latent, in which an error of epsilon counts sigma / alpha times (at gamma = 1): 15 at t = 999,
    0.1 at t = 19. Unweighted, Eq. 17 is therefore mostly about the noisiest times. This weight makes it one of errors
    of epsilon wherever the signal-to-noise ratio is below 5, and leaves it one of errors of the latent above. It is
    min-SNR's for a network that predicts the latent (Hang et al., 2023, arXiv:2303.09556), where d is l2; huber and
    pseudo_huber grow as the error itself, hence its root. The mean of 1 keeps learning rates comparable.
    """

    def weight(times: Tensor) -> Tensor:
        ratio = (schedule.alpha(times) / schedule.sigma(times)).flatten()
        return ratio.clamp(max=SNR_LIMIT**0.5) ** degree

    return weight(t) / weight(ddim_grid(schedule.length).to(t.device)).mean()


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
