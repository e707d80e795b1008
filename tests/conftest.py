"""Shared fixtures: a schedule in float64, and a world small enough to train in seconds."""

import pytest
import torch

from splam.models import tiny_scheduler
from splam.schedule import Schedule


@pytest.fixture
def schedule() -> Schedule:
    """Stable Diffusion's schedule in float64."""
    return Schedule.from_alphas_cumprod(tiny_scheduler().alphas_cumprod.double())


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of test tensors."""
    return torch.Generator().manual_seed(0)
