"""LAION-Aesthetics, or any captioned images, as webdataset shards in the layout that img2dataset writes.

A shard is a tar file whose members come in groups of one key: 000000000.jpg (or .jpeg, .png, .webp), 000000000.txt
(the caption) and 000000000.json. Shards are local files or whatever the webdataset library opens: http(s), s3, `pipe:`.

The order of samples is a function of (seed, epoch, rank, number of ranks, number of workers) and a batch is fixed
before its images are decoded. So the state of a stream is one number, the batches it has given: a new stream that
starts at n reads what came before, without decoding it, and goes on with the same bits.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import braceexpand
import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm
from webdataset.tariterators import group_by_keys, tar_file_expander

from splam.data.images import decode
from splam.params import LaionData

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
GRACE = 200  # samples by which a share is judged before so many have been read


class DataError(ValueError):
    """Data that cannot be used as it is; the message names the file and the remedy."""


def is_url(shard: str) -> bool:
    """Whether webdataset opens `shard` by a protocol ("https://...", "pipe:...") and not as a local file."""
    return "://" in shard or shard.startswith("pipe:")


def expand_shards(patterns: Iterable[str]) -> list[str]:
    """The shards that paths, globs, brace patterns (00000..00099 in braces) and URLs name, in order, each once.

    Raises DataError, naming the pattern, where there are none or a local file does not exist or is empty.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        for name in braceexpand.braceexpand(pattern):
            matches = [name] if is_url(name) else sorted(glob.glob(name))
            if not matches:
                raise DataError(f"data.shards: {name!r} matches no file: correct the pattern, or download the shards")
            found |= dict.fromkeys(matches)
    if not found:
        raise DataError("data.shards is empty: list the shards' paths, globs, brace patterns or URLs")
    for shard in found:
        if not is_url(shard) and Path(shard).stat().st_size == 0:
            raise DataError(f"shard {shard} is an empty file: download it again, or take it out of data.shards")
    return list(found)


def is_held_out(key: str, share: float) -> bool:
    """Whether a sample belongs to the test split: by a hash of its key, whatever the order and the other samples."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) < share * 16**8


@dataclass
class Counts:
    """What was read: samples that are not held out, and those that were of no use. Skipped batches do not count."""

    seen: int = 0
    broken_images: int = 0
    missing_captions: int = 0
    truncated_shards: int = 0

    @property
    def problems(self) -> int:
        """All that was of no use."""
        return self.broken_images + self.missing_captions + self.truncated_shards

    def add(self, other: Counts) -> None:
        """Count what `other` has counted, too."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))

    def __str__(self) -> str:
        return (
            f"{self.seen:,} samples read, {self.broken_images:,} broken images, {self.missing_captions:,} missing "
            f"captions, {self.truncated_shards:,} truncated shards"
        )


@dataclass
class Tally:
    """Counts, and stops by DataError where more than `max_share` of what was read is of no use."""

    max_share: float
    counts: Counts = field(default_factory=Counts)
    shards: Counter = field(default_factory=Counter)
    last: str = ""

    def problem(self, kind: str, shard: str, reason: str) -> None:
        """Count one problem: kind is the name of an entry of Counts."""
        setattr(self.counts, kind, getattr(self.counts, kind) + 1)
        self.shards[shard] += 1
        self.last = f"{shard}: {reason}"
        if self.counts.problems > self.max_share * max(self.counts.seen, GRACE):
            worst, count = self.shards.most_common(1)[0]
            raise DataError(
                f"more than data.max_broken_share = {self.max_share:g} of the samples are of no use ({self.counts}); "
                f"most of them, {count}, in shard {worst}; the last in {self.last}. Download such shards again, take "
                "them out of data.shards, or raise data.max_broken_share"
            )


class Sample(NamedTuple):
    """One sample as it lies in a shard; image is the encoded file."""

    shard: str
    epoch: int
    key: str
    image: bytes
    caption: str


def read_shard(shard: str, tally: Tally, epoch: int = 0) -> Iterator[Sample]:
    """The samples of a shard in their order; image or caption are empty where it has none.

    A shard that cannot be read to its end counts as truncated. Raises DataError for one that holds no samples.
    """
    errors: list[str] = []

    def note(error: Exception) -> bool:
        errors.append(f"{type(error).__name__}: {error}")
        return True

    found = 0
    for content in group_by_keys(tar_file_expander(_opened(shard, note), handler=note), handler=note):
        found += 1
        image = next((content[suffix] for suffix in IMAGE_SUFFIXES if suffix in content), b"")
        caption = content.get("txt", b"").decode("utf-8", "replace").strip()
        yield Sample(shard, epoch, content["__key__"], image, caption)
    if errors:
        tally.problem("truncated_shards", shard, errors[0])
    elif not found:
        raise DataError(f"shard {shard} holds no samples: download it again, or take it out of data.shards")


def _opened(shard: str, note: Callable[[Exception], bool]) -> Iterator[dict]:
    """The open shard, as webdataset passes it on; what is wrong with it is noted."""
    try:
        with contextlib.closing(webdataset.gopen(shard)) as stream:
            ending = _Ending(stream)
            yield {"url": shard, "stream": ending}
            if not ending.is_whole():
                note(EOFError("the archive stops before its end"))
    except OSError as error:  # no such file, or a pipe's command failed
        note(error)


class _Ending:
    """A stream that remembers its first and last 512 bytes: tarfile takes a cut between two files for the end."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.first, self.last = stream, b"", b""

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        content = self.stream.read(size)
        self.first = self.first or content[:512]
        self.last = (self.last + content)[-512:]
        return content

    def is_whole(self) -> bool:
        """Whether the last block read is the zeros that end an archive; compressed ones have checks of their own."""
        return self.first[257:262] != b"ustar" or not any(self.last)


def usable(samples: Iterable[Sample], tally: Tally) -> Iterator[Sample]:
    """Those samples that have an image file and a caption; all are counted."""
    for sample in samples:
        tally.counts.seen += 1
        if not sample.image:
            tally.problem("broken_images", sample.shard, f"{sample.key} has no image")
        elif not sample.caption:
            tally.problem("missing_captions", sample.shard, f"{sample.key} has no caption")
        else:
            yield sample


def decoded(sample: Sample, size: int, place: tuple[float, float], tally: Tally) -> np.ndarray | None:
    """The image, uint8 (size, size, 3), cropped at `place` (across, down); None if broken, which is counted."""
    try:
        return decode(sample.image, size, *place)
    except Exception as error:  # PIL's decoders raise whatever a broken file leads them to
        tally.problem("broken_images", sample.shard, f"{sample.key}: {type(error).__name__}: {error}")
        return None


@dataclass(frozen=True)
class _Batches(IterableDataset):
    """What a worker runs: its slot's batches. There are ranks x workers slots, and they share one line of shards."""

    settings: LaionData
    shards: tuple[str, ...]
    batch_size: int
    seed: int
    rank: int
    ranks: int
    start: int

    def __iter__(self) -> Iterator[tuple[Tensor, list[str], Counts]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # The loader asks worker 0 first: batch n is the one of slot n modulo workers, whichever worker plays it.
        slot = (worker + self.start) % workers
        skip = len(range(slot, self.start, workers))
        yield from self._from_slot(self.rank * workers + slot, self.ranks * workers, skip)

    def _from_slot(self, slot: int, slots: int, skip: int) -> Iterator[tuple[Tensor, list[str], Counts]]:
        """One slot's batches after the first `skip`, as uint8 (b, 3, h, w), captions and the counts so far."""
        tally = Tally(self.settings.max_broken_share)
        size, source = self.settings.shuffle_buffer, random.Random(f"{self.seed}/{slot}/{slots}")
        samples = webdataset.shuffle(size, initial=size, rng=source)(self._samples(slot, slots, tally))
        for _ in range(skip * self.batch_size):
            next(samples)
        tally.counts = Counts()
        waiting = 0
        while True:
            batch = list(itertools.islice(samples, self.batch_size))
            images = [decoded(sample, self.settings.resolution, self._place(sample), tally) for sample in batch]
            waiting += 1
            pairs = [(i, s.caption) for i, s in zip(images, batch, strict=True) if i is not None]
            if pairs:  # else the next batch is given twice
                for _ in range(waiting):
                    yield *_filled(images, batch, pairs), replace(tally.counts)
                waiting = 0

    def _samples(self, slot: int, slots: int, tally: Tally) -> Iterator[Sample]:
        """The slot's samples, for ever: of all shards in a new order each epoch, every slots-th one from `slot` on."""
        share, count = self.settings.held_out_share, len(self.shards)
        fruitless = 0
        for position in itertools.count(slot, slots):
            epoch, index = divmod(position, count)
            shard = self.shards[random.Random(f"{self.seed}/{epoch}").sample(range(count), count)[index]]
            fruitless += 1
            samples = (s for s in read_shard(shard, tally, epoch) if not is_held_out(s.key, share))
            for sample in usable(samples, tally):
                fruitless = 0
                yield sample
            if fruitless > count * slots:
                raise DataError(f"no shard, {shard} among them, has a sample to train on: lower data.held_out_share")

    def _place(self, sample: Sample) -> tuple[float, float]:
        """Where the sample is cropped in its epoch."""
        if self.settings.crop == "center":
            return 0.5, 0.5
        source = random.Random(f"{self.seed}/{sample.epoch}/{sample.key}")
        return source.random(), source.random()


def _filled(
    images: list[np.ndarray | None], batch: list[Sample], pairs: list[tuple[np.ndarray, str]]
) -> tuple[Tensor, list[str]]:
    """A batch whose broken images are replaced by its good ones in turn: their number is known only by decoding."""
    spare = itertools.cycle(pairs)
    full = [(i, s.caption) if i is not None else next(spare) for i, s in zip(images, batch, strict=True)]
    pixels = torch.from_numpy(np.stack([image for image, _ in full])).permute(0, 3, 1, 2)
    return pixels, [caption for _, caption in full]


def _unchanged(batch: tuple) -> tuple:
    return batch


class LaionStream:
    """The training share of the shards, shuffled, endless, split over ranks; `counts` says what was read so far.

    The same (settings, batch size, seed, rank, ranks) give the same batches. Raises DataError at once for shards that
    are not there, and while reading where settings.max_broken_share is exceeded or a shard is empty.
    """

    def __init__(self, settings: LaionData, batch_size: int, seed: int, rank: int = 0, ranks: int = 1):
        if batch_size < 1 or not 0 <= rank < ranks:
            raise ValueError(f"batch_size is {batch_size}, rank {rank} of {ranks}: give 1 or more, and 0 to ranks - 1")
        self.settings, self.batch_size = settings, batch_size
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.shards = tuple(expand_shards(settings.shards))
        self._counts: dict[int, Counts] = {}

    @property
    def counts(self) -> Counts:
        """Sums over the workers, since the last call of `batches`."""
        total = Counts()
        for counts in self._counts.values():
            total.add(counts)
        return total

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
        """Batches from number `start` on, without end: pixels float32 (b, 3, h, w) in [-1, 1], and b captions."""
        self._counts = {}
        workers = self.settings.workers
        dataset = _Batches(self.settings, self.shards, self.batch_size, self.seed, self.rank, self.ranks, start)
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            multiprocessing_context="spawn" if workers else None,  # forking is not safe beside CUDA or threads
            generator=torch.Generator(),  # or else the loader draws its seed from torch's global source
        )
        for number, (images, captions, counts) in enumerate(loader):
            self._counts[number % max(workers, 1)] = counts
            yield images.float() / 127.5 - 1, captions


def write_held_out(settings: LaionData, count: int, path: Path) -> Counts:
    """Copy the first `count` held-out samples, in the order of the shards, to one webdataset shard of our own.

    Keys become 000000000 and so on, the .json names the shard and key of origin. Samples of no use are left out.
    Raises DataError where there are fewer than `count`.
    """
    shards, tally = expand_shards(settings.shards), Tally(settings.max_broken_share)
    bar = tqdm(total=count, desc="held-out images", mininterval=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as writer, bar:
        samples = (
            s for shard in shards for s in read_shard(shard, tally) if is_held_out(s.key, settings.held_out_share)
        )
        for sample in usable(samples, tally):
            if bar.n == count:
                break
            if decoded(sample, 1, (0.5, 0.5), tally) is not None:
                writer.write(_member(bar.n, sample))
                bar.update()
    if bar.n < count:
        part.unlink()
        raise DataError(
            f"{len(shards)} shards hold {bar.n} held-out images ({tally.counts}), {count} are asked for: raise "
            "data.held_out_share, lower data.test_images, or add shards"
        )
    part.replace(path)
    return tally.counts


def _member(number: int, sample: Sample) -> dict[str, str | bytes]:
    """One sample as TarWriter takes it."""
    origin = {"key": sample.key, "shard": sample.shard.rsplit("/", 1)[-1]}
    suffix = {b"\x89PNG": "png", b"RIFF": "webp"}.get(sample.image[:4], "jpg")
    content = {"txt": sample.caption.encode(), "json": json.dumps(origin, sort_keys=True).encode()}
    return {"__key__": f"{number:09d}", suffix: sample.image, **content}


def held_out_captions(path: Path) -> list[str]:
    """The captions of a shard that write_held_out has written, in order."""
    return [sample.caption for sample in read_shard(str(path), Tally(0.0))]


def held_out_images(path: Path, rows: range, size: int) -> Iterator[np.ndarray]:
    """Images of such a shard, centre-cropped, uint8 (size, size, 3): those of `rows`, in order."""
    samples = itertools.islice(read_shard(str(path), Tally(0.0)), rows.start, rows.stop)
    return (decode(sample.image, size) for sample in samples)
