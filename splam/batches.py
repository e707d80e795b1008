"""Batches of sub-paths, and where the randomness of an iteration comes from.

A source has one method, `batch(iteration, share, shares)`: the global batch of an iteration is drawn as a whole and cut
into `shares` of training.batch_size samples, so that it does not depend on how many processes and micro-batches it is
spread over (splam.train numbers the shares: micro-batch x processes + rank).
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import torch
from torch import Tensor

from splam.loss import draw_gamma
from splam.models import Teacher
from splam.params import ResolvedRun
from splam.schedule import path_starts
from splam.solver import SubPaths, TrajectoryCache


def iteration_generator(seed: int, iteration: int, purpose: str = "") -> torch.Generator:
    """The source of all randomness of one iteration, so that a resumed run needs no saved RNG state.

    purpose: names a draw that must leave all others as they are.
    """
    digest = hashlib.sha256(f"{seed}/{iteration}{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def batch_rows(iteration: int, batch: int, pool: int, seed: int) -> Tensor:
    """Rows of a pool for one global batch: without replacement until the pool is used up, then reshuffled."""
    positions = torch.arange(iteration * batch, (iteration + 1) * batch)
    epochs = positions // pool
    order = {int(e): torch.randperm(pool, generator=iteration_generator(seed, -1 - int(e))) for e in epochs.unique()}
    return torch.stack([order[int(e)][p % pool] for e, p in zip(epochs, positions, strict=True)])


@dataclasses.dataclass(frozen=True)
class Batch:
    """One share of a global batch: n paths, caption embeddings, gamma (n m,), m of each path, and w (n,) for LCM*."""

    paths: SubPaths
    captions: Tensor
    gamma: Tensor
    guidance_scale: Tensor | None

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        paths = SubPaths(**{name: value.to(device) for name, value in vars(self.paths).items()})
        scales = None if self.guidance_scale is None else self.guidance_scale.to(device)
        return Batch(paths, self.captions.to(device), self.gamma.to(device), scales)


class Source(Protocol):
    """Where training gets its batches."""

    def batch(self, iteration: int, share: int, shares: int) -> Batch:
        """Share number `share` of the `shares` that the global batch of an iteration is cut into."""


def draw_conditions(resolved: ResolvedRun, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """gamma (count, m) and LCM*'s w (count,) of a global batch; m: training.gammas_per_path."""
    training = resolved.training
    gamma = torch.ones(count, 1)  # LCM: Alg. 1 with gamma = 1
    if resolved.run.method == "splam":
        points = count * training.gammas_per_path
        gamma = draw_gamma(points, training.gamma_one_probability, generator, training.gamma_law).view(count, -1)
    low, high = training.lcm_star_scales
    return gamma, low + (high - low) * torch.rand(count, generator=generator)


def skip_at(iteration: int, resolved: ResolvedRun, solver_skip: int) -> int:
    """k of one iteration: the run's (the paper's), or by training.skip_law one of the multiples of k_phi up to it.

    random: all are equally likely, one for the whole batch. annealed: from k down to k_phi, each for an equal share of
    the iterations: long paths first, along which the image's end reaches z_T in few steps, then short ones, which are
    nearly straight (improved CT's curriculum goes the same way: Song & Dhariwal, 2023, arXiv:2310.14189).
    """
    training, steps = resolved.training, resolved.run.skip // solver_skip
    if training.skip_law == "fixed":
        return resolved.run.skip
    if training.skip_law == "annealed":
        return solver_skip * (steps - steps * iteration // training.iterations)
    generator = iteration_generator(resolved.seed, iteration, "skip")
    return solver_skip * int(torch.randint(1, steps + 1, (), generator=generator))


class CachedPaths:
    """Batches from a TrajectoryCache: the same draws for every run that shares a seed and a batch size."""

    def __init__(self, cache: TrajectoryCache, resolved: ResolvedRun, teacher: Teacher):
        self.cache, self.resolved, self.teacher = cache, resolved, teacher
        starts = path_starts(resolved.run.skip, resolved.training.short_ends, teacher.schedule.length)
        self.pool = torch.isin(cache.t, starts).nonzero().flatten()
        if not len(self.pool):
            raise ValueError(f"{resolved.name}: no cached draw starts at a time that short_ends = 'strict' allows")

    def batch(self, iteration: int, share: int, shares: int) -> Batch:
        """One share of the batch of one iteration, on the teacher's device."""
        run, training = self.resolved.run, self.resolved.training
        count = training.batch_size * shares
        rows = self.pool[batch_rows(iteration, count, len(self.pool), self.resolved.seed)]
        gamma, scales = draw_conditions(self.resolved, count, iteration_generator(self.resolved.seed, iteration))
        mine = slice(share * training.batch_size, (share + 1) * training.batch_size)
        rows, gamma, scales = rows[mine], gamma[mine].flatten(), scales[mine]
        star, solver_skip = run.method == "lcm_star", int(self.cache.solver_skip)
        skip = skip_at(iteration, self.resolved, solver_skip)
        if run.multiple_estimation and skip > solver_skip:
            paths = self.cache.multiple_steps(rows, skip, training.solver_order)
        else:
            w = scales if star else run.guidance_scale
            paths = self.cache.one_step(rows, skip, w, self.teacher.schedule)
        captions = self.cache.embeddings[paths.caption].float()
        return Batch(paths, captions, gamma, scales if star else None).to(self.teacher.device)
