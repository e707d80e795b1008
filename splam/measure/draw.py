"""What a system is: a function that draws images of captions, from a seed for each, in a number of steps.

All systems draw the same captions from the same seeds, so that differences between them are paired.
"""

from collections.abc import Callable
from copy import copy

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from splam.config import Params, Run
from splam.data.images import resize
from splam.method.loss import Network
from splam.method.sampling import generators, sample_consistency
from splam.networks.student import published_network
from splam.networks.teacher import Teacher, kept_noise

Draw = Callable[[list[str], list[int], int], np.ndarray]
"""Captions, a seed for each, and steps to images uint8 (n, h, w, 3)."""

OTHER_NOISE = 500_000  # added to a sample's seed: as many samples may be drawn before two draws share noise


def student_draw(teacher: Teacher, unet: nn.Module, run: Run) -> Draw:
    """A published student (Eq. 19)."""
    return _consistency_draw(teacher, lambda captions: published_network(unet, captions, run, teacher))


def baseline_draw(teacher: Teacher, sampler: str, guidance_scale: float) -> Draw:
    """The undistilled teacher by the stock pipeline and a scheduler of diffusers, with guidance of w >= 1.

    Sampler "consistency" draws with its network as if that were a student. Without guidance (w = 1) a network is called
    once a step.
    """
    from diffusers import StableDiffusionPipeline

    def guided(captions: Tensor) -> Network:
        epsilon = teacher.guided(captions, guidance_scale)
        return lambda z, sigma, t, gamma: epsilon(z, t)

    if sampler == "consistency":
        return _consistency_draw(teacher, teacher.network if guidance_scale == 1 else guided)

    unet = copy(teacher.unet)
    unet.forward = teacher.autocast()(unet.forward)  # the network alone: a scheduler's arithmetic stays float32
    parts = teacher.vae, teacher.text_encoder, teacher.tokenizer, unet
    pipeline = StableDiffusionPipeline(*parts, None, None, None, requires_safety_checker=False)
    pipeline.scheduler = baseline_scheduler(sampler, teacher.scheduler_config)  # given above, it would be changed
    pipeline.set_progress_bar_config(disable=True)

    def draw(captions: list[str], seeds: list[int], steps: int) -> np.ndarray:
        embeddings = teacher.embed(captions)
        how = {"prompt_embeds": embeddings, "negative_prompt_embeds": teacher.empty.expand_as(embeddings)}
        how |= {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "latent"}
        return teacher.decode(pipeline(**how, generator=generators(seeds)).images).numpy()

    return draw


def with_other_noise(draw: Draw) -> Draw:
    """The same from other noise than every other system draws from."""
    return lambda captions, seeds, steps: draw(captions, [seed + OTHER_NOISE for seed in seeds], steps)


def _consistency_draw(teacher: Teacher, network: Callable[[Tensor], Network]) -> Draw:
    """Multistep consistency sampling; network: of caption embeddings (n, tokens, d)."""

    @torch.no_grad()
    def draw(captions: list[str], seeds: list[int], steps: int) -> np.ndarray:
        bound, sources = network(teacher.embed(captions)), generators(seeds)
        latents = sample_consistency(bound, sources, teacher.latent_shape, steps, teacher.schedule)
        return teacher.decode(latents).numpy()

    return draw


def first_seed(params: Params, other_noise: bool = False) -> int:
    """The seed of the first sample, from which all count on, apart from those of training; of other noise if asked."""
    return 1_000_000 * (params.seed + 1) + OTHER_NOISE * other_noise


def in_batches(draw: Draw, captions: list[str], steps: int, params: Params, size: int | None = None) -> np.ndarray:
    """An image of every caption: uint8 (n, h, w, 3), in batches of evaluation.batch_size; size: pixels to resize to."""
    count, step, images = len(captions), params.evaluation.batch_size, None
    seeds = [first_seed(params) + i for i in range(count)]
    for start in tqdm(range(0, count, step), desc=f"{steps} steps", mininterval=2, leave=False):
        rows = slice(start, start + step)
        batch = draw(captions[rows], seeds[rows], steps)
        batch = batch if size is None else resize(batch, size)
        images = np.empty((count, *batch.shape[1:]), np.uint8) if images is None else images  # coco30k: 6 GB
        images[rows] = batch
    return images


def baseline_scheduler(name: str, config: dict):
    """diffusers' scheduler for an undistilled teacher, with trailing times, so that it starts at full noise.

    name: ddim, unipc, dpmsolver or dpmsolver++; config: the teacher's, whose betas and prediction type are kept.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    kept = kept_noise(config) | {"timestep_spacing": "trailing"}
    if name == "ddim":
        return DDIMScheduler(**kept, clip_sample=False, set_alpha_to_one=False)
    if name == "unipc":
        return UniPCMultistepScheduler(**kept, final_sigmas_type="sigma_min")
    return DPMSolverMultistepScheduler(**kept, algorithm_type=name, final_sigmas_type="sigma_min")
