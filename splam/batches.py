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


def iteration_generator(seed: int, iteration: int) -> torch.Generator:
    """The source of all randomness of one iteration, so that a resumed run needs no saved RNG state."""
    digest = hashlib.sha256(f"{seed}/{iteration}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def batch_rows(iteration: int, batch: int, pool: int, seed: int) -> Tensor:
    """Rows of a pool for one global batch: without replacement until the pool is used up, then reshuffled."""
    positions = torch.arange(iteration * batch, (iteration + 1) * batch)
    epochs = positions // pool
    order = {int(e): torch.randperm(pool, generator=iteration_generator(seed, -1 - int(e))) for e in epochs.unique()}
    return torch.stack([order[int(e)][p % pool] for e, p in zip(epochs, positions, strict=True)])


@dataclasses.dataclass(frozen=True)
class Batch:
    """One share of a global batch: paths, caption embeddings, gamma (n,), and w (n,) for LCM*."""

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
    """gamma (count,) and LCM*'s w (count,) of a global batch."""
    training = resolved.training
    gamma = torch.ones(count)  # LCM: Alg. 1 with gamma = 1
    if resolved.run.method == "splam":
        gamma = draw_gamma(count, training.gamma_one_probability, generator)
    low, high = training.lcm_star_scales
    return gamma, low + (high - low) * torch.rand(count, generator=generator)


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
        rows, gamma, scales = rows[mine], gamma[mine], scales[mine]
        star = run.method == "lcm_star"
        if run.multiple_estimation and run.skip > int(self.cache.solver_skip):
            paths = self.cache.multiple_steps(rows, run.skip)
        else:
            w = scales if star else run.guidance_scale
            paths = self.cache.one_step(rows, run.skip, w, self.teacher.schedule)
        captions = self.cache.embeddings[paths.caption].float()
        return Batch(paths, captions, gamma, scales if star else None).to(self.teacher.device)
