"""Any text-to-image pipeline of diffusers, a student's or somebody else's, opened as it is and asked for images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from splam.method.sampling import generators
from splam.networks.teacher import HUB_ID, open_pipeline, to_images


def open_any(
    source: str | Path, scheduler: str | None = None, lora: str | None = None, dtype: torch.dtype = torch.float32
):
    """The stock pipeline of a folder or hub id; scheduler: a diffusers class in place of its own; lora: an adapter.

    Raises OSError or ValueError for what cannot be opened as it is.
    """
    import diffusers

    pipeline = open_pipeline(source, dtype)
    pipeline.set_progress_bar_config(disable=True)
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

    try:
        asked = {key: weight for key, weight in pipeline.lora_state_dict(lora)[0].items() if weight.dim() > 1}
        pipeline.load_lora_weights(lora, adapter_name="adapter")
    except Exception as error:  # what keys of another model lead to
        raise ValueError(f"{lora} is no adapter of this pipeline: {error!r}") from None
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    layers = [layer for network in networks for layer in network.modules() if "adapter" in getattr(layer, "lora_A", ())]
    loaded = {digest(part["adapter"].weight) for layer in layers for part in (layer.lora_A, layer.lora_B)}
    left = [key for key, weight in asked.items() if digest(weight) not in loaded]
    if left or not any(layer.get_delta_weight("adapter").any() for layer in layers):
        names = ", ".join([*left, *asked][:3])
        raise ValueError(f"{lora}: {len(left or asked)} of {len(asked)} weights change nothing, such as {names}")


@torch.no_grad()
def draw_images(pipeline, prompts: list[str], seeds: list[int], steps: int, guidance_scale: float) -> np.ndarray:
    """Images uint8 (n, h, w, 3) of n prompts, each from its own seed's noise, decoded in float32.

    Raises ValueError if one is not finite.
    """
    how = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "latent"}
    latents, vae = pipeline(prompts, generator=generators(seeds), **how).images.float(), pipeline.vae
    if getattr(vae.config, "latents_mean", None):
        raise ValueError(f"{type(vae).__name__} has latents_mean, which is not supported: leave this pipeline out")
    latents = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0)
    dtype = vae.dtype
    images = to_images(vae.to(torch.float32).decode(latents).sample)
    vae.to(dtype)
    return images.numpy()
