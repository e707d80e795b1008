"""Captioned images, such as LAION-Aesthetics, as webdataset shards in the layout that img2dataset writes.

A shard is a tar file whose members come in groups of one key: 000000000.jpg (or .jpeg, .png, .webp), 000000000.txt
(the caption) and 000000000.json. Shards are local files or whatever the webdataset library opens: http(s), s3, `pipe:`.
"""

import contextlib
import glob
import hashlib
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from splam.config import ROOT, LaionData
from splam.data.images import DataError, SizeError, decode, to_pixels

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
PROBLEMS = ("broken images", "unfit sizes", "missing captions", "truncated shards")
GRACE = 200  # samples by which a share is judged before so many have been read


def is_url(shard: str) -> bool:
    """Whether webdataset opens `shard` by a protocol ("https://...", "pipe:...") and not as a local file."""
    return "://" in shard or shard.startswith("pipe:")


def expand_shards(patterns: Iterable[str]) -> list[str]:
    """The shards that paths, globs, brace patterns (00000..00099 in braces) and URLs name, in order, each once.

    Paths are relative to the repository. Raises DataError if a pattern matches nothing or a local file is empty.
    """
    import braceexpand

    found: dict[str, None] = {}
    for name in itertools.chain.from_iterable(map(braceexpand.braceexpand, patterns)):
        matches = [name] if is_url(name) else sorted(glob.glob(name, root_dir=ROOT))
        if not matches:
            raise DataError(f"data.shards: {name!r} matches no file: correct the pattern, or download the shards")
        found |= dict.fromkeys(matches)
    if empty := [shard for shard in found if not is_url(shard) and not (ROOT / shard).stat().st_size]:
        raise DataError(f"shard {empty[0]} is an empty file: download it again, or take it out of data.shards")
    return list(found)


def is_held_out(key: str, share: float) -> bool:
    """Whether a sample belongs to the test split: by a hash of its key, whatever the order and the other samples."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) < share * 16**8


@dataclass
class Tally:
    """What was read: `counts` of the "samples" that are not held out, and of PROBLEMS."""

    max_share: float
    counts: Counter[str] = field(default_factory=Counter)
    shards: Counter[str] = field(default_factory=Counter)

    def problem(self, kind: str, shard: str, reason: str) -> None:
        """Count one of PROBLEMS. Raises DataError if they are more than `max_share` of the samples."""
        self.counts[kind] += 1
        self.shards[shard] += 1
        if sum(self.counts[kind] for kind in PROBLEMS) > self.max_share * max(self.counts["samples"], GRACE):
            worst, count = self.shards.most_common(1)[0]
            raise DataError(
                f"more than data.max_broken_share = {self.max_share:g} of the samples are of no use: {self}; {count} "
                f"of them in shard {worst}, the last in {shard}: {reason}. Download such shards again, take them out "
                "of data.shards, or raise data.max_broken_share"
            )

    def __str__(self) -> str:
        return ", ".join(f"{self.counts[kind]:,} {kind}" for kind in ("samples", *PROBLEMS))


class Sample(NamedTuple):
    """One sample as it lies in a shard; image is the encoded file."""

    shard: str
    key: str
    image: bytes
    caption: str


def read_shard(shard: str, tally: Tally) -> Iterator[Sample]:
    """The samples of a shard in their order; image or caption are empty if it has none.

    A shard that cannot be read to its end counts as truncated. Raises DataError for one that holds no samples.
    """
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    content, errors = None, []

    def note(error: Exception) -> bool:
        errors.append(f"{type(error).__name__}: {error}")
        return True

    try:
        with contextlib.closing(webdataset.gopen(shard if is_url(shard) else str(ROOT / shard))) as stream:
            members = tar_file_expander([{"url": shard, "stream": stream}], handler=note)
            for content in group_by_keys(members, handler=note):
                image = next((content[suffix] for suffix in IMAGE_SUFFIXES if suffix in content), b"")
                caption = content.get("txt", b"").decode("utf-8", "replace").strip()
                yield Sample(shard, content["__key__"], image, caption)
            if not is_url(shard) and _is_cut(stream):
                errors.append("the archive stops before its end")
    except OSError as error:  # no such file, or a pipe's command failed
        note(error)
    if errors:
        tally.problem("truncated shards", shard, errors[0])
    elif content is None:
        raise DataError(f"shard {shard} holds no samples: download it again, or take it out of data.shards")


def _is_cut(file: BinaryIO) -> bool:
    """Whether a tar file lacks the zeros at its end: tarfile takes a cut between two members for the end."""
    file.seek(257)
    plain = file.read(5) == b"ustar"  # compressed ones have checks of their own
    file.seek(-512, os.SEEK_END)
    return plain and any(file.read())


def usable(samples: Iterable[Sample], tally: Tally) -> Iterator[Sample]:
    """Those samples that have an image file and a caption; all are counted."""
    for sample in samples:
        tally.counts["samples"] += 1
        if not sample.image:
            tally.problem("broken images", sample.shard, f"{sample.key} has no image")
        elif not sample.caption:
            tally.problem("missing captions", sample.shard, f"{sample.key} has no caption")
        else:
            yield sample


def decoded(
    sample: Sample, size: int, settings: LaionData, tally: Tally, place: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray | None:
    """The image, uint8 (size, size, 3), cropped at `place` (across, down); None if of no use, which is counted."""
    try:
        return decode(sample.image, size, place, (settings.smallest_side, settings.largest_ratio))
    except SizeError as error:
        limits = f"data.smallest_side = {settings.smallest_side}, data.largest_ratio = {settings.largest_ratio:g}"
        tally.problem("unfit sizes", sample.shard, f"{sample.key}: {error}, beyond {limits}")
    except Exception as error:  # PIL's decoders raise whatever a broken file leads them to
        tally.problem("broken images", sample.shard, f"{sample.key}: {type(error).__name__}: {error}")
    return None


class LaionStream:
    """The training share of the shards, shuffled, endless, split over ranks.

    The order of samples is a function of the arguments and settings.workers, and a batch is fixed before its images are
    decoded. So a stream that is entered at batch n reads what came before, without decoding it, and goes on with the
    same bits. Raises DataError for shards that are not there, and while reading beyond settings.max_broken_share.
    """

    def __init__(self, settings: LaionData, batch_size: int, seed: int, rank: int = 0, ranks: int = 1):
        self.settings, self.batch_size, self.seed, self.rank, self.ranks = settings, batch_size, seed, rank, ranks
        self.shards = expand_shards(settings.shards)
        self._counts: dict[int, Counter[str]] = {}

    @property
    def counts(self) -> Counter[str]:
        """What was read since the last call of `batches`: "samples", and PROBLEMS."""
        return sum(self._counts.values(), Counter())

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
        """Batches from number `start` on, without end: pixels float32 (b, 3, h, w) in [-1, 1], and b captions."""
        self._counts, workers = {}, self.settings.workers
        loader = DataLoader(
            _From(self, start),
            batch_size=None,
            num_workers=workers,
            collate_fn=tuple,
            multiprocessing_context="spawn" if workers else None,  # forking is not safe beside CUDA or threads
            generator=torch.Generator(),  # or else the loader draws its seed from torch's global source
        )
        for number, (images, captions, counts) in enumerate(loader):
            self._counts[number % max(workers, 1)] = counts
            yield to_pixels(images.numpy()), captions

    def slot(self, slot: int, slots: int, skip: int) -> Iterator[tuple[Tensor, list[str], Counter[str]]]:
        """One slot's batches after the first `skip`: uint8 (b, h, w, 3), captions and the counts so far.

        A broken image is replaced by a good one of its batch, a batch of broken ones by the next batch.
        """
        import webdataset

        buffer, rng = self.settings.shuffle_buffer, random.Random(f"{self.seed}/{slot}/{slots}")
        tally, size, waiting = Tally(self.settings.max_broken_share), self.settings.resolution, 0
        samples = webdataset.shuffle(buffer, initial=buffer, rng=rng)(self._samples(slot, slots, tally))
        for _ in range(skip * self.batch_size):
            next(samples)
        tally.counts.clear()
        while True:
            batch = list(itertools.islice(samples, self.batch_size))
            pairs = [(decoded(sample, size, self.settings, tally, place), sample.caption) for sample, place in batch]
            good = [pair for pair in pairs if pair[0] is not None]
            waiting += 1
            if good:
                spare = itertools.cycle(good)
                images, captions = zip(*(p if p[0] is not None else next(spare) for p in pairs), strict=True)
                whole = torch.from_numpy(np.stack(images)), list(captions), tally.counts.copy()
                yield from itertools.repeat(whole, waiting)
                waiting = 0

    def _samples(self, slot: int, slots: int, tally: Tally) -> Iterator[tuple[Sample, tuple[float, float]]]:
        """Samples and their crops, for ever: every slots-th shard from `slot` on, in a new order each epoch."""
        share, count, fruitless = self.settings.held_out_share, len(self.shards), 0
        for position in itertools.count(slot, slots):
            epoch, index = divmod(position, count)
            shard = self.shards[random.Random(f"{self.seed}/{epoch}").sample(range(count), count)[index]]
            fruitless += 1
            for sample in usable((s for s in read_shard(shard, tally) if not is_held_out(s.key, share)), tally):
                fruitless = 0
                source = random.Random(f"{self.seed}/{epoch}/{sample.key}")
                yield sample, (0.5, 0.5) if self.settings.crop == "center" else (source.random(), source.random())
            if fruitless > count * slots:
                raise DataError(f"no shard, {shard} among them, has a sample to train on: lower data.held_out_share")


@dataclass(frozen=True)
class _From(IterableDataset):
    """What a worker runs: its slot's batches. There are ranks x workers slots, and they share one line of shards."""

    stream: LaionStream
    start: int

    def __iter__(self) -> Iterator[tuple[Tensor, list[str], Counter[str]]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # The loader asks worker 0 first: batch n is the one of slot n modulo workers, whichever worker plays it.
        slot = (worker + self.start) % workers
        skip = len(range(slot, self.start, workers))
        return self.stream.slot(self.stream.rank * workers + slot, self.stream.ranks * workers, skip)


def write_held_out(settings: LaionData, count: int, path: Path) -> None:
    """Copy the first `count` usable held-out samples, in the order of the shards, to one shard of our own.

    Keys become 000000000 and so on, the .json names the shard and key of origin. Raises DataError if there are fewer.
    """
    import webdataset

    shards, tally, share = expand_shards(settings.shards), Tally(settings.max_broken_share), settings.held_out_share
    samples = usable((s for shard in shards for s in read_shard(shard, tally) if is_held_out(s.key, share)), tally)
    whole = (sample for sample in samples if decoded(sample, 1, settings, tally) is not None)
    part, written = path.with_suffix(".part"), 0
    with part.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as writer:
        chosen = tqdm(itertools.islice(whole, count), "held-out images", count, mininterval=2)
        for written, sample in enumerate(chosen, 1):
            origin = json.dumps({"key": sample.key, "shard": sample.shard.rsplit("/", 1)[-1]}, sort_keys=True)
            suffix = {b"\x89PNG": "png", b"RIFF": "webp"}.get(sample.image[:4], "jpg")
            content = {suffix: sample.image, "txt": sample.caption.encode(), "json": origin.encode()}
            writer.write({"__key__": f"{written - 1:09d}", **content})
    if written < count:
        part.unlink()
        raise DataError(
            f"{len(shards)} shards hold {written} held-out images ({tally}), {count} are asked for: raise "
            "data.held_out_share, lower data.test_images, or add shards"
        )
    part.replace(path)


def held_out_captions(path: Path) -> list[str]:
    """The captions of a shard that write_held_out has written, in order."""
    return [sample.caption for sample in read_shard(str(path.resolve()), Tally(0.0))]


def held_out_images(path: Path, rows: range, size: int) -> Iterator[np.ndarray]:
    """Images of such a shard, centre-cropped, uint8 (size, size, 3): those of `rows`, in order."""
    samples = itertools.islice(read_shard(str(path.resolve()), Tally(0.0)), rows.start, rows.stop)
    return (decode(sample.image, size) for sample in samples)
