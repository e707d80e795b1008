"""What training needs from the teacher, whatever the student: trajectories, and latents encoded once."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from splam.config import Params, Trajectories
from splam.data import shapes
from splam.data.images import to_pixels
from splam.data.latents import open_folder, save_batch
from splam.data.pictures import SAMPLES
from splam.data.streams import Stream, preview, training_facts, training_images
from splam.distill.paths import TrajectoryCache, digest
from splam.method.sampling import generators
from splam.method.schedule import ddim_grid
from splam.method.solver import guided_epsilon, solver_chain
from splam.networks.teacher import Teacher

Draws = tuple[np.ndarray, list[str], Tensor]
"""The random part of a cache, the same for every w: images uint8 (n, h, w, 3), n captions, t (n,) on the DDIM grid."""


def make_draws(params: Params, data: Path, length: int) -> Draws:
    """(x, c) ~ D, some captions emptied, and t ~ the grid of `length` times; data: what the data stage wrote."""
    settings = params.trajectories
    generator = torch.Generator().manual_seed(params.seed)
    if params.data.kind == "shapes":
        images, captions = _shapes_samples(data, settings.draws, generator)
    else:
        images, captions = preview(params.data, data, settings.draws, params.seed)
    dropped = torch.rand(settings.draws, generator=generator) < settings.empty_captions
    kept = ["" if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)]
    grid = ddim_grid(length)
    return images, kept, grid[torch.randint(len(grid), (settings.draws,), generator=generator)]


def _shapes_samples(data: Path, count: int, generator: torch.Generator) -> tuple[np.ndarray, list[str]]:
    """Training images of the tiny world, none twice, each with a caption at a drawn level."""
    train = shapes.Split.load(data / "train.npy")
    if count > len(train):
        raise ValueError(f"trajectories.draws is {count}, the training split has {len(train)} images")
    drawn = train[torch.randperm(len(train), generator=generator)[:count].numpy()]
    levels = torch.multinomial(torch.tensor(shapes.LEVEL_SHARES), count, replacement=True, generator=generator)
    return drawn.images, drawn.captions(levels.numpy())


@torch.no_grad()
def solve(
    teacher: Teacher, z_t: Tensor, t: Tensor, captions: Tensor, guidance: tuple[float, Trajectories]
) -> tuple[Tensor, Tensor, Tensor]:
    """The chain (n, steps + 1, c, h, w) from z_t, and epsilon_c and epsilon_0 of its first step, each (n, c, h, w).

    guidance: w, and the steps and k_phi of the solver.
    """
    (w, settings), pairs = guidance, []

    def epsilon(z: Tensor, time: Tensor) -> Tensor:
        pairs.append(teacher.epsilons(z, time, captions))
        return guided_epsilon(*pairs[-1], w)

    chain = solver_chain(epsilon, z_t, t, settings.steps, settings.solver_skip, teacher.schedule)
    return torch.stack(chain, 1), *pairs[0]


def build_cache(params: Params, teacher: Teacher, draws: Draws, guidance_scale: float) -> TrajectoryCache:
    """Teacher trajectories of every draw at one guidance scale."""
    settings, parts, (images, captions, times) = params.trajectories, [], draws
    generator = torch.Generator().manual_seed(3_000_000_000 + params.seed)  # seeds share no noise
    unique, caption = np.unique(np.array(captions), return_inverse=True)
    embeddings, caption = teacher.embed(unique.tolist()), torch.from_numpy(caption)
    for rows in tqdm(torch.arange(len(times)).split(settings.batch_size), f"w = {guidance_scale:g}", mininterval=2):
        latents, t = teacher.encode(to_pixels(images[rows.numpy()])), times[rows].to(teacher.device)
        noise = torch.randn(latents.shape, generator=generator).to(teacher.device)
        z_t = teacher.schedule.add_noise(latents, noise, t)
        made = solve(teacher, z_t, t, embeddings[caption[rows]], (guidance_scale, settings))
        parts.append([part.cpu() for part in made])
    chain, conditional, unconditional = (torch.cat(part) for part in zip(*parts, strict=True))
    scalars = torch.tensor(guidance_scale), torch.tensor(settings.solver_skip)
    return TrajectoryCache(chain, times, conditional, unconditional, caption, embeddings.half().cpu(), *scalars)


@torch.no_grad()
def encode_latents(params: Params, teacher: Teacher, data: Path, folder: Path) -> None:
    """Encode params.latents["train"].images training images and their captions into `folder`, for source = latents.

    They are the first of a training from images, up to whole batches, with its crops; data: what the data stage wrote.
    A stopped run goes on after its last whole batch.
    """
    settings, images = params.latents["train"], "train.npy" if params.data.kind == "shapes" else SAMPLES
    count = math.ceil(settings.images / settings.batch_size)
    plan = settings.model_dump() | {
        "images": count * settings.batch_size,
        "seed": params.seed,
        "data": training_facts(params.data),
        "encoders": digest(*(teacher.folder / part for part in ("vae", "text_encoder", "tokenizer"))),
        "files": digest(data / images),
    }
    first = open_folder(folder, plan)
    source, workers = training_images(params.data, data), getattr(params.data, "workers", 0)
    batches = Stream(source, settings.batch_size, params.seed, workers=workers).batches(first)
    for number in tqdm(range(first, count), "latents", total=count, initial=first, unit="batch", mininterval=2):
        pixels, captions = next(batches)
        seeds = np.random.default_rng((params.seed, number)).integers(2**62, size=len(pixels)).tolist()
        latents = teacher.encode(pixels, generators(seeds))
        save_batch(folder, number, latents, teacher.embed(captions), getattr(torch, settings.dtype))
