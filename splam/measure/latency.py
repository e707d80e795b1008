"""Seconds from a caption to an image, through stock diffusers pipelines, and the UNet's part of them."""

import platform
import statistics
import time
from typing import Any

import torch

from splam.config import Latency


def latency_row(pipeline, prompts: list[str], steps: int, guidance_scale: float, settings: Latency) -> dict[str, Any]:
    """Seconds of a pipeline's whole call, from text encoder to images on the CPU, and what they must be quoted with.

    unet_seconds_median are those of its UNet alone, of which a guided step calls it twice, in one batch. The first of
    repeats + 1 calls is not counted.
    """
    seconds, unet_seconds, within = [], [], []

    def now(*_) -> None:
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize(pipeline.device)
        within.append(time.perf_counter())

    hooks = pipeline.unet.register_forward_pre_hook(now), pipeline.unet.register_forward_hook(now)
    for _ in range(settings.repeats + 1):
        within.clear()
        start = time.perf_counter()
        pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance_scale)
        seconds.append(time.perf_counter() - start)
        unet_seconds.append(sum(within[1::2]) - sum(within[::2]))
    for hook in hooks:
        hook.remove()
    seconds, unet_seconds = seconds[1:], unet_seconds[1:]
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if pipeline.device.type == "cuda":
        device = torch.cuda.get_device_name(pipeline.device)
    facts = {"steps": steps, "guidance_scale": guidance_scale, "seconds_median": statistics.median_high(seconds)}
    facts |= {"seconds_min": min(seconds), "seconds_max": max(seconds), "repeats": len(seconds)}
    facts |= {"unet_seconds_median": statistics.median_high(unet_seconds)}
    return facts | {"batch_size": len(prompts), "dtype": str(pipeline.dtype).removeprefix("torch."), "device": device}
