"""Which term of Eq. 15 is hard: the errors of a student's dist_Delta and dist_0, apart, along t and gamma.

Eq. 15 asks sigma(gamma, t) epsilon(z_gamma, gamma, t) to be gamma dist_Delta + dist_0. At gamma = 0 dist_0 is all that
is asked for; from there to gamma what is asked for grows by gamma dist_Delta. So the residual at gamma is the sum of

    error_0     = dist_0 - sigma(0, t) epsilon(z_0, 0, t)
    error_Delta = gamma dist_Delta - [sigma(gamma, t) epsilon(z_gamma, gamma, t) - sigma(0, t) epsilon(z_0, 0, t)]

All are in the units of z. Over alpha(t) the residual is f(z_gamma, gamma, t) - f(z_s, 1, s), the loss's own (Eq. 17).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from splam.data.testsets import held_out_set
from splam.evaluate import describe, native_size
from splam.loss import Network, Objective, sub_path_epsilon
from splam.models import Teacher, load_student, objective_of, student_network, to_pixels
from splam.params import Params, resolve
from splam.schedule import path_end
from splam.solver import Epsilon, SubPaths, guided_epsilon, multiple_estimation
from splam.subpath import dist_delta, dist_zero, sub_path_point, sub_path_sigma
from splam.trajectories import epsilons

TERMS = ("dist_delta", "dist_zero", "error_delta", "error_zero", "error")


@dataclass(frozen=True)
class HeldOutLatents:
    """What sub-paths start from: clean latents and noise (n, c, h, w), caption embeddings (n, tokens, d)."""

    latents: Tensor
    noise: Tensor
    captions: Tensor


def draw_latents(params: Params, teacher: Teacher, data: Path, images: int) -> HeldOutLatents:
    """The first unseen images of a profile, encoded, each with its caption and one noise."""
    held_out = held_out_set(params.data, data, "unseen", images)
    latents = torch.cat([teacher.encode(to_pixels(batch)) for batch in held_out.real(native_size(teacher))])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(params.seed)).to(latents)
    return HeldOutLatents(latents, noise, teacher.embed(held_out.prompts))


def paths_from(
    epsilon: Epsilon, latents: Tensor, noise: Tensor, time: int, skip: int, solver_skip: int, objective: Objective
) -> SubPaths:
    """Sub-paths of k = skip that start at `time`, forward noised, their ends found by the teacher (Alg. 1, to line 8).

    solver_skip: k_phi; equal to skip without multiple estimation.
    """
    schedule = objective.schedule
    t = torch.full((len(latents),), time, device=latents.device)
    z_t = schedule.alpha(t) * latents + schedule.sigma(t) * noise
    z_s = multiple_estimation(epsilon, z_t, t, skip, solver_skip, schedule)
    return SubPaths(z_t, t, z_s, path_end(t, skip), torch.arange(len(latents)))


@torch.no_grad()
def path_terms(student: Network, paths: SubPaths, gammas: list[float], objective: Objective) -> dict[float, Tensor]:
    """For each gamma the terms of Eq. 15 and their errors, in the order of TERMS: (5, n, c, h, w).

    student: as it is trained, called at gamma < 1 too; dist_0 is its own at the path's end (gamma = 1), as in Eq. 17.
    """
    schedule, t, s = objective.schedule, paths.t, paths.s
    alpha_t, sigma_t, sigma_s, ratio = schedule.alpha(t), schedule.sigma(t), schedule.sigma(s), schedule.ratio(t, s)

    def produced(gamma: float) -> Tensor:
        """sigma(gamma, t) epsilon(z_gamma, gamma, t)."""
        g = torch.full_like(paths.z_t[:, :1, :1, :1], gamma)
        sigma = sub_path_sigma(g, ratio, sigma_t, sigma_s, objective.sigma_form)
        z = sub_path_point(paths.z_t, paths.z_s, ratio, g)  # Eq. 12
        return sigma * sub_path_epsilon(student, z, t, g.flatten(), alpha_t, sigma, objective)

    one = torch.ones_like(paths.z_s[:, 0, 0, 0])
    epsilon_s = sub_path_epsilon(student, paths.z_s, s, one, schedule.alpha(s), sigma_s, objective)
    delta, zero, start = dist_delta(paths.z_t, paths.z_s, ratio), dist_zero(epsilon_s, ratio, sigma_s), produced(0.0)
    terms = {}
    for gamma in gammas:
        error = gamma * delta + zero - (start if gamma == 0 else produced(gamma))  # Eq. 15
        error_zero = zero - start
        terms[gamma] = torch.stack([gamma * delta, zero, error - error_zero, error_zero, error])
    return terms


def path_errors(
    terms: Callable[[Tensor, int], dict[float, Tensor]], times: list[int], count: int, batch_size: int
) -> list[dict]:
    """Means over `count` images, with standard errors, of the root mean squares of path_terms: a row for each t, gamma.

    terms(rows, t): path_terms of the images in rows, for paths that start at t.
    """
    found = []
    for time in tqdm(times, desc="sub-paths", mininterval=5, leave=False):
        batches = [terms(rows, time) for rows in torch.arange(count).split(batch_size)]
        for gamma in batches[0]:
            size = torch.cat([b[gamma].double().flatten(2).square().mean(2).sqrt() for b in batches], 1)
            mean, error = size.mean(1).tolist(), (size.std(1) / count**0.5).tolist()
            columns = zip(TERMS, mean, error, strict=True)
            row = {key: value for name, m, e in columns for key, value in ((name, m), (f"{name}_se", e))}
            found.append({"t": time, "gamma": gamma, "images": count, **row})
    return found


def run_errors(
    params: Params, name: str, teacher: Teacher, runs: Path, held: HeldOutLatents, times: list[int], gammas: list[float]
) -> list[dict]:
    """path_errors of one finished run, at its own w, k and k_phi, with alpha(t) and what the run is.

    runs: the folder of finished runs. Raises FileNotFoundError where this one is not there.
    """
    resolved = resolve(params, name)
    run, training = resolved.run, resolved.training
    unet, objective = load_student(runs / name, teacher.unet, run, training), objective_of(teacher, run, training)
    solver_skip = params.trajectories.solver_skip if run.multiple_estimation else run.skip
    empty, w = teacher.embed([""]), run.guidance_scale

    def terms(rows: Tensor, time: int) -> dict[float, Tensor]:
        captions, scales = held.captions[rows], torch.full((len(rows),), w)
        student = student_network(unet, captions, run, training, scales, teacher.autocast, teacher.added)

        def epsilon(z: Tensor, t: Tensor) -> Tensor:
            return guided_epsilon(*epsilons(teacher, z, t, captions, empty), w)

        start = held.latents[rows], held.noise[rows], time
        paths = paths_from(epsilon, *start, run.skip, solver_skip, objective)
        return path_terms(student, paths, gammas, objective)

    rows = path_errors(terms, times, len(held.latents), params.delta.batch_size)
    alphas = teacher.schedule.alphas
    return [{**describe(resolved), "alpha_t": float(alphas[row["t"]]), **row} for row in rows]
