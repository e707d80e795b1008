"""Batches of sub-paths: from a cache of teacher trajectories, or made on the fly from images or latents.

The global batch of an iteration is drawn as a whole, then cut into `shares` of training.batch_size samples: it is the
same for any number of processes and micro-batches. Share number: micro-batch x processes + rank.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from splam.config import Run, Trajectories
from splam.data.images import built
from splam.data.streams import Samples, Stream, batch_rows, iteration_generator
from splam.method.loss import draw_gamma
from splam.method.sampling import draw_noise, generators
from splam.method.schedule import path_end, path_starts
from splam.method.solver import ddim_step, guided_epsilon, solver_steps, sub_path
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

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved cache. Raises FileNotFoundError."""
        return cls(**load_file(built(path, "trajectories")))


class CachedPaths:
    """Batches from a TrajectoryCache: the same draws for all runs with the same seed and global batch."""

    def __init__(self, cache: TrajectoryCache, run: Run, teacher: Teacher):
        self.cache, self.run, self.teacher = cache, run, teacher
        starts = path_starts(run.skip, run.training.short_ends, teacher.schedule.length)
        self.pool = torch.isin(cache.t, starts).nonzero().flatten()

    def batch(self, iteration: int, share: int, shares: int) -> Batch:
        """One share of the batch of one iteration, on the teacher's device."""
        run, cache, size, device = self.run, self.cache, self.run.training.batch_size, self.teacher.device
        rows = self.pool[batch_rows(iteration * shares + share, size, len(self.pool), run.seed)]
        drawn = draw_conditions(run, size * shares, iteration_generator(run.seed, iteration))
        gamma, scales = (value[share * size : (share + 1) * size] for value in drawn)
        path, captions = self._path(rows, scales), cache.embeddings[cache.caption[rows]].float()
        path = SubPath(*(value.to(device) for value in vars(path).values()))
        return Batch(path, *(value.to(device) for value in (captions, gamma, scales)))

    def _path(self, rows: Tensor, scales: Tensor) -> SubPath:
        """The chain's k / k_phi steps of the run's w (Eq. 18), or without multiple estimation one of any w and k."""
        run, cache = self.run, self.cache
        z_t, t, solver_skip = cache.chain[rows, 0], cache.t[rows], int(cache.solver_skip)
        s = path_end(t, run.skip)
        if run.multiple_estimation and run.skip > solver_skip:
            return SubPath(z_t, t, cache.chain[rows, solver_steps(run.skip, solver_skip)], s)
        epsilon = guided_epsilon(cache.conditional[rows], cache.unconditional[rows], scales.view(-1, 1, 1, 1))
        return SubPath(z_t, t, ddim_step(z_t, epsilon, t, s, self.teacher.schedule), s)


class OnlinePaths:
    """Batches whose images come from a stream, are noised, and are solved by the teacher (Alg. 1, lines 1-6).

    At Stable Diffusion's size a cache of millions of trajectories would be larger than the images.

    A batch of the stream is a share: training.batch_size samples. All else is drawn for the global batch as a whole,
    noise with one seed per sample, so the number of processes and micro-batches does not matter.
    """

    def __init__(self, stream: Stream, run: Run, teacher: Teacher, settings: Trajectories):
        """settings: k_phi and the share of empty captions."""
        self.stream, self.run, self.teacher, self.settings = stream, run, teacher, settings
        self.solver_skip = settings.solver_skip if run.multiple_estimation else run.skip
        self.starts = path_starts(run.skip, run.training.short_ends, teacher.schedule.length)
        self._open: Iterator[Samples] = iter(())
        self._due = -1

    def batch(self, iteration: int, share: int, shares: int) -> Batch:
        """One share of the batch of one iteration, on the teacher's device."""
        run, schedule, size, device = self.run, self.teacher.schedule, self.run.training.batch_size, self.teacher.device
        count, mine = size * shares, slice(share * size, (share + 1) * size)
        generator = iteration_generator(run.seed, iteration)
        gamma, scales = draw_conditions(run, count, generator)
        t = self.starts[torch.randint(len(self.starts), (count,), generator=generator)]
        dropped = torch.rand(count, generator=generator) < self.settings.empty_captions
        sources = generators(torch.randint(2**62, (count,), generator=generator)[mine].tolist())
        gamma, scales, t, dropped = (value[mine].to(device) for value in (gamma, scales, t, dropped))
        latents, captions = self._sample(self._next(iteration, share, shares), sources, dropped)
        z_t = schedule.add_noise(latents, draw_noise(sources, latents.shape[1:], device), t)
        guided = self.teacher.guided(captions, scales.view(-1, 1, 1, 1))
        path = sub_path(guided, z_t, t, run.skip, self.solver_skip, schedule)
        return Batch(path, captions, gamma, scales)

    def _sample(self, data: Samples, sources: list[torch.Generator], dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and caption embeddings of the stream's data; where `dropped`, the empty caption's."""
        (images, captions), teacher = data, self.teacher
        if isinstance(captions, Tensor):
            latents, embeddings = (value.to(teacher.device) for value in data)
        else:
            latents, embeddings = teacher.encode(images, sources), teacher.embed(captions)
        embeddings = torch.where(dropped.view(-1, 1, 1), teacher.empty, embeddings)
        if latents.shape[1:] != teacher.latent_shape:
            found, wanted = tuple(latents.shape[1:]), teacher.latent_shape
            raise ValueError(f"the data's latents are {found}, the teacher's {wanted}: set data.resolution to its size")
        return latents, embeddings

    def _next(self, iteration: int, share: int, shares: int) -> Samples:
        """The share's images and captions; the stream is reopened unless this call follows the last one."""
        number = iteration * shares + share
        processes = shares // self.run.training.gradient_accumulation_steps
        if number != self._due:
            self._open = self.stream.batches(number, processes)
        self._due = number + processes
        return next(self._open)


def digest(*paths: Path) -> str:
    """16 hexadecimal digits that identify files, or all files of folders, by name and content."""
    whole = hashlib.sha256()
    for file in sorted(file for path in paths for file in [path, *path.rglob("*")] if file.is_file()):
        with file.open("rb") as content:
            whole.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()[:16]
