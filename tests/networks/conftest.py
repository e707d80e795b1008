"""A second teacher, which predicts epsilon: Stable Diffusion 1.5's classes with random weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from splam.networks.teacher import Teacher, load_teacher
from tests.standins.sd import write_pipeline


def shaken(student: torch.nn.Module) -> torch.nn.Module:
    """The student after some training: every trainable weight moved."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return student.eval()


def stock_pipeline(folder: Path) -> StableDiffusionPipeline:
    """A folder as anybody opens it."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def changed(folder: Path, copy: Path, file: str, **values) -> Path:
    """A copy of a pipeline with entries of one of its configurations changed."""
    shutil.copytree(folder, copy)
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | values))
    return copy


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    """A pipeline's folder as Stable Diffusion 1.5 has it: CLIP, PNDM, 64-pixel images."""
    folder = tmp_path_factory.mktemp("sd") / "pipeline"
    write_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def sd_teacher(sd_folder) -> Teacher:
    """It, loaded."""
    return load_teacher(sd_folder)


@pytest.fixture(params=["teacher", "sd_teacher"])
def any_teacher(request) -> Teacher:
    """A teacher that predicts v, and one that predicts epsilon."""
    return request.getfixturevalue(request.param)
