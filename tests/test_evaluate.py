"""Evaluation over test sets of any kind: references seen in batches, lazy embeddings, resized samples, the floors."""

import numpy as np
import pytest
import torch

from splam import evaluate
from splam.data.testsets import HeldOut
from splam.evaluate import (
    Measure,
    PromptEmbeddings,
    References,
    dataset_floors,
    in_batches,
    make_references,
    native_size,
    prompt_embeddings,
    reconstructions,
)
from splam.metrics import FeatureStatistics, array_hash
from splam.params import Params, compose

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 48, 48, 3), np.uint8)


class Clip:
    """Stands in for a CLIP model: two numbers of an image, and of a caption."""

    def image_features(self, images):
        return np.stack([images.mean((1, 2, 3)), np.ones(len(images))], 1)

    def text_features(self, captions):
        return np.stack([[len(caption) for caption in captions], np.ones(len(captions))], 1)


def extract(images):
    """Stands in for a feature network: three numbers of an image."""
    return np.stack([images[..., i].mean((1, 2)) for i in range(3)], 1).astype(np.float32)


def held_out(independent: bool) -> HeldOut:
    prompts = [f"image {i}" * (i + 1) for i in range(9)]
    references = lambda: iter(np.split(IMAGES, 4))  # noqa: E731
    real = lambda size: iter([evaluate.resize(IMAGES[:4], size), evaluate.resize(IMAGES[4:9], size)])  # noqa: E731
    return HeldOut("a-set", prompts, 48, len(IMAGES), references, real, independent)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(evaluate, "load_features", lambda name: extract)
    monkeypatch.setattr(evaluate, "load_clip", lambda source: Clip())


@pytest.fixture
def params():
    return Params.model_validate(compose("smoke", overrides=["evaluation.batch_size=4"]))


def test_references_are_seen_in_batches_and_named_as_a_whole(stand_ins, teacher, tmp_path):
    made = make_references(teacher, held_out(True), tmp_path, "inception")
    assert made.hashes["references"] == array_hash(IMAGES) and (made.features == extract(IMAGES)).all()
    made.save(tmp_path / "a.npz")
    loaded = References.load(tmp_path / "a.npz")
    assert (loaded.protocol, loaded.size, loaded.prompts) == ("a-set", 48, made.prompts)
    assert torch.equal(prompt_embeddings(teacher, loaded), teacher.embed(made.prompts))


def test_large_embeddings_are_made_when_asked_for(stand_ins, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "STORED_EMBEDDINGS", 1000)
    made = make_references(teacher, held_out(True), tmp_path, "inception")
    lazy = prompt_embeddings(teacher, made)
    assert made.captions.nbytes == 0 and isinstance(lazy, PromptEmbeddings) and len(lazy) == 9
    assert torch.equal(lazy[2:4], teacher.embed(made.prompts[2:4]))


def test_samples_are_resized_as_they_are_drawn(params):
    def draw(rows, seeds):
        assert len(seeds) == rows.stop - rows.start <= 4
        return torch.from_numpy(IMAGES[rows])

    assert (in_batches(draw, params, 10, "x") == IMAGES[:10]).all()
    assert (in_batches(draw, params, 10, "x", 48) == IMAGES[:10]).all()
    assert (in_batches(draw, params, 10, "x", 24) == evaluate.resize(IMAGES[:10], 24)).all()


def test_reconstructions_are_made_at_the_teachers_size(teacher):
    assert native_size(teacher) == 32
    made = reconstructions(teacher, held_out(True), 4)
    assert made.shape == (9, 48, 48, 3) and made.dtype == np.uint8
    pixels = evaluate.to_pixels(evaluate.resize(IMAGES[:4], 32))
    assert (made[:4] == evaluate.resize(teacher.decode(teacher.encode(pixels)).numpy(), 48)).all()


@pytest.mark.parametrize("independent", [True, False])
def test_floors_leave_out_what_compares_images_with_themselves(stand_ins, teacher, tmp_path, independent):
    held = held_out(independent)
    references = make_references(teacher, held, tmp_path, "inception")
    measure = Measure(references, FeatureStatistics.of(references.features), extract, Clip())
    rows = dataset_floors(teacher, measure, held, "unseen", 4, small=5)
    real, real_small, rebuilt, rebuilt_small, shuffled = rows
    assert [row["method"] for row in rows[1:4]] == ["Real images", "VAE reconstruction", "VAE reconstruction"]
    assert [row["dataset"] for row in (real, real_small, rebuilt_small)] == ["unseen", "unseen-small", "unseen-small"]
    assert [row["images"] for row in rows] == [9, 5, 9, 5, 9]
    assert (real["fid"] is None) == (real_small["recall"] is None) == (not independent)
    assert rebuilt["fid"] > 0 and real["clip_score"] > 0 and shuffled["fid"] is None
