"""Seconds from a caption to an image, through stock diffusers pipelines, and the UNet's part of them."""

import platform
import statistics
import time
from typing import Any

import torch

Case = tuple[str, Any, int, float]  # method, pipeline, steps, guidance scale


def latency_rows(cases: list[Case], prompts: list[str], repeats: int) -> list[dict[str, Any]]:
    """Seconds of whole calls, from text encoder to images on the CPU, and what they must be quoted with; a row a case.

    unet_seconds_median are those of its UNet alone, of which a guided step calls it twice, in one batch. The cases take
    turns, so that a machine that is slow for a while is slow for all; the first of repeats + 1 rounds is not counted.
    """
    rounds = [[seconds_of(case, prompts) for case in cases] for _ in range(repeats + 1)][1:]
    return [_row(case, len(prompts), times) for case, times in zip(cases, zip(*rounds, strict=True), strict=True)]


def seconds_of(case: Case, prompts: list[str]) -> tuple[float, float]:
    """Seconds of one call of a pipeline, and of its UNet in it."""
    (_, pipeline, steps, guidance_scale), within = case, []

    def now(*_) -> None:
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize(pipeline.device)
        within.append(time.perf_counter())

    hooks = pipeline.unet.register_forward_pre_hook(now), pipeline.unet.register_forward_hook(now)
    start = time.perf_counter()
    pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance_scale)
    whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return whole, sum(within[1::2]) - sum(within[::2])


def _row(case: Case, batch_size: int, times: tuple[tuple[float, float], ...]) -> dict[str, Any]:
    method, pipeline, steps, guidance_scale = case
    seconds, unet_seconds = zip(*times, strict=True)
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if pipeline.device.type == "cuda":
        device = torch.cuda.get_device_name(pipeline.device)
    facts = {"method": method, "steps": steps, "guidance_scale": guidance_scale}
    facts |= {"seconds_median": statistics.median(seconds), "seconds_min": min(seconds), "seconds_max": max(seconds)}
    facts |= {"repeats": len(seconds), "unet_seconds_median": statistics.median(unet_seconds)}
    return facts | {"batch_size": batch_size, "dtype": str(pipeline.dtype).removeprefix("torch."), "device": device}
