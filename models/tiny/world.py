"""Train the tiny world from nothing: its autoencoder, its teacher and its CLIP model.

    python -m models.tiny.world vae

trains one by its recipe in params.yaml beside this file, into build/world; `fit` is the loop that they share. A killed
training goes on from its last checkpoint.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as functional
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from splam.config import ROOT
from splam.data import shapes
from splam.data.images import to_pixels
from splam.distill import checkpoints
from splam.method.schedule import Schedule
from splam.networks.teacher import TINY_MODELS, embed_captions, tiny_text_encoder

PARAMS = ROOT / "models/tiny/params.yaml"
OUT, SCRATCH = ROOT / "build/world", ROOT / "build/scratch/world"
IMAGES = 50_000  # of the train split, seed 0
Recipe = SimpleNamespace
Loss = Callable[[torch.Generator], Tensor]
LEVEL_SHARES = torch.tensor(shapes.LEVEL_SHARES)


def pictures() -> shapes.Split:
    """What all three are trained on; kept in build/scratch, since drawing them takes minutes."""
    path = SCRATCH / "pictures.npy"
    if not path.is_file():
        SCRATCH.mkdir(parents=True, exist_ok=True)
        np.save(part := SCRATCH / "part.npy", shapes.make("train", 0, IMAGES))
        os.replace(part, path)  # whole or absent, should it be stopped
    return shapes.Split.load(path)


def fit(module: nn.Module, loss: Loss, recipe: Recipe, name: str) -> nn.Module:
    """Train module in place, with warm-up and linear decay to 0; returns its running average.

    loss: called with a generator seeded by the iteration, returns a scalar. A checkpoint every
    `recipe.checkpoint_seconds` lets a killed training go on with the same bits.
    """
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema_decay)
    )
    optimizer = torch.optim.AdamW(
        module.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    parts, first = {"module": module, "average": average, "optimizer": optimizer}, 0
    folder = SCRATCH / name
    with checkpoints.locked(folder):
        if (last := checkpoints.last(folder, vars(recipe))) is not None:
            state = checkpoints.read(last)
            first = state["iteration"]
            for part, value in parts.items():
                value.load_state_dict(state[part])
        saved = time.monotonic()
        bar = tqdm(range(first, recipe.iterations), name, initial=first, total=recipe.iterations, mininterval=5)
        for iteration in bar:
            for group in optimizer.param_groups:
                group["lr"] = rate(iteration, recipe)
            optimizer.zero_grad()
            value = loss(torch.Generator().manual_seed(recipe.seed + iteration))
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), recipe.max_grad_norm)
            optimizer.step()
            average.update_parameters(module)
            if not torch.isfinite(value):
                raise FloatingPointError(f"{name}: the loss is {value.item()} at iteration {iteration}; lower its rate")
            bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
            done = iteration + 1
            if time.monotonic() - saved > recipe.checkpoint_seconds or done == recipe.iterations:
                states = {part: value.state_dict() for part, value in parts.items()}
                checkpoints.save(folder, done, states | {"iteration": done, "parameters": vars(recipe)})
                saved = time.monotonic()
    return average.module.eval()


def fit_further(module: nn.Module, loss: Loss, recipe: Recipe, name: str) -> nn.Module:
    """`fit`, and from its average again for each of recipe.further, which says what is then different."""
    average = fit(module, loss, recipe, name)
    for number, changes in enumerate(recipe.further, 1):
        average = fit(average.train(), loss, Recipe(**vars(recipe) | changes), f"{name}-{number}")
    return average


def rate(iteration: int, recipe: Recipe) -> float:
    """The learning rate: linear warm-up, then falling linearly to 0 at the last iteration."""
    warm = min(1.0, (iteration + 1) / recipe.lr_warmup_steps)
    return recipe.learning_rate * warm * (1 - iteration / recipe.iterations)


def train_vae(recipe: Recipe) -> None:
    """An AutoencoderKL (Rombach et al., 2022), its latents then normalised to mean 0, variance 1 a channel.

    The normalisation is folded into the 1x1 convolutions around the latent, so that scaling_factor is 1. At last the
    decoder is trained alone, which leaves the latents, and so a teacher of them, as they are.
    """
    levels = len(recipe.channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(recipe.channels),
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=shapes.SIZE,
        scaling_factor=1.0,
    )
    train = pictures()
    latent_shape = (recipe.batch_size, recipe.latent_channels, shapes.SIZE // 4, shapes.SIZE // 4)

    def negative_elbo(x: Tensor, noise: Tensor) -> Tensor:
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.mean + (0.5 * posterior.logvar).exp() * noise).sample
        kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).mean()
        return reconstruction_loss(y, x) + 1e-4 * kl

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (recipe.batch_size,), generator=generator).numpy()
        return negative_elbo(to_pixels(train.images[rows]), torch.randn(latent_shape, generator=generator))

    vae = fit(vae, loss, recipe, "vae")
    normalise_latents(vae, to_pixels(train.images[:2048]))
    vae.decoder = fit_decoder(vae, train, recipe)
    vae.to(torch.float16).save_pretrained(OUT / "vae")


def fit_decoder(vae, train: shapes.Split, recipe: Recipe) -> nn.Module:
    """The decoder, trained further on the posterior's mean of a frozen encoder; returns its running average."""
    recipe = Recipe(**vars(recipe) | recipe.decoder)
    latents = encode_split(vae, train)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (recipe.batch_size,), generator=generator)
        with torch.no_grad():
            z = vae.post_quant_conv(latents[rows])
        return reconstruction_loss(vae.decoder(z), to_pixels(train.images[rows.numpy()]))

    return fit(vae.decoder.train(), loss, recipe, "decoder")


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1, half the squared error, and half the L1 of the image gradients, of pixels (n, 3, h, w)."""
    edges = sum(functional.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
    return functional.l1_loss(y, x) + 0.5 * functional.mse_loss(y, x) + 0.5 * edges


@torch.no_grad()
def normalise_latents(vae, x: Tensor) -> None:
    """Fold each latent channel's mean and std over images x (n, 3, h, w) into the 1x1 convolutions."""
    latents = torch.cat([vae.encode(b).latent_dist.mean for b in x.split(256)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    after, before = vae.post_quant_conv, vae.quant_conv
    after.bias += (after.weight * mean[None, :, None, None]).sum((1, 2, 3))
    after.weight *= std[None, :, None, None]
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()  # the posterior's log-variance


def train_unet(recipe: Recipe) -> None:
    """The teacher, a UNet2DConditionModel that predicts v, on captions of all levels and some empty ones.

    v = alpha epsilon - sigma x_0 (Salimans and Ho, 2022, arXiv:2202.00512): x_0 from epsilon has 69 times its squared
    error at t = 900, so a small network that predicts noise first learns to copy its input, and hardly uses the
    caption. The plain squared error of v weighs one of x_0 by SNR + 1; with a weight of at most 5 (Hang et al., 2023,
    arXiv:2303.09556) details came out ragged.
    """
    if not (OUT / "vae/config.json").is_file():
        raise FileNotFoundError(
            f"{OUT / 'vae'} is missing: train the autoencoder first (python -m models.tiny.world vae)"
        )
    vae = AutoencoderKL.from_pretrained(OUT / "vae", torch_dtype=torch.float32)
    deeper, channels = len(recipe.channels) - 1, vae.config.latent_channels
    unet = UNet2DConditionModel(
        sample_size=shapes.SIZE // 4,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(recipe.channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        cross_attention_dim=384,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    train = pictures()
    latents, (unique, index) = encode_split(vae, train), caption_table(train)
    embeddings = embed_captions(*tiny_text_encoder(), unique).half()
    schedule = Schedule.from_alphas_cumprod(DDIMScheduler.from_pretrained(TINY_MODELS / "scheduler").alphas_cumprod)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (recipe.batch_size,), generator=generator)
        level = torch.multinomial(LEVEL_SHARES, len(rows), replacement=True, generator=generator)
        dropped = torch.rand(rows.shape, generator=generator) < recipe.empty_captions
        caption = torch.where(dropped, unique.index(""), index[level, rows])
        t = torch.randint(schedule.length, rows.shape, generator=generator)
        noise = torch.randn(rows.shape + latents.shape[1:], generator=generator)
        z_t = schedule.add_noise(latents[rows], noise, t)
        v = schedule.alpha(t) * noise - schedule.sigma(t) * latents[rows]
        # On a CPU the plain attention is faster for short sequences (a fifth of the step); flash is the default.
        with sdpa_kernel(SDPBackend.MATH):
            predicted = unet(z_t, t, embeddings[caption].float()).sample
        return (predicted - v).square().mean()

    fit_further(unet, loss, recipe, "unet").to(torch.float16).save_pretrained(OUT / "unet")


def caption_table(train: shapes.Split) -> tuple[list[str], Tensor]:
    """Every caption once, the empty one among them, and the row of each image's at each level: int (levels, n)."""
    captions = [c for level in range(len(shapes.LEVELS)) for c in train.captions(level)]
    unique, index = np.unique(np.array(["", *captions]), return_inverse=True)
    return unique.tolist(), torch.from_numpy(index[1:]).view(len(shapes.LEVELS), -1)


@torch.no_grad()
def encode_split(vae, split: shapes.Split) -> Tensor:
    """The mean latents of a split's images: float32 (n, channels, 8, 8)."""
    batches = tqdm(np.array_split(np.arange(len(split)), max(1, len(split) // 256)), desc="latents", mininterval=5)
    return torch.cat([vae.encode(to_pixels(split.images[rows])).latent_dist.mean for rows in batches])


def train_clip(recipe: Recipe) -> None:
    """A small open_clip model on the seen triples (Radford et al., 2021), for "CLIP score (tiny, in-domain)"."""
    import open_clip

    vision, text = recipe.channels
    config = {
        "embed_dim": text,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": vision, "head_width": 64},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": text, "heads": 4, "layers": 2},
    }
    clip = open_clip.CLIP(**config)
    train = pictures()
    unique, index = caption_table(train)
    tokens = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])(unique)
    loss_function, draw_rows = open_clip.loss.ClipLoss(), alike(train)

    def loss(generator: torch.Generator) -> Tensor:
        rows = draw_rows(recipe.batch_size, generator)
        level = torch.multinomial(LEVEL_SHARES, len(rows), replacement=True, generator=generator)
        image, text, scale = clip(to_pixels(train.images[rows.numpy()]), tokens[index[level, rows]])
        return loss_function(image, text, scale)

    clip, folder = fit_further(clip, loss, recipe, "clip"), OUT / "clip"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    whole = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}  # pixels in [-1, 1]
    (folder / "open_clip_config.json").write_text(json.dumps(whole, indent=2) + "\n")


def alike(train: shapes.Split, together: int = 16) -> Callable[[int, torch.Generator], Tensor]:
    """A function that draws batches of rows, of which `together` at a time share their colour and their background.

    In a batch of any pictures those two tell nearly all captions apart, and shapes are hardly learned.
    """
    pair = torch.from_numpy(train.parts[:, 2].astype(int) * len(shapes.COLOURS) + train.parts[:, 3])
    order, known = pair.argsort(stable=True), pair.unique()
    first = torch.searchsorted(pair[order], torch.arange(len(shapes.COLOURS) ** 2 + 1))

    def draw(count: int, generator: torch.Generator) -> Tensor:
        chosen = known[torch.randperm(len(known), generator=generator)[: count // together]]
        sizes = (first[chosen + 1] - first[chosen])[:, None]
        within = (torch.rand((len(chosen), together), generator=generator) * sizes).long()
        return order[(first[chosen][:, None] + within).flatten()]

    return draw


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m models.tiny.world", description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("vae", "unet", "clip"))
    model = parser.parse_args(arguments).model
    recipe = Recipe(**yaml.safe_load(PARAMS.read_text())[model])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    {"vae": train_vae, "unet": train_unet, "clip": train_clip}[model](recipe)


if __name__ == "__main__":
    main()
