"""Endless streams of training images or latents, and where the randomness of an iteration comes from."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from splam.config import PictureData, ShapesData
from splam.data import shapes
from splam.data.latents import LatentStore
from splam.data.pictures import Pictures

Samples = tuple[Tensor, list[str] | Tensor]
"""Pixels (n, 3, h, w) in [-1, 1] with n captions, or scaled latents (n, c, h, w) with embeddings (n, tokens, d)."""


def iteration_generator(seed: int, iteration: int) -> torch.Generator:
    """The source of all randomness of one iteration, so that a resumed run needs no saved RNG state."""
    digest = hashlib.sha256(f"{seed}/{iteration}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, pool: int) -> Tensor:
    """The order (pool,) of an epoch."""
    return torch.randperm(pool, generator=iteration_generator(seed, -1 - epoch))


def batch_rows(number: int, batch: int, pool: int, seed: int) -> Tensor:
    """Rows (batch,) of a pool, number after number: without replacement until it is used up, then reshuffled."""
    positions = range(number * batch, (number + 1) * batch)
    return torch.stack([epoch_order(seed, position // pool, pool)[position % pool] for position in positions])


@dataclass(frozen=True)
class Stream:
    """Every sample once, then in another order, without end; a batch depends on its number alone.

    workers: processes that read ahead, 0 to read in this one.
    """

    samples: shapes.Split | Pictures | LatentStore
    batch_size: int
    seed: int
    workers: int = 0

    def batches(self, start: int = 0, stride: int = 1) -> Iterator[Samples]:
        """Every stride-th batch, from number `start` on."""
        return iter(
            DataLoader(
                self.samples,
                batch_sampler=map(self._picks, itertools.count(start, stride)),
                collate_fn=tuple,  # as it is
                num_workers=self.workers,
                multiprocessing_context="spawn" if self.workers else None,  # forking is not safe beside CUDA or threads
                generator=torch.Generator(),  # or else the loader draws its seed from torch's global source
            )
        )

    def _picks(self, number: int) -> list[tuple[int, str]]:
        """The rows of a batch, and a seed for each."""
        rows = batch_rows(number, self.batch_size, len(self.samples), self.seed).tolist()
        return [(row, f"{self.seed}/{number * self.batch_size + i}") for i, row in enumerate(rows)]


def training_images(data: ShapesData | PictureData, folder: Path) -> shapes.Split | Pictures:
    """The training images of any kind of data; folder: what the data stage wrote."""
    return shapes.Split.load(folder / "train.npy") if data.kind == "shapes" else Pictures(data, folder, "training")


def preview(data: ShapesData | PictureData, folder: Path, count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """The first images of a training from images, uint8 (count, h, w, 3), with their captions."""
    pixels, captions = next(Stream(training_images(data, folder), count, seed).batches())
    return np.rint((pixels.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8), captions


def training_facts(data: ShapesData | PictureData) -> dict[str, Any]:
    """The settings that the images of a training depend on."""
    return data.model_dump(mode="json", exclude={"workers", "max_broken_share", "test_images", "coco"})
