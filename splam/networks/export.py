"""Students written as stock pipelines and LoRA files, their model cards, and the authors' released weights read."""

import copy
from pathlib import Path

import torch
from torch import nn

from splam.config import Run
from splam.networks.student import COND_PROJ, guidance_embedding, unet_like
from splam.networks.teacher import open_pipeline, student_scheduler


def published_unet(student: nn.Module, run: Run) -> nn.Module:
    """The network that users get: gamma's weights, idle at gamma = 1 (4.2), are dropped, an adapter is merged."""
    published = copy.deepcopy(student).eval()
    if run.adapter:
        published.fuse_lora()
        published.unload_lora()
    if run.method == "splam" and published.config.time_cond_proj_dim is not None:
        weights = published.state_dict()
        del weights[COND_PROJ]
        return unet_like(published, None, weights)
    return published


def export_pipeline(unet: nn.Module, teacher_folder: Path, out: Path) -> None:
    """Write a student as a folder that stock diffusers opens: the teacher's, with this UNet and LCMScheduler."""
    pipeline = open_pipeline(teacher_folder, unet=unet)
    pipeline.scheduler = student_scheduler(pipeline.scheduler.config)
    pipeline.save_pretrained(out)


def save_lora(student: nn.Module, folder: Path) -> None:
    """Write a LoRA student's adapter as pytorch_lora_weights.safetensors, for load_lora_weights.

    It is all of a student but for LCM*, whose way in for w no adapter holds.
    """
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    # Under peft's names: diffusers' own are of the attention layers alone, and of a mixture it loads only the others.
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(student))


def write_card(folder: Path, run: Run, teacher: str, data: str, licence: str | None = None) -> None:
    """Write the model card, folder/README.md; teacher, data, licence: as the parameters name them."""
    from huggingface_hub import ModelCard, ModelCardData

    about = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": [run.method, "distillation"]}
    facts = {"run": run, "teacher": teacher, "data": data, "licence": licence}
    template = str(Path(__file__).with_name("card.md.j2"))
    card = ModelCard.from_template(ModelCardData(**about, model_name=run.name), template_path=template, **facts)
    card.save(folder / "README.md")


def load_authors_unet(folder: Path) -> nn.Module:
    """The UNet of the paper's authors (weights beside config.json) without gamma: what they feed it at 1 is folded."""
    from diffusers import UNet2DConditionModel

    released = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
    weights, linear = released.state_dict(), released.time_embedding.linear_1
    if COND_PROJ not in weights:
        raise ValueError(f"{folder} has no {COND_PROJ}: it is no released SPLAM UNet; open it as any other")
    cond_proj = weights.pop(COND_PROJ).double()
    constant = guidance_embedding(torch.ones(1), cond_proj.shape[1])[0].double()  # e(1), which is not zero
    weights["time_embedding.linear_1.bias"] = linear.bias.double() + linear.weight.double() @ (cond_proj @ constant)
    return unet_like(released, None, weights)
