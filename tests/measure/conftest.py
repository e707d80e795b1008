"""A test set of random images, and stand-ins for the networks that measure."""

from pathlib import Path

import numpy as np
import pytest

from splam.config import Params, parse
from splam.data.images import resize
from splam.data.testsets import HeldOut
from splam.measure import evaluate, fid
from splam.measure.measure import make_references
from splam.profile import compose

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 48, 48, 3), np.uint8)
SMALL = ["batch_size=4", "small_images=5", "curve_images=4", "steps=[1,2]", "curve_steps=2", "teacher_steps=3"]


class Clip:
    """Stands in for a CLIP model: two numbers of an image, and of a caption."""

    def __init__(self, name: str = "CLIP score (a stand-in)", brightness: float = 1.0):
        self.name, self.brightness = name, brightness

    def image_features(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self.brightness * images.mean((1, 2, 3)), np.full(len(images), 100.0)], 1)

    def text_features(self, captions: list[str]) -> np.ndarray:
        return np.stack([[10.0 * len(caption) for caption in captions], np.full(len(captions), 100.0)], 1)


CLIPS = {"clip_score": Clip()}


def extract(images: np.ndarray) -> np.ndarray:
    """Stands in for a feature network: three numbers of an image."""
    return np.stack([images[..., i].mean((1, 2)) for i in range(3)], 1).astype(np.float32)


def held_out(independent: bool = True) -> HeldOut:
    """Nine captions of different lengths, 24 references, measured at 48 pixels."""
    prompts = [f"image {i}" * (i + 1) for i in range(9)]
    compared = range(24, 48) if independent else range(24)
    return HeldOut("a-set", prompts, 48, range(9), compared, lambda i, size: resize(IMAGES[[i % 24]], size)[0])


@pytest.fixture
def stand_ins(monkeypatch):
    """The networks that measure, replaced wherever they would be loaded."""
    for module in (fid, evaluate):
        monkeypatch.setattr(module, "load_features", lambda name, device="cpu": extract)
    monkeypatch.setattr(evaluate, "load_scorers", lambda evaluation, device="cpu": CLIPS)


@pytest.fixture
def params() -> Params:
    """The smoke profile with a handful of images."""
    return small_params()


def small_params(*overrides: str) -> Params:
    """The same, with more overrides."""
    return parse(compose("smoke", [*(f"evaluation.{text}" for text in SMALL), *overrides]), "smoke")


@pytest.fixture
def built(stand_ins, teacher, teacher_folder, tmp_path) -> Path:
    """A build folder with a teacher and the references of the unseen set."""
    (tmp_path / "teacher").symlink_to(teacher_folder)
    make_references(teacher, held_out(), CLIPS, "inception").save(tmp_path / "references/unseen.npz")
    return tmp_path
