"""Fill the trajectory cache: everything of a training step that does not depend on the student (Alg. 1, to line 8)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from splam.data import emoji
from splam.data.testsets import preview
from splam.models import Teacher, guided_outputs, to_pixels
from splam.params import Params, Trajectories
from splam.schedule import ddim_grid, to_epsilon
from splam.solver import TrajectoryCache, guided_epsilon, solver_chain


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random part of a cache, the same for every guidance scale: images uint8 (n, h, w, 3), captions as rows of
    `unique`, t (n,) on the DDIM grid, and one noise seed for all.
    """

    images: np.ndarray
    unique: list[str]
    caption: Tensor
    t: Tensor
    noise_seed: int


def make_draws(params: Params, data: Path, length: int) -> Draws:
    """(x, c) ~ D and t ~ the grid, some captions emptied; data: folder of the data stage."""
    settings = params.trajectories
    generator = torch.Generator().manual_seed(params.seed)
    if params.data.kind == "emoji":
        images, texts = _emoji_samples(data, settings.draws, generator)
    else:
        images, texts = preview(params.data, data, settings.draws, params.seed)
    captions = np.array(texts, dtype=object)
    captions[(torch.rand(settings.draws, generator=generator) < settings.empty_captions).numpy()] = ""
    unique, caption = np.unique(captions.astype(str), return_inverse=True)
    grid = ddim_grid(length)
    t = grid[torch.randint(len(grid), (settings.draws,), generator=generator)]
    return Draws(images, [str(c) for c in unique], torch.from_numpy(caption), t, params.seed + 1)


def _emoji_samples(data: Path, count: int, generator: torch.Generator) -> tuple[np.ndarray, list[str]]:
    """Training images of the tiny world, none twice, and a caption of any level for each."""
    train = emoji.Split.load(data / "train")
    if count > len(train):
        raise ValueError(f"trajectories.draws is {count}, the training split has {len(train)} images")
    rows = torch.randperm(len(train), generator=generator)[:count].numpy()
    drawn = emoji.Split(train.images[rows], train.glyph[rows], train.colour[rows])
    level = torch.randint(len(emoji.LEVELS), (count,), generator=generator)
    return drawn.images, drawn.captions(level.numpy())


def epsilons(teacher: Teacher, z: Tensor, t: Tensor, captions: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's conditional and unconditional noise, whatever its prediction type."""
    alpha, sigma = teacher.schedule.alpha(t), teacher.schedule.sigma(t)
    outputs = guided_outputs(teacher, z, t, captions, empty)
    conditional, unconditional = (to_epsilon(o, z, alpha, sigma, teacher.prediction_type) for o in outputs)
    return conditional, unconditional


@torch.no_grad()
def trajectory_batch(
    teacher: Teacher,
    z_t: Tensor,
    t: Tensor,
    captions: Tensor,
    empty: Tensor,
    w: float,
    settings: Trajectories,
    orders: tuple[int, ...] = (1,),
) -> tuple[list[Tensor], Tensor, Tensor]:
    """A chain (n, steps + 1, c, h, w) for each solver order, and both noises of the first step, computed once."""
    first = epsilons(teacher, z_t, t, captions, empty)

    def epsilon(z: Tensor, time: Tensor) -> Tensor:
        both = first if z is z_t else epsilons(teacher, z, time, captions, empty)
        return guided_epsilon(*both, w)

    path = epsilon, z_t, t, settings.steps, settings.solver_skip, teacher.schedule
    return [torch.stack(solver_chain(*path, order), 1) for order in orders], *first


def build_cache(params: Params, teacher: Teacher, draws: Draws, guidance_scale: float) -> TrajectoryCache:
    """Teacher trajectories of every draw at one guidance scale."""
    settings = params.trajectories
    orders = (1, 2) if guidance_scale in settings.second_order else (1,)
    generator = torch.Generator().manual_seed(draws.noise_seed)
    embeddings = teacher.embed(draws.unique)
    empty = teacher.embed([""])
    parts = []
    for rows in tqdm(
        torch.arange(len(draws.t)).split(settings.batch_size), desc=f"w = {guidance_scale:g}", mininterval=2
    ):
        latents = teacher.encode(to_pixels(draws.images[rows.numpy()]))
        t = draws.t[rows].to(teacher.device)
        noise = torch.randn(latents.shape, generator=generator).to(teacher.device)
        z_t = teacher.schedule.alpha(t) * latents + teacher.schedule.sigma(t) * noise
        captions = embeddings[draws.caption[rows]]
        chains, *first = trajectory_batch(teacher, z_t, t, captions, empty, guidance_scale, settings, orders)
        parts.append([p.cpu() for p in (*first, *chains)])
    conditional, unconditional, chain, *second = (torch.cat(p) for p in zip(*parts, strict=True))
    return TrajectoryCache(
        chain=chain,
        t=draws.t,
        conditional=conditional,
        unconditional=unconditional,
        caption=draws.caption,
        embeddings=embeddings.half().cpu(),
        guidance_scale=torch.tensor(guidance_scale),
        solver_skip=torch.tensor(settings.solver_skip),
        second_order=second[0] if second else torch.empty(0),
    )


def half_precision_error(
    teacher: Teacher, cache: TrajectoryCache, settings: Trajectories, count: int = 64
) -> dict[str, float]:
    """How far the cached points are from a float32 teacher's: RMS of the difference over RMS of the point's change.

    For the path's end after one solver step and after all of them, and by the solver of second order where it is used.
    """
    exact = dataclasses.replace(teacher, bf16=False)
    rows = torch.arange(min(count, len(cache)))
    captions = cache.embeddings[cache.caption[rows]].float().to(teacher.device)
    kept = [chain[rows] for chain in (cache.chain, cache.second_order) if len(chain)]
    z_t, t, w = cache.chain[rows, 0].to(teacher.device), cache.t[rows].to(teacher.device), float(cache.guidance_scale)
    orders = (1, 2)[: len(kept)]
    chains, _, _ = trajectory_batch(exact, z_t, t, captions, teacher.embed([""]), w, settings, orders)

    def error(order: int, step: int) -> float:
        chain = chains[order - 1].cpu()
        difference = (kept[order - 1][:, step] - chain[:, step]).square().mean().sqrt()
        return float(difference / (chain[:, step] - chain[:, 0]).square().mean().sqrt())

    errors = {"one_step": error(1, 1), "all_steps": error(1, settings.steps)}
    return errors | ({"second_order": error(2, settings.steps)} if len(kept) > 1 else {})
