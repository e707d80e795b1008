"""Sub-paths made on the fly: images or latents from a stream, noised, and solved by the teacher.

At Stable Diffusion's size a cache of millions of trajectories would be larger than the images.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from splam.config import Run, Trajectories
from splam.data.streams import Stream, iteration_generator
from splam.distill.paths import Batch, draw_conditions
from splam.method.sampling import draw_noise, generators
from splam.method.schedule import path_starts
from splam.method.solver import solver_steps, sub_path
from splam.networks.teacher import Teacher


class OnlinePaths:
    """Batches whose images come from a stream and whose paths from the teacher (Alg. 1, lines 1-6).

    A batch of the stream holds training.batch_size samples for this process. All else is drawn for the global batch as
    a whole, noise with one seed per sample, so the number of processes and micro-batches does not matter.
    """

    def __init__(self, stream: Stream, run: Run, teacher: Teacher, settings: Trajectories):
        """settings: k_phi and the share of empty captions. Raises ValueError if k is no multiple of k_phi."""
        self.stream, self.run, self.teacher = stream, run, teacher
        self.empty_captions = settings.empty_captions
        several = run.multiple_estimation and run.skip > settings.solver_skip
        self.solver_skip = settings.solver_skip if several else run.skip
        solver_steps(run.skip, self.solver_skip)  # raises here, not in the first iteration
        self.starts = path_starts(run.skip, run.training.short_ends, teacher.schedule.length)
        self._open: Iterator[tuple[Tensor, list[str] | Tensor]] = iter(())
        self._position = -1

    def batch(self, iteration: int, share: int, shares: int) -> Batch:
        """One share of the batch of one iteration, on the teacher's device."""
        run, schedule, size, device = self.run, self.teacher.schedule, self.run.training.batch_size, self.teacher.device
        count, mine = size * shares, slice(share * size, (share + 1) * size)
        generator = iteration_generator(run.seed, iteration)
        gamma, scales = draw_conditions(run, count, generator)
        t = self.starts[torch.randint(len(self.starts), (count,), generator=generator)]
        dropped = torch.rand(count, generator=generator) < self.empty_captions
        sources = generators(torch.randint(2**62, (count,), generator=generator)[mine].tolist())
        gamma, scales, t = (value[mine].to(device) for value in (gamma, scales, t))
        latents, captions = self._sample(self._next(iteration, share, shares), sources, dropped[mine])
        z_t = schedule.add_noise(latents, draw_noise(sources, latents.shape[1:], device), t)
        guided = self.teacher.guided(captions, scales.view(-1, 1, 1, 1))
        path = sub_path(guided, z_t, t, run.skip, self.solver_skip, schedule)
        return Batch(path, captions, gamma, scales)

    def _sample(
        self, data: tuple[Tensor, list[str] | Tensor], sources: list[torch.Generator], dropped: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Latents and caption embeddings of the stream's data; where `dropped`, the empty caption's."""
        (images, captions), teacher = data, self.teacher
        if isinstance(captions, Tensor):
            latents, embeddings = (value.to(teacher.device).float() for value in data)
            embeddings = torch.where(dropped.to(teacher.device).view(-1, 1, 1), teacher.empty, embeddings)
        else:
            kept = ["" if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)]
            embeddings, (latents, std) = teacher.embed(kept), teacher.encode_distribution(images)
            if self.run.training.latents == "sample":
                latents = latents + std * draw_noise(sources, latents.shape[1:], latents.device)
        if latents.shape[1:] != teacher.latent_shape:
            found, wanted = tuple(latents.shape[1:]), teacher.latent_shape
            raise ValueError(f"the data's latents are {found}, the teacher's {wanted}: set data.resolution to its size")
        return latents, embeddings

    def _next(self, iteration: int, share: int, shares: int) -> tuple[Tensor, list[str] | Tensor]:
        """The share's images and captions; the stream is reopened unless this call follows the last one."""
        micro_batches = self.run.training.gradient_accumulation_steps
        position = iteration * micro_batches + share // (shares // micro_batches)
        if position != self._position:
            self._open = self.stream.batches(position)
        self._position = position + 1
        return next(self._open)
