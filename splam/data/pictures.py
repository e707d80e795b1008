"""What the data stage makes of captioned pictures: everything is read once and counted, and test sets are copied.

By the counts, a training that goes on passes over whole parts, and notices those that have changed.
"""

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from splam.config import PictureData
from splam.data.folder import open_folder
from splam.data.images import DataError, decode
from splam.data.samples import Sample, Source, Tally, decoded, is_held_out, usable
from splam.data.shards import expand_shards, read_shard

MANIFEST = "manifest.json"
AGAIN = "run the data stage again (dvc repro data.dvc)"


def shares(settings: PictureData) -> dict[str, str]:
    """The test sets of our own, and the share of the samples that each is copied from."""
    return {"seen": "held_out"} if settings.coco else {"unseen": "held_out", "seen": "training"}


def open_source(settings: PictureData) -> Source:
    """The samples of either kind of data. Raises DataError if they are not there."""
    if settings.kind == "folder":
        return open_folder(settings.folder)
    return Source(expand_shards(settings.shards), read_shard)


def survey(settings: PictureData, folder: Path) -> dict[str, Any]:
    """Read everything once; copy the first 2 x settings.test_images samples of `shares` to folder/SHARE.tar.

    Returns {"read": what was counted in all, in words, "parts": numbers of each part}. Raises DataError beyond
    settings.max_broken_share, and if a share is too small.
    """
    import webdataset

    tally, parts, count = Tally(settings.max_broken_share), {}, 2 * settings.test_images
    copied = dict.fromkeys(shares(settings).values(), 0)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with contextlib.ExitStack() as stack:
            tars = {share: webdataset.TarWriter(f"{scratch}/{share}.tar", encoder=False, mtime=0) for share in copied}
            writers = {share: stack.enter_context(tar) for share, tar in tars.items()}
            for share, sample in _everything(settings, tally, parts):
                wanted = copied.get(share, count) < count
                if wanted and decoded(sample, 1, settings, tally) is not None:
                    writers[share].write(_record(copied[share], sample))
                    copied[share] += 1
        for share, number in copied.items():
            if number < count:
                more = "add pictures, lower data.test_images, or change data.held_out_share"
                raise DataError(f"{number} images are of share {share} ({tally}), {count} are asked for: {more}")
            os.replace(f"{scratch}/{share}.tar", folder / f"{share}.tar")
    return {"read": str(tally), "parts": parts}


def _everything(settings: PictureData, tally: Tally, parts: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Sample]]:
    """All samples of use and their shares; `parts` gets the numbers of each part and a hash of these samples.

    A truncated shard has lost what it lacks to the largest.
    """
    source = open_source(settings)
    for part in tqdm(source.parts, "parts", mininterval=2):
        before, found, digest = tally.counts["samples"], {"held_out": 0, "training": 0}, hashlib.sha256()
        for sample in usable(source.read(part, tally), tally):
            share = "held_out" if is_held_out(sample.key, settings.held_out_share) else "training"
            found[share] += 1
            digest.update(f"{sample.key}\n{sample.caption}\n{len(sample.image)}\n".encode() + sample.image)
            yield share, sample
        parts[part] = {"samples": tally.counts["samples"] - before, **found, "sha256": digest.hexdigest()[:16]}
    largest = max(facts["samples"] for facts in parts.values())
    for part in [part for kind, part in tally.faults if kind == "truncated shards"]:
        if lost := largest - (held := parts[part]["samples"]):
            tally.problem("lost samples", part, f"it has {held:,} samples, the largest {largest:,}", lost)


def _record(number: int, sample: Sample) -> dict[str, Any]:
    """A sample under a key of our own. PIL goes by an image's content, not by its suffix."""
    return {"__key__": f"{number:09d}", "jpg": sample.image, "txt": sample.caption.encode()}


def copied_captions(path: Path) -> list[str]:
    """The captions of a share that survey has copied, in order."""
    return [sample.caption for sample in read_shard(str(path.resolve()), Tally(0.0))]


def copied_images(path: Path, rows: range, size: int) -> Iterator[np.ndarray]:
    """Images of such a share, centre-cropped, uint8 (size, size, 3): those of `rows`, in order."""
    samples = itertools.islice(read_shard(str(path.resolve()), Tally(0.0)), rows.start, rows.stop)
    return (decode(sample.image, size) for sample in samples)


def built(path: Path) -> Path:
    """A file that the data stage wrote. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run the data stage (dvc repro data.dvc) first")
    return path


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the data stage wrote of its survey. Raises FileNotFoundError."""
    return json.loads(built(folder / MANIFEST).read_text(encoding="utf-8"))


def training_counts(source: Source, folder: Path) -> dict[str, int]:
    """How many samples there are to train on in each part. Raises DataError for other parts than were surveyed."""
    parts = read_manifest(folder)["parts"]
    if other := sorted(set(parts) ^ set(source.parts)):
        change = "is not there any more" if other[0] in parts else "was not there"
        raise DataError(f"{other[0]} {change} ({len(other):,} parts changed since they were counted): {AGAIN}")
    counts = {part: parts[part]["training"] for part in source.parts}
    if not any(counts.values()):
        raise DataError(f"none of {len(counts):,} parts has a sample to train on: lower data.held_out_share")
    return counts
