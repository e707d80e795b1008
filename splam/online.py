"""Sub-paths made as they are needed: images or latents from a stream, noised and carried along by the teacher.

At Stable Diffusion's size a trajectory cache of millions of images would be larger than the images. A stream has one
method, `batches(start)`: an endless iterator over (pixels (n, 3, H, W) float32 in [-1, 1], n captions), or over
(scaled latents (n, c, h, w), caption embeddings (n, tokens, d)), from batch number `start` on, the same whenever asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from splam.batches import Batch, batch_rows, draw_conditions, iteration_generator, skip_at
from splam.data import emoji
from splam.models import Teacher, to_pixels
from splam.params import EmojiData, LaionData, Params, ResolvedRun, Trajectories
from splam.sampling import draw_noise, generators
from splam.schedule import path_end, path_starts
from splam.solver import SubPaths, check_skips, guided_epsilon, multiple_estimation
from splam.trajectories import epsilons


class Stream(Protocol):
    """A deterministic line of batches that can be entered anywhere."""

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, list[str] | Tensor]]:
        """Batches from number `start` on, without end: this process's share, or the whole of all processes'."""


class OnlinePaths:
    """Batches whose images come from a stream and whose paths from the teacher, step by step (Alg. 1, to line 8).

    A batch of the stream is training.batch_size samples for this process, or as many times the number of processes,
    of which this one takes its part. Everything random is drawn for the whole global batch, the noise by a seed for
    each sample, so that neither processes nor micro-batches change it.
    """

    def __init__(self, stream: Stream, resolved: ResolvedRun, teacher: Teacher, settings: Trajectories):
        """settings: k_phi and the share of empty captions. Raises ValueError where k is no multiple of k_phi."""
        run = resolved.run
        self.stream, self.resolved, self.teacher = stream, resolved, teacher
        self.empty_captions = settings.empty_captions
        self.solver_skip = settings.solver_skip
        self.several = run.multiple_estimation and run.skip > settings.solver_skip
        if self.several:
            check_skips(run.skip, self.solver_skip)
        self.starts = path_starts(run.skip, resolved.training.short_ends, teacher.schedule.length)
        if not len(self.starts):
            raise ValueError(f"{resolved.name}: no grid time is a start that short_ends = 'strict' allows")
        self.empty = teacher.embed([""])
        self._open: Iterator[tuple[Tensor, list[str] | Tensor]] = iter(())
        self._position = -1

    def batch(self, iteration: int, share: int, shares: int) -> Batch:
        """One share of the batch of one iteration, on the teacher's device."""
        run, training, schedule = self.resolved.run, self.resolved.training, self.teacher.schedule
        count, mine = (
            training.batch_size * shares,
            slice(share * training.batch_size, (share + 1) * training.batch_size),
        )
        generator = iteration_generator(self.resolved.seed, iteration)
        gamma, scales = draw_conditions(self.resolved, count, generator)
        t = self.starts[torch.randint(len(self.starts), (count,), generator=generator)]
        dropped = torch.rand(count, generator=generator) < self.empty_captions
        seeds = torch.randint(2**62, (count,), generator=generator)
        device = self.teacher.device
        gamma, scales, t = (value[mine].to(device) for value in (gamma, scales, t))
        skip = skip_at(iteration, self.resolved, self.solver_skip)
        latents, captions, sources = self._sample(iteration, share, shares, seeds[mine].tolist(), dropped[mine])
        noise = draw_noise(sources, latents.shape[1:], device)
        z_t = schedule.alpha(t) * latents + schedule.sigma(t) * noise
        star = run.method == "lcm_star"
        z_s = self._carry(z_t, t, skip, captions, scales.view(-1, 1, 1, 1) if star else run.guidance_scale)
        paths = SubPaths(z_t, t, z_s, path_end(t, skip), torch.arange(len(t), device=device))
        return Batch(paths, captions, gamma.flatten(), scales if star else None)

    @torch.no_grad()
    def _carry(self, z_t: Tensor, t: Tensor, skip: int, captions: Tensor, guidance_scale: float | Tensor) -> Tensor:
        """z_s: the teacher's guided steps of k_phi from t to max(t - k, 0) (Eq. 18), or one without it."""

        def epsilon(z: Tensor, time: Tensor) -> Tensor:
            return guided_epsilon(*epsilons(self.teacher, z, time, captions, self.empty), guidance_scale)

        solver_skip, order = self.solver_skip if self.several else skip, self.resolved.training.solver_order
        return multiple_estimation(epsilon, z_t, t, skip, solver_skip, self.teacher.schedule, order)

    def _sample(
        self, iteration: int, share: int, shares: int, seeds: list[int], dropped: Tensor
    ) -> tuple[Tensor, Tensor, list[torch.Generator]]:
        """The share's latents and caption embeddings, some of the empty caption, and the samples' generators."""
        images, captions = self._next(iteration, share, shares)
        sources, device = generators(seeds), self.teacher.device
        if isinstance(captions, Tensor):
            embeddings, latents = captions.to(device).float(), images.to(device).float()
            embeddings = torch.where(dropped.to(device).view(-1, 1, 1), self.empty, embeddings)
        else:
            kept = ["" if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)]
            embeddings, latents = self.teacher.embed(kept), self._encode(images, sources)
        if latents.shape[1:] != self.teacher.latent_shape:
            raise ValueError(
                f"{self.resolved.name}: the data's latents are {tuple(latents.shape[1:])}, the teacher's "
                f"{self.teacher.latent_shape}: set data.resolution to the teacher's own size"
            )
        return latents, embeddings, sources

    def _encode(self, pixels: Tensor, sources: list[torch.Generator]) -> Tensor:
        """E(x) x scaling_factor, its mean or a sample of it."""
        mean, deviation = self.teacher.encode_distribution(pixels)
        if self.resolved.training.latents == "mean":
            return mean
        return mean + deviation * draw_noise(sources, mean.shape[1:], mean.device)

    def _next(self, iteration: int, share: int, shares: int) -> tuple[Tensor, list[str] | Tensor]:
        """The share's images and captions; the stream is entered anew wherever the last call was another's."""
        training = self.resolved.training
        micro, rank = divmod(share, shares // training.accumulation)
        position = iteration * training.accumulation + micro
        if position != self._position:
            self._open = self.stream.batches(position)
        self._position = position + 1
        try:
            images, captions = next(self._open)
        except StopIteration:
            raise RuntimeError(f"the stream ended before batch {position}: it must be endless") from None
        return self._own_part(images, captions, rank, shares // training.accumulation)

    def _own_part(
        self, images: Tensor, captions: list[str] | Tensor, rank: int, processes: int
    ) -> tuple[Tensor, list[str] | Tensor]:
        size = self.resolved.training.batch_size
        if len(images) == size:
            return images, captions
        if len(images) == size * processes:
            mine = slice(rank * size, (rank + 1) * size)
            return images[mine], captions[mine]
        raise ValueError(
            f"the stream gave {len(images)} samples: training.batch_size = {size} of each of {processes} processes "
            f"are {size} or {size * processes}"
        )


class EmojiStream:
    """The tiny world's training images as a stream: every image once, then in another order; captions of all levels."""

    def __init__(self, split: emoji.Split, batch_size: int, seed: int):
        """batch_size: of all processes together."""
        self.split, self.batch_size, self.seed = split, batch_size, seed

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
        """Batches from number `start` on, without end: pixels (n, 3, 32, 32), and n captions."""
        number = start
        while True:
            rows = batch_rows(number, self.batch_size, len(self.split), self.seed).numpy()
            part = emoji.Split(self.split.images[rows], self.split.glyph[rows], self.split.colour[rows])
            level = np.random.default_rng((self.seed, number)).integers(len(emoji.LEVELS), size=len(rows))
            yield to_pixels(part.images), part.captions(level)
            number += 1


class LatentStore(Protocol):
    """Latents and embeddings that were computed once (splam.data.latents.LatentShards)."""

    def __len__(self) -> int:
        """The number of images."""

    def rows(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scaled latents (n, c, h, w) and caption embeddings (n, tokens, d) of some images, in the order asked for."""


class LatentStream:
    """A store of latents as a stream: every image once, then in another order."""

    def __init__(self, store: LatentStore, batch_size: int, seed: int):
        """batch_size: of all processes together."""
        self.store, self.batch_size, self.seed = store, batch_size, seed

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from number `start` on, without end: latents (n, c, h, w), and embeddings (n, tokens, d)."""
        number = start
        while True:
            yield self.store.rows(batch_rows(number, self.batch_size, len(self.store), self.seed).tolist())
            number += 1


def open_stream(params: Params, resolved: ResolvedRun, data: Path, latents: Path, rank: int, ranks: int) -> Stream:
    """The stream that a run's training.source and the profile's data name, for one of `ranks` processes.

    data, latents: folders of the tiny world's images and of encode_shards' latents.
    """
    batch, seed = resolved.training.batch_size, resolved.seed
    if resolved.training.source == "latents":
        from splam.data.latents import LatentShards

        store = LatentShards(latents)
        len(store)  # opens all files: what is missing is told before anything is trained
        return LatentStream(store, batch * ranks, seed)
    return image_stream(params.data, data, batch, seed, rank, ranks)


def image_stream(
    settings: EmojiData | LaionData, data: Path, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
) -> Stream:
    """The training images of either kind of data; data: folder of the tiny world's."""
    if settings.kind == "emoji":
        return EmojiStream(emoji.Split.load(data / "train"), batch_size * ranks, seed)
    from splam.data.laion import LaionStream

    return LaionStream(settings, batch_size, seed, rank, ranks)
