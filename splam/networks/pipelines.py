"""Any text-to-image pipeline of diffusers, a student's or somebody else's, opened as it is and asked for images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from splam.method.sampling import generators
from splam.networks.teacher import HUB_ID, UNCHECKED, check_finite, check_source, check_weights


def open_any(
    source: str | Path,
    scheduler: str | None = None,
    lora: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
):
    """The stock pipeline of a folder or hub id; scheduler: a diffusers class in place of its own; lora: an adapter.

    Raises OSError or ValueError for what cannot be opened as it is.
    """
    import diffusers

    check_source(source)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(source, dtype=dtype, **UNCHECKED)
    check_weights(pipeline, source)
    pipeline.to(device).set_progress_bar_config(disable=True)
    if scheduler is not None:
        if not scheduler.endswith("Scheduler") or not hasattr(diffusers, scheduler):
            raise ValueError(f"diffusers has no scheduler {scheduler!r}: name one of its classes, such as LCMScheduler")
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    if lora is not None:
        _load_adapter(pipeline, lora)
    return pipeline


def _load_adapter(pipeline, lora: str) -> None:
    """Load an adapter. Raises ValueError for weights that end up nowhere, which diffusers passes over."""
    if not (Path(lora).exists() or HUB_ID.fullmatch(lora)):
        raise FileNotFoundError(f"lora: {lora} is neither a file, nor a folder, nor a hub id")

    def digest(weight: Tensor) -> int:
        return hash(weight.detach().cpu().to(pipeline.dtype).float().numpy().tobytes())

    asked = {key: weight for key, weight in pipeline.lora_state_dict(lora)[0].items() if weight.dim() > 1}
    pipeline.load_lora_weights(lora, adapter_name="adapter")
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    named = [named for network in networks for named in network.named_parameters() if ".adapter." in named[0]]
    loaded = {digest(weight) for _, weight in named}
    left = [key for key, weight in asked.items() if digest(weight) not in loaded]
    if left or not any(weight.any() for name, weight in named if "lora_A" not in name):
        names = ", ".join([*left, *asked][:3])
        raise ValueError(f"{lora}: {len(left or asked)} of {len(asked)} weights change nothing, such as {names}")


@torch.no_grad()
def draw_images(pipeline, prompts: list[str], seeds: list[int], steps: int, guidance_scale: float) -> np.ndarray:
    """Images uint8 (n, h, w, 3) of n prompts, each from its own seed's noise, decoded in float32.

    Raises ValueError if one is not finite.
    """
    how = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "np"}
    with _decoding_in_float32(pipeline.vae):
        images = pipeline(prompts, generator=generators(seeds), **how).images
    return (images * 255).round().astype(np.uint8)


@contextmanager
def _decoding_in_float32(vae: nn.Module) -> Iterator[None]:
    """Have an autoencoder decode latents of any dtype in float32, to images that are finite before they are clamped."""
    dtype, decode = vae.dtype, vae.to(torch.float32).decode

    def checked(latents: Tensor, *arguments: Any, **options: Any) -> Any:
        decoded = decode(latents.float(), *arguments, **options)
        check_finite(decoded[0])
        return decoded

    vae.decode = checked
    try:
        yield
    finally:
        del vae.decode
        vae.to(dtype)
