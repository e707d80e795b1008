"""Endless streams of training images or latents, and where the randomness of an iteration comes from."""

import hashlib
import itertools
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from splam.config import PictureData, ShapesData
from splam.data import shapes
from splam.data.images import DataError, to_pixels
from splam.data.latents import LatentShards
from splam.data.pictures import AGAIN, open_source, training_counts
from splam.data.samples import Sample, Tally, decoded, is_held_out, usable

AHEAD = 2  # batches of latents that are read while others are trained on
T = TypeVar("T")


def iteration_generator(seed: int, iteration: int) -> torch.Generator:
    """The source of all randomness of one iteration, so that a resumed run needs no saved RNG state."""
    digest = hashlib.sha256(f"{seed}/{iteration}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, pool: int) -> Tensor:
    """The order (pool,) of an epoch."""
    return torch.randperm(pool, generator=iteration_generator(seed, -1 - epoch))


def batch_rows(iteration: int, batch: int, pool: int, seed: int) -> Tensor:
    """Rows of a pool for one global batch: without replacement until the pool is used up, then reshuffled."""
    positions = torch.arange(iteration * batch, (iteration + 1) * batch)
    rows = [epoch_order(seed, position // pool, pool)[position % pool] for position in positions.tolist()]
    return torch.stack(rows)


def ahead(make: Callable[[int], T], start: int) -> Iterator[T]:
    """make(start), make(start + 1), and so on without end, AHEAD of them made by a thread before they are asked for."""
    with ThreadPoolExecutor(1) as thread:
        made = deque(thread.submit(make, number) for number in range(start, start + AHEAD))
        for number in itertools.count(start + AHEAD):
            made.append(thread.submit(make, number))
            yield made.popleft().result()


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
    """A store of latents: every image once, then in another order, split over ranks."""

    def __init__(self, store: LatentShards, batch_size: int, seed: int, rank: int = 0, ranks: int = 1):
        """batch_size: of this process. Raises DataError at once if files of the store are missing."""
        self.store, self.count, self.seed = store, len(store), seed
        self.whole, self.share = batch_size * ranks, slice(rank * batch_size, (rank + 1) * batch_size)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from number `start` on, without end: latents (n, c, h, w), and embeddings (n, tokens, d)."""

        def read(number: int) -> tuple[Tensor, Tensor]:
            return self.store.rows(batch_rows(number, self.whole, self.count, self.seed)[self.share].tolist())

        return ahead(read, start)


class PictureStream:
    """The training share of shards or of a folder, shuffled, endless, split over ranks.

    The order of samples is a function of the arguments and settings.workers, and a batch is fixed before its images are
    decoded. A stream that is entered at batch n passes over whole parts, by their counts, reads the beginning of one
    without decoding it, and goes on with the same bits. Raises DataError for parts that are not those of the data
    stage, and while reading beyond settings.max_broken_share.
    """

    def __init__(self, settings: PictureData, folder: Path, batch_size: int, seed: int, rank: int = 0, ranks: int = 1):
        """folder: what the data stage wrote; batch_size: of this process."""
        self.settings, self.batch_size, self.seed, self.rank, self.ranks = settings, batch_size, seed, rank, ranks
        self.source = open_source(settings)
        self.sizes = training_counts(self.source, folder)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
        """Batches from number `start` on, without end: pixels float32 (b, 3, h, w) in [-1, 1], and b captions."""
        workers = self.settings.workers
        loader = DataLoader(
            _From(self, start),
            batch_size=None,
            num_workers=workers,
            collate_fn=tuple,
            multiprocessing_context="spawn" if workers else None,  # forking is not safe beside CUDA or threads
            generator=torch.Generator(),  # or else the loader draws its seed from torch's global source
        )
        for images, captions in loader:
            yield to_pixels(images.numpy()), captions

    def slot(self, slot: int, slots: int, skip: int) -> Iterator[tuple[Tensor, list[str]]]:
        """One slot's batches after the first `skip`: uint8 (b, h, w, 3), and captions.

        A broken image is replaced by a good one of its batch, a batch of broken ones by the next batch.
        """
        tally, size, waiting = Tally(self.settings.max_broken_share), self.settings.resolution, 0
        samples = self._samples(slot, slots, skip * self.batch_size, tally)
        while True:
            batch = list(itertools.islice(samples, self.batch_size))
            pairs = [(decoded(sample, size, self.settings, tally, place), sample.caption) for sample, place in batch]
            good = [pair for pair in pairs if pair[0] is not None]
            waiting += 1
            if good:
                spare = itertools.cycle(good)
                images, captions = zip(*(p if p[0] is not None else next(spare) for p in pairs), strict=True)
                yield from itertools.repeat((torch.from_numpy(np.stack(images)), list(captions)), waiting)
                waiting = 0

    def _samples(self, slot: int, slots: int, skip: int, tally: Tally) -> Iterator[tuple[Sample, tuple[float, float]]]:
        """Samples after the first `skip`, and their crops: every slots-th part from `slot` on, in the epoch's order."""
        parts = self.source.parts
        for position in itertools.count(slot, slots):
            epoch, index = divmod(position, len(parts))
            part = parts[epoch_order(self.seed, epoch, len(parts))[index]]
            if skip >= self.sizes[part]:
                skip -= self.sizes[part]
                continue
            for sample in itertools.islice(self._part(part, position, tally), skip, None):
                source = random.Random(f"{self.seed}/{epoch}/{sample.key}")
                yield sample, (0.5, 0.5) if self.settings.crop == "center" else (source.random(), source.random())
            skip = 0

    def _part(self, part: str, position: int, tally: Tally) -> Iterator[Sample]:
        """The samples to train on of one part, shuffled; those that are lost since the data stage are a problem."""
        import webdataset

        buffer, share, size = self.settings.shuffle_buffer, self.settings.held_out_share, self.sizes[part]
        samples = usable((s for s in self.source.read(part, tally) if not is_held_out(s.key, share)), tally)
        shuffle = webdataset.shuffle(buffer, initial=buffer, rng=random.Random(f"{self.seed}/{position}"))
        number = 0
        for sample in shuffle(samples):
            yield sample
            number += 1
        found = f"{number:,} samples to train on were read, the data stage counted {size:,}"
        if number > size:
            raise DataError(f"{part}: {found}: {AGAIN}")
        if number < size:
            warnings.warn(f"{part}: {found}", RuntimeWarning, stacklevel=2)
            tally.problem("lost samples", part, found, size - number)


@dataclass(frozen=True)
class _From(IterableDataset):
    """What a worker runs: its slot's batches. There are ranks x workers slots, and they share one line of parts."""

    stream: PictureStream
    start: int

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # The loader asks worker 0 first: batch n is the one of slot n modulo workers, whichever worker plays it.
        slot = (worker + self.start) % workers
        skip = len(range(slot, self.start, workers))
        return self.stream.slot(self.stream.rank * workers + slot, self.stream.ranks * workers, skip)


def image_stream(
    data: ShapesData | PictureData, folder: Path, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
) -> Stream:
    """The training images of any kind of data for one of `ranks` processes; folder: what the data stage wrote."""
    if data.kind == "shapes":
        return ShapesStream(shapes.Split.load(folder / "train"), batch_size * ranks, seed)
    return PictureStream(data, folder, batch_size, seed, rank, ranks)
