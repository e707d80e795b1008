"""Train the tiny world from nothing: its autoencoder, its teacher and its CLIP model.

The tiny profile distils these models as the paper distils Stable Diffusion; they are trained once by the
frozen stages of dvc.yaml (`make teacher`) and shipped in models/tiny in half precision. Each recipe is one
function that builds a module and a loss; `fit` is the loop they share. `python -m splam.world vae` trains one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL, UNet2DConditionModel
from matplotlib.figure import Figure
from safetensors.torch import save_file
from timm.optim import Muon
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from splam.checkpoints import save_atomically
from splam.data import emoji
from splam.figures import picture_grid
from splam.metrics import load_clip
from splam.models import (
    assemble_tiny,
    embed_captions,
    load_teacher,
    tiny_scheduler,
    tiny_text_encoder,
    to_images,
    to_pixels,
)
from splam.params import Params, Recipe, load_params
from splam.schedule import Schedule

Loss = Callable[[torch.Generator], Tensor]

# Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) steps by the nearest orthogonal matrix of the
# momentum; timm's takes AdamW for vectors. After 200 iterations of the autoencoder 0.23 against 0.32, after 300 of
# the teacher 0.109 against 0.135, at 1.15 and 1.5 times AdamW's time.
OPTIMIZERS = {"adamw": partial(torch.optim.AdamW, fused=True), "muon": Muon}

LEVEL_SHARES = torch.tensor([0.6, 0.2, 0.2])  # of the teacher's captions: a name says what to draw, its group little


def fit(module: nn.Module, loss: Loss, recipe: Recipe, scratch: Path, label: str) -> nn.Module:
    """Train module in place, with warm-up and linear decay to 0; returns its running average.

    loss: called with a generator seeded by the iteration, returns a scalar. A checkpoint in `scratch` every
    `recipe.checkpoint_seconds` lets a killed training go on with the same bits.
    """
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema_decay)
    )
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[recipe.optimizer](parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
    first = 0
    if scratch.is_file():
        state = torch.load(scratch, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["iteration"]
    saved = time.monotonic()
    bar = tqdm(range(first, recipe.iterations), initial=first, total=recipe.iterations, desc=label, mininterval=5)
    for iteration in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate(iteration, recipe)
        optimizer.zero_grad()
        value = loss(torch.Generator().manual_seed(recipe.seed + iteration))
        value.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.gradient_norm)
        optimizer.step()
        average.update_parameters(module)
        if iteration % 20 == 0:
            bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
        if not torch.isfinite(value):
            raise FloatingPointError(f"{label}: the loss is {value.item()} at iteration {iteration}; lower its rate")
        if time.monotonic() - saved > recipe.checkpoint_seconds or iteration + 1 == recipe.iterations:
            save_atomically(
                {
                    "module": module.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "iteration": iteration + 1,
                },
                scratch,
            )
            saved = time.monotonic()
    return average.module.eval()


def rate(iteration: int, recipe: Recipe) -> float:
    """The learning rate: linear warm-up, then falling linearly to 0 at the last iteration."""
    return recipe.learning_rate * min(1.0, (iteration + 1) / recipe.warmup) * (1 - iteration / recipe.iterations)


def _autocast(recipe: Recipe):
    return torch.autocast("cpu", torch.bfloat16) if recipe.bf16 else nullcontext()


def compiled(function: Callable) -> Callable:
    """The function by torch.compile where there is a C++ compiler (a fifth faster here), else as it is."""
    return torch.compile(function) if shutil.which("g++") else function


def train_vae(params: Params, data: Path, out: Path, scratch: Path) -> None:
    """An AutoencoderKL (Rombach et al., 2022), its latents then normalised to mean 0, variance 1 a channel.

    The normalisation is folded into the 1x1 convolutions around the latent, so that scaling_factor is 1.
    """
    recipe = params.world.vae
    torch.manual_seed(recipe.seed)
    levels = len(recipe.channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(recipe.channels),
        layers_per_block=1,
        latent_channels=params.world.latent_channels,
        norm_num_groups=4,  # with 16, two channels each, colours came out dull: 0.34 against 0.30 after 250 iterations
        mid_block_add_attention=False,
        sample_size=emoji.SIZE,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)
    train = emoji.Split.load(data / "train")

    latent_shape = (recipe.batch_size, params.world.latent_channels, emoji.SIZE // 4, emoji.SIZE // 4)

    @compiled
    def negative_elbo(x: Tensor, noise: Tensor) -> Tensor:
        with _autocast(recipe):
            posterior = vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            y = vae.decode(mean + (0.5 * logvar).exp() * noise).sample.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return reconstruction_loss(y, x) + 1e-4 * kl

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (recipe.batch_size,), generator=generator).numpy()
        x = to_pixels(train.images[rows]).to(memory_format=torch.channels_last)
        return negative_elbo(x, torch.randn(latent_shape, generator=generator))

    vae = fit(vae, loss, recipe, scratch, "VAE")
    normalise_latents(vae, to_pixels(train.images[:2048]))
    save_half(vae, out)


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1, half the squared error, and half the L1 of the image gradients, of pixels (n, 3, h, w)."""
    edges = sum(functional.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
    return functional.l1_loss(y, x) + 0.5 * functional.mse_loss(y, x) + 0.5 * edges


@torch.no_grad()
def normalise_latents(vae, x: Tensor) -> None:
    """Fold each latent channel's mean and deviation over images x (n, 3, h, w) into the 1x1 convolutions."""
    latents = torch.cat([vae.encode(b).latent_dist.mean for b in x.split(256)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    after, before = vae.post_quant_conv, vae.quant_conv
    after.bias += (after.weight * mean[None, :, None, None]).sum((1, 2, 3))
    after.weight *= deviation[None, :, None, None]
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.bias[channels:] -= 2 * deviation.log()  # the posterior's log-variance


def save_half(module, folder: Path) -> None:
    """Write a diffusers module in half precision, as models/tiny ships it."""
    module.to(torch.float16).save_pretrained(folder, safe_serialization=True)


def train_unet(params: Params, data: Path, vae_folder: Path, out: Path, scratch: Path) -> None:
    """The teacher, a UNet2DConditionModel that predicts v, on captions of all levels and 10 % empty ones.

    v = alpha epsilon - sigma x_0 (Salimans and Ho, 2022, arXiv:2202.00512). Its plain squared error weighs one of x_0
    by SNR + 1; with a weight of at most 5 (Hang et al., 2023, arXiv:2303.09556) details came out ragged.
    """
    if not (vae_folder / "config.json").is_file():
        raise FileNotFoundError(f"{vae_folder} is missing: train the autoencoder first (python -m splam.world vae)")
    recipe = params.world.unet
    torch.manual_seed(recipe.seed)
    deeper = len(recipe.channels) - 1  # levels below the first have cross-attention
    unet = UNet2DConditionModel(
        sample_size=emoji.SIZE // 4,
        in_channels=params.world.latent_channels,
        out_channels=params.world.latent_channels,
        block_out_channels=tuple(recipe.channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        cross_attention_dim=384,
        attention_head_dim=8,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)
    train = emoji.Split.load(data / "train")
    latents = encode_split(AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32), train)
    levels = len(emoji.LEVELS)
    captions = [train.captions(np.full(len(train), v)) for v in range(levels)]
    unique, index = np.unique(np.array([""] + sum(captions, [])), return_inverse=True)
    index = torch.from_numpy(index[1:]).view(levels, -1)
    embeddings = embed_captions(*tiny_text_encoder(params.world.text_tokens), list(unique)).to(torch.bfloat16)
    empty = int(np.flatnonzero(unique == "")[0])
    schedule = Schedule.from_scheduler(tiny_scheduler())

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (recipe.batch_size,), generator=generator)
        level = torch.multinomial(LEVEL_SHARES, len(rows), replacement=True, generator=generator)
        dropped = torch.rand(rows.shape, generator=generator) < recipe.empty_captions
        caption = torch.where(dropped, empty, index[level, rows])
        t = torch.randint(schedule.length, rows.shape, generator=generator)
        noise = torch.randn(rows.shape + latents.shape[1:], generator=generator)
        alpha, sigma = schedule.alphas[t][:, None, None, None], schedule.sigmas[t][:, None, None, None]
        z_t = (alpha * latents[rows] + sigma * noise).to(memory_format=torch.channels_last)
        v = alpha * noise - sigma * latents[rows]
        # On a CPU the plain attention is faster for short sequences (a fifth of the step); flash is the default.
        with _autocast(recipe), sdpa_kernel(SDPBackend.MATH):
            predicted = unet(z_t, t, embeddings[caption].float()).sample.float()
        return (predicted - v).square().mean()

    unet = fit(unet, loss, recipe, scratch, "teacher")
    save_half(unet, out)


@torch.no_grad()
def encode_split(vae, split: emoji.Split) -> Tensor:
    """The mean latents of a split's images: float32 (n, channels, 8, 8)."""
    batches = tqdm(np.array_split(np.arange(len(split)), max(1, len(split) // 256)), desc="latents", mininterval=5)
    return torch.cat([vae.encode(to_pixels(split.images[rows])).latent_dist.mean for rows in batches])


def train_clip(params: Params, data: Path, out: Path, scratch: Path) -> None:
    """A small open_clip model on the seen pairs (Radford et al., 2021), for "CLIP score (tiny, in-domain)"."""
    import open_clip

    recipe = params.world.clip
    torch.manual_seed(recipe.seed)
    config = params.world.clip_config()
    clip = open_clip.CLIP(**config)
    tokenize = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    train = emoji.Split.load(data / "train")
    levels = len(emoji.LEVELS)
    captions = [train.captions(np.full(len(train), v)) for v in range(levels)]
    unique, index = np.unique(np.array(sum(captions, [])), return_inverse=True)
    index = torch.from_numpy(index).view(levels, -1)
    tokens = tokenize(list(unique))
    loss_function = open_clip.loss.ClipLoss()

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (recipe.batch_size,), generator=generator)
        level = torch.randint(levels, rows.shape, generator=generator)
        with _autocast(recipe):
            image, text, scale = clip(to_pixels(train.images[rows.numpy()]), tokens[index[level, rows]])
        return loss_function(image.float(), text.float(), scale)

    clip = fit(clip, loss, recipe, scratch, "CLIP")
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in clip.state_dict().items()}, out / "open_clip_model.safetensors")
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}, indent=2) + "\n")


def inspect_model(
    params: Params, model: str, models: Path, split: emoji.Split, rows: np.ndarray
) -> tuple[Figure, dict[str, float]]:
    """A picture of what a shipped model ("vae", "unet" or "clip") does with images of a split, and its numbers."""
    images, captions = (
        np.asarray(split.images[rows]),
        emoji.Split(split.images[rows], split.glyph[rows], split.colour[rows]).captions(rows % len(emoji.LEVELS)),
    )
    inspect = {"vae": _inspect_vae, "unet": _inspect_unet, "clip": _inspect_clip}[model]
    return inspect(params, models, images, captions)


def _inspect_vae(params: Params, models: Path, images: np.ndarray, captions: list[str]):
    vae = AutoencoderKL.from_pretrained(models / "vae", torch_dtype=torch.float32)
    x = to_pixels(images)
    with torch.no_grad():
        y = vae.decode(vae.encode(x).latent_dist.mean).sample
    rebuilt = to_images(y).numpy()
    shown = np.stack([images[:12], rebuilt[:12]])
    return picture_grid(shown, ["image", "reconstruction"], [""] * 12, "Autoencoder, held-out images"), {
        "l1_error_of_pixels_in_0_1": float((y.clamp(-1, 1) - x).abs().mean() / 2)
    }


def _inspect_unet(params: Params, models: Path, images: np.ndarray, captions: list[str]):
    from splam.evaluate import draw_baseline

    folder = Path("build/world/teacher")
    assemble_tiny(folder, params.world.text_tokens, models)
    teacher = load_teacher(folder, bf16=True)
    embedded = teacher.embed(captions[:10])
    drawn = draw_baseline(teacher, embedded, "ddim", 3.0, 50, params, "samples")
    shown = np.stack([images[:10], drawn], axis=1)
    title = "Teacher, held-out captions, w = 3, 50 DDIM steps"
    return picture_grid(shown, captions[:10], ["image", "teacher"], title), {
        "weights_in_millions": sum(p.numel() for p in teacher.unet.parameters()) / 1e6
    }


def _inspect_clip(params: Params, models: Path, images: np.ndarray, captions: list[str]):
    clip = load_clip(models / "clip")
    cosines = clip.image_features(images) @ clip.text_features(captions).T
    figure = Figure(figsize=(4, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel="caption", ylabel="image", title="cosine, held-out pairs")
    figure.colorbar(axes.imshow(cosines))
    return figure, {"right_caption_found": float((cosines.argmax(1) == np.arange(len(images))).mean())}


def main() -> None:
    """Train one model of the world; a rerun goes on from its last checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("vae", "unet", "clip"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("models/tiny"))
    args = parser.parse_args()
    params = load_params(args.params)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    scratch = scratch_file(params, args.model)
    if args.model == "vae":
        train_vae(params, args.data, args.out / "vae", scratch)
    elif args.model == "unet":
        train_unet(params, args.data, args.out / "vae", args.out / "unet", scratch)
    else:
        train_clip(params, args.data, args.out / "clip", scratch)
    scratch.unlink(missing_ok=True)


def scratch_file(params: Params, name: str) -> Path:
    """Where a training's checkpoint lies: keyed by its recipe."""
    recipe = getattr(params.world, name).model_dump_json()
    facts = f"{recipe} {params.world.latent_channels} {params.world.text_tokens}"
    return Path("build/scratch/world") / f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.pt"


if __name__ == "__main__":
    main()
