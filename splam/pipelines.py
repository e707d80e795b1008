"""Any text-to-image pipeline of diffusers, a student's or somebody else's, opened as it is and asked for images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from splam.models import HUB_ID
from splam.sampling import generators


def open_any(
    source: str,
    scheduler: str | None = None,
    lora: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
):
    """The stock pipeline of a hub id or a folder, without safety checker, whose black images would be measured.

    scheduler: a class of diffusers that replaces the pipeline's own, with its settings; lora: an adapter to load.
    Raises FileNotFoundError or ValueError, naming what is not there.
    """
    from diffusers import DiffusionPipeline

    if not (Path(source) / "model_index.json").is_file() and (Path(source).exists() or not HUB_ID.fullmatch(source)):
        raise FileNotFoundError(f"{source} is neither a pipeline's folder (no model_index.json in it) nor a hub id")
    optional = {"safety_checker": None, "requires_safety_checker": False}
    known = DiffusionPipeline.load_config(source)
    unchecked = {key: value for key, value in optional.items() if key in known}
    pipeline = DiffusionPipeline.from_pretrained(source, dtype=dtype, **unchecked).to(device)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = _scheduler_class(scheduler).from_config(pipeline.scheduler.config)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    return pipeline


def _scheduler_class(name: str) -> type:
    import diffusers

    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise ValueError(f"diffusers has no scheduler {name!r}: name a class of its, such as LCMScheduler")
    return found


@torch.no_grad()
def draw_images(pipeline, prompts: list[str], seeds: list[int], steps: int, guidance_scale: float) -> np.ndarray:
    """Images uint8 (n, h, w, 3) of n prompts, each from the noise of its own seed, in one call of the pipeline."""
    made = pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=generators(seeds),
        output_type="np",
    )
    return (made.images * 255).round().astype(np.uint8)
