"""Students: trainable copies of the teacher's UNet, and how gamma or w is fed to them."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from splam.config import Run
from splam.method.loss import Network
from splam.method.schedule import to_epsilon
from splam.method.subpath import equal_snr_time, gamma_embedding
from splam.networks.teacher import Teacher, float32_output

COND_PROJ, GAMMA_FILE = "time_embedding.cond_proj.weight", "gamma.safetensors"  # gamma's only weights, and their file
# diffusers' train_lcm_distill_lora_sd_wds.py
LORA_TARGETS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
]


def condition_width(run: Run) -> int | None:
    """Width of the UNet's time_cond_proj input while it trains; None if nothing is fed in."""
    fed = run.method == "lcm_star" or (run.method == "splam" and run.gamma_conditioning == "embedding")
    return run.training.condition_width if fed else None


def make_student(teacher_unet: nn.Module, run: Run) -> nn.Module:
    """A copy of the teacher's UNet to train, which gives the same output at step 0.

    Of one with an adapter (peft's), the adapter alone is trained, and what feeds in gamma or w, which starts at zero.
    """
    width, weights, rank = condition_width(run), teacher_unet.state_dict(), run.training.lora_rank
    if width is None:
        student = copy.deepcopy(teacher_unet)
    else:
        cond_proj = torch.zeros(weights["time_embedding.linear_1.weight"].shape[1], width)
        student = unet_like(teacher_unet, width, weights | {COND_PROJ: cond_proj})
    student.train().requires_grad_(not run.adapter)
    if run.adapter:
        from peft import LoraConfig

        student.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS))
        if width is not None:
            student.time_embedding.cond_proj.requires_grad_(True)
    return student


def unet_like(unet: nn.Module, width: int | None, weights: dict[str, Tensor]) -> nn.Module:
    """A UNet's architecture, with a time_cond_proj input of this width or (None) without one, and these weights."""
    # By keyword: from_config drops a changed entry that the teacher's config.json left at its default.
    made = float32_output(type(unet).from_config(unet.config, time_cond_proj_dim=width))
    made.load_state_dict(weights)
    return made.eval().to(unet.device, memory_format=torch.channels_last)


def student_network(
    unet: nn.Module, captions: Tensor, run: Run, teacher: Teacher, guidance_scale: Tensor | None = None
) -> Network:
    """A student in training as a network of splam.method, fed e(gamma) - e(1) (SPLAM), w (n,) (LCM*) or nothing."""
    width, schedule = condition_width(run), teacher.schedule

    def network(z: Tensor, sigma: Tensor, t: Tensor, gamma: Tensor) -> Tensor:
        alpha, scale, time, condition = schedule.alpha(t), torch.ones_like(sigma), t, None
        if run.input_scaling == "unit_variance":  # the scale of a latent at gamma = 1, where it changes nothing
            scale = (alpha**2 + sigma**2).rsqrt()
        if run.gamma_conditioning == "equal_snr_time":  # SPLAM-tau: the scaled point is a latent of that time
            time = equal_snr_time(alpha, sigma, schedule)
        if run.method == "lcm_star":
            condition = guidance_embedding(guidance_scale, width).to(z)
        elif width is not None:
            condition = gamma_embedding(gamma, width, run.training.gamma_max_frequency).to(z)
        output = teacher.call(unet, z * scale, time, captions, condition)
        return to_epsilon(output, z * scale, alpha * scale, sigma * scale, teacher.prediction_type)

    return network


def published_network(unet: nn.Module, captions: Tensor, run: Run, teacher: Teacher) -> Network:
    """A published student (Eq. 19) as a network of splam.method: it knows no gamma, and LCM* is fed the run's w."""
    if run.method != "lcm_star":
        return teacher.network(captions, unet)
    return student_network(unet, captions, run, teacher, torch.full((len(captions),), run.guidance_scale))


def guidance_embedding(guidance_scale: Tensor, width: int) -> Tensor:
    """LCM*'s embedding of w, (n,) to (n, width) on the CPU: diffusers' own, fed w - 1 as its pipelines do."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.get_guidance_scale_embedding(None, guidance_scale.float().cpu() - 1, width)


def load_unet(folder: Path, like: nn.Module) -> nn.Module:
    """A UNet's folder as a frozen float32 network, of the same class and on the same device as `like`."""
    unet = float32_output(type(like).from_pretrained(folder, torch_dtype=torch.float32))
    unet.register_to_config(_name_or_path="")  # or else what is saved names a folder of this machine
    return unet.eval().requires_grad_(False).to(like.device, memory_format=torch.channels_last)


def save_gamma(student: nn.Module, run: Run, folder: Path) -> None:
    """Write gamma's weights, if there are any, as folder/gamma.safetensors: the published network lacks them."""
    if run.method == "splam" and condition_width(run) is not None:
        save_file({COND_PROJ: student.state_dict()[COND_PROJ].contiguous()}, folder / GAMMA_FILE)


def load_student(folder: Path, teacher_unet: nn.Module, run: Run) -> nn.Module:
    """The target network of a finished run (build/runs/RUN) as it was trained, gamma's weights included; frozen."""
    if not (folder / "pipeline/unet").is_dir():
        raise FileNotFoundError(f"{folder} holds no student: distil it first (dvc repro distill@{folder.name})")
    student = load_unet(folder / "pipeline/unet", teacher_unet)
    if run.method == "splam" and condition_width(run) is not None:
        weights = student.state_dict() | load_file(folder / GAMMA_FILE)
        student = unet_like(student, condition_width(run), weights).requires_grad_(False)
    return student
