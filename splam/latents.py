"""The latents stage: training images and captions, encoded once by the teacher, for training.source: latents.

The order and the crops are those of a training that reads the images (splam.online.image_stream); splam.data.latents
writes and reads the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from splam.data.latents import LatentShards, encode_shards
from splam.metrics import file_hash
from splam.models import Teacher
from splam.online import image_stream
from splam.params import Params, ParamsError
from splam.sampling import draw_noise, generators

ENCODERS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")  # parts of a pipeline's folder
ELSEWHERE = {"coco": True, "test_images": True}  # what the data section says of the test sets


def encode_latents(params: Params, teacher: Teacher, data: Path, folder: Path) -> None:
    """Encode params.latents.images images into `folder`; data: what the data stage wrote.

    A stopped run goes on. Raises ParamsError where the profile does not say how many, and as encode_shards does.
    """
    settings = params.latents
    if settings is None:
        raise ParamsError(f"profile {params.profile} has no section latents: set latents.images and latents.batch_size")
    stream = image_stream(params.data, data, settings.batch_size, params.seed)

    def encode(pixels: Tensor, number: int) -> Tensor:
        mean, deviation = teacher.encode_distribution(pixels)
        if params.training.latents == "mean":
            return mean.cpu()
        seeds = np.random.default_rng((params.seed, number)).integers(2**62, size=len(mean)).tolist()
        return (mean + deviation * draw_noise(generators(seeds), mean.shape[1:], mean.device)).cpu()

    def embed(captions: list[str]) -> Tensor:
        return teacher.embed(captions).cpu()

    facts, files = facts_of(params, teacher.folder, data), settings.batches_per_file
    encode_shards(stream.batches, encode, embed, folder, settings.batches, facts, files, settings.dtype, replace=True)


def facts_of(params: Params, teacher: Path, data: Path) -> dict[str, Any]:
    """What latents depend on: the settings, and the hashes of the teacher's encoders and of the data."""
    encoders = sorted(path for part in ENCODERS for path in (teacher / part).rglob("*") if path.is_file())
    images = sorted((data / "train").iterdir()) if params.data.kind == "emoji" else [data / "manifest.json"]
    return {
        "seed": params.seed,
        "batch_size": params.latents.batch_size,
        "of": params.training.latents,
        "data": params.data.model_dump(mode="json", exclude=ELSEWHERE),
        "teacher": {str(path.relative_to(teacher)): file_hash(path) for path in encoders},
        "images": {path.name: file_hash(path) for path in images},
    }


def write_summary(latents: LatentShards, path: Path) -> dict[str, Any]:
    """Write, for DVC to compare, what `latents` holds and the sizes of its files; returns it."""
    first, embedding = latents.rows([0])
    summary = {
        "images": len(latents),
        "bytes": sum(file.stat().st_size for file in latents.files),
        "latent": list(first.shape[1:]),
        "embedding": list(embedding.shape[1:]),
        "plan": latents.plan,
        "files": {file.name: file.stat().st_size for file in latents.files},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return summary
