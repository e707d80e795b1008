"""Endless streams of training images or latents, and where the randomness of an iteration comes from."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from splam.config import LaionData, ShapesData
from splam.data import shapes
from splam.data.images import to_pixels
from splam.data.latents import LatentShards


def iteration_generator(seed: int, iteration: int) -> torch.Generator:
    """The source of all randomness of one iteration, so that a resumed run needs no saved RNG state."""
    digest = hashlib.sha256(f"{seed}/{iteration}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def batch_rows(iteration: int, batch: int, pool: int, seed: int) -> Tensor:
    """Rows of a pool for one global batch: without replacement until the pool is used up, then reshuffled."""
    positions = torch.arange(iteration * batch, (iteration + 1) * batch)
    epochs = positions // pool
    order = {int(e): torch.randperm(pool, generator=iteration_generator(seed, -1 - int(e))) for e in epochs.unique()}
    return torch.stack([order[int(e)][p % pool] for e, p in zip(epochs, positions, strict=True)])


class Stream(Protocol):
    """A deterministic line of batches that can be entered anywhere."""

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, list[str] | Tensor]]:
        """Batches from number `start` on, without end, of this process or of all together.

        Pixels (n, 3, h, w) in [-1, 1] with n captions, or scaled latents (n, c, h, w) with embeddings (n, tokens, d).
        """


class ShapesStream:
    """The tiny world's training images: every image once, then in another order; captions of all levels."""

    def __init__(self, split: shapes.Split, batch_size: int, seed: int):
        """batch_size: of all processes together."""
        self.split, self.batch_size, self.seed = split, batch_size, seed

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
        """Batches from number `start` on, without end: pixels (n, 3, 32, 32), and n captions."""
        for number in itertools.count(start):
            part = self.split[batch_rows(number, self.batch_size, len(self.split), self.seed).numpy()]
            levels = shapes.draw_levels(np.random.default_rng((self.seed, number)), len(part))
            yield to_pixels(part.images), part.captions(levels)


class LatentStream:
    """A store of latents: every image once, then in another order."""

    def __init__(self, store: LatentShards, batch_size: int, seed: int):
        """batch_size: of all processes together. Raises DataError at once if files of the store are missing."""
        self.store, self.batch_size, self.seed, self.count = store, batch_size, seed, len(store)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from number `start` on, without end: latents (n, c, h, w), and embeddings (n, tokens, d)."""
        for number in itertools.count(start):
            yield self.store.rows(batch_rows(number, self.batch_size, self.count, self.seed).tolist())


def image_stream(
    data: ShapesData | LaionData, folder: Path, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
) -> Stream:
    """The training images of either kind of data for one of `ranks` processes; folder: what the data stage wrote."""
    if data.kind == "shapes":
        return ShapesStream(shapes.Split.load(folder / "train"), batch_size * ranks, seed)
    from splam.data.shards import LaionStream  # loads webdataset

    return LaionStream(data, batch_size, seed, rank, ranks)
