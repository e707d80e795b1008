"""Batches of sub-paths, and the cache of teacher trajectories that they are taken from.

The global batch of an iteration is drawn as a whole, then cut into `shares` of training.batch_size samples: it is the
same for any number of processes and micro-batches. Share number: micro-batch x processes + rank.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from splam.config import Run
from splam.data.images import built
from splam.data.streams import batch_rows, iteration_generator
from splam.method.loss import draw_gamma
from splam.method.schedule import Schedule, path_end, path_starts
from splam.method.solver import ddim_step, guided_epsilon, solver_steps
from splam.method.subpath import SubPath
from splam.networks.teacher import Teacher


@dataclass(frozen=True)
class Batch:
    """One share of a global batch: n sub-paths, embeddings (n, tokens, d), gamma (n,) and w (n,), which LCM* is fed."""

    path: SubPath
    captions: Tensor
    gamma: Tensor
    guidance_scale: Tensor


def draw_conditions(run: Run, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """gamma and w of a global batch, each (count,). Alg. 1, line 7."""
    training, (low, high) = run.training, run.training.lcm_star_scales
    gamma = torch.ones(count)  # LCM is Alg. 1 with gamma = 1
    if run.method == "splam":
        gamma = draw_gamma(count, training.gamma_one_probability, generator, training.gamma_law)
    drawn = low + (high - low) * torch.rand(count, generator=generator)
    return gamma, drawn if run.method == "lcm_star" else torch.full((count,), run.guidance_scale)


@dataclass(frozen=True)
class TrajectoryCache:
    """Teacher trajectories at one guidance scale, shared by all runs that are compared on it.

    chain: (n, steps + 1, c, h, w), guided DDIM points at t, t - k_phi, ...; t: (n,); conditional and unconditional:
    epsilon of the first step, (n, c, h, w), from which a one-step path follows for any w and k; caption: (n,) rows of
    embeddings (m, tokens, d).
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
        save_file({name: value.contiguous() for name, value in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved cache. Raises FileNotFoundError."""
        return cls(**load_file(built(path, "trajectories")))

    def one_step(self, rows: Tensor, skip: int, guidance_scale: float | Tensor, schedule: Schedule) -> SubPath:
        """Paths of any k in one DDIM step (no multiple estimation); guidance_scale: any w, or one per path, (n,)."""
        w, z_t, t = torch.as_tensor(guidance_scale).view(-1, 1, 1, 1), self.chain[rows, 0], self.t[rows]
        epsilon, s = guided_epsilon(self.conditional[rows], self.unconditional[rows], w), path_end(t, skip)
        return SubPath(z_t, t, ddim_step(z_t, epsilon, t, s, schedule), s)

    def multiple_steps(self, rows: Tensor, skip: int) -> SubPath:
        """Paths of skip k by multiple estimation: k / k_phi steps along the chain (Eq. 18)."""
        steps, t = solver_steps(skip, int(self.solver_skip)), self.t[rows]
        return SubPath(self.chain[rows, 0], t, self.chain[rows, steps], path_end(t, skip))


class CachedPaths:
    """Batches from a TrajectoryCache: the same draws for all runs with the same seed and global batch."""

    def __init__(self, cache: TrajectoryCache, run: Run, teacher: Teacher):
        self.cache, self.run, self.teacher = cache, run, teacher
        starts = path_starts(run.skip, run.training.short_ends, teacher.schedule.length)
        self.pool = torch.isin(cache.t, starts).nonzero().flatten()

    def batch(self, iteration: int, share: int, shares: int) -> Batch:
        """One share of the batch of one iteration, on the teacher's device."""
        run, cache, size = self.run, self.cache, self.run.training.batch_size
        rows = self.pool[batch_rows(iteration, size * shares, len(self.pool), run.seed)]
        gamma, scales = draw_conditions(run, size * shares, iteration_generator(run.seed, iteration))
        rows, gamma, scales = (value[share * size : (share + 1) * size] for value in (rows, gamma, scales))
        if run.multiple_estimation and run.skip > int(cache.solver_skip):
            path = cache.multiple_steps(rows, run.skip)
        else:
            path = cache.one_step(rows, run.skip, scales, self.teacher.schedule)
        conditions = cache.embeddings[cache.caption[rows]].float(), gamma, scales
        device = self.teacher.device
        path = SubPath(*(value.to(device) for value in vars(path).values()))
        return Batch(path, *(value.to(device) for value in conditions))


def digest(*paths: Path) -> str:
    """16 hexadecimal digits that identify files, or all files of folders, by name and content."""
    whole = hashlib.sha256()
    for file in sorted(file for path in paths for file in [path, *path.rglob("*")] if file.is_file()):
        with file.open("rb") as content:
            whole.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()[:16]
