"""Seconds from a caption to an image, through stock diffusers pipelines."""

import platform
import statistics
import timeit
from functools import partial
from typing import Any

import torch

from splam.config import Latency


def latency_row(pipeline, prompts: list[str], steps: int, guidance_scale: float, settings: Latency) -> dict[str, Any]:
    """Seconds of a pipeline's whole call, from text encoder to images on the CPU, and what they must be quoted with.

    The first of repeats + 1 calls is not counted.
    """
    call = partial(pipeline, prompts, num_inference_steps=steps, guidance_scale=guidance_scale)
    seconds = timeit.repeat(call, number=1, repeat=settings.repeats + 1)[1:]
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if pipeline.device.type == "cuda":
        device = torch.cuda.get_device_name(pipeline.device)
    facts = {"steps": steps, "guidance_scale": guidance_scale, "seconds_median": statistics.median_high(seconds)}
    facts |= {"seconds_min": min(seconds), "seconds_max": max(seconds), "repeats": len(seconds)}
    return facts | {"batch_size": len(prompts), "dtype": str(pipeline.dtype).removeprefix("torch."), "device": device}
