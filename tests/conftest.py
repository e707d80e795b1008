"""Shared fixtures: a schedule in float64, and a world small enough to train in seconds."""

import os
import shutil

# Before torch is imported, here and in every process that a test starts: the workers of pytest share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from splam.method.schedule import Schedule
from splam.networks.teacher import TINY_MODELS, Teacher, assemble_teacher, load_teacher
from tests.standins.sd import TINY, networks, write_coco, write_laion


@pytest.fixture
def schedule() -> Schedule:
    """Stable Diffusion's schedule in float64."""
    scheduler = DDIMScheduler.from_pretrained(TINY_MODELS / "scheduler")
    return Schedule.from_alphas_cumprod(scheduler.alphas_cumprod.double())


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of test tensors."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    """A diffusers pipeline with random weights, of the tiny world's classes: 32-pixel images, latents (4, 8, 8)."""
    folder = tmp_path_factory.mktemp("teacher") / "pipeline"
    torch.manual_seed(0)
    assemble_teacher("tiny", folder, **networks(TINY))
    return folder


@pytest.fixture(scope="session")
def teacher(teacher_folder) -> Teacher:
    """The small pipeline, loaded in float32."""
    return load_teacher(teacher_folder)


@pytest.fixture(scope="session")
def laion_folder(tmp_path_factory) -> Path:
    """Three shards of 24 samples as img2dataset writes them, with a broken image and a missing caption."""
    folder = tmp_path_factory.mktemp("laion")
    write_laion(folder)
    return folder


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory) -> Path:
    """COCO's files of val2014 (40 images) and val2017 (20 images), two captions an image."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder)
    return folder


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, headless."""
    sync_api = pytest.importorskip("playwright.sync_api")
    options = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium refuses root otherwise
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
