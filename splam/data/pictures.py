"""Captioned pictures in shards or in a folder: the data stage notes where each lies, and training reads it there."""

import itertools
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from splam.config import ROOT, PictureData
from splam.data.folder import read_folder
from splam.data.images import DataError, built, to_pixels
from splam.data.samples import Sample, Tally, is_held_out, opened
from splam.data.shards import expand_shards, read_shard

MANIFEST, FILES = "manifest.json", "files.json"
AGAIN = "run the data stage again (dvc repro data.dvc)"
SHOWN = 10  # faults that the manifest lists


def shares(settings: PictureData) -> dict[str, str]:
    """The test sets of our own, and the share of the samples whose first ones each is."""
    return {"seen": "held_out"} if settings.coco else {"unseen": "held_out", "seen": "training"}


@dataclass
class _Notes:
    """Where the samples of a share lie: rows of file, offset, size, and where the caption ends."""

    files: dict[str, int] = field(default_factory=dict)
    rows: array = field(default_factory=lambda: array("q"))
    captions: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.rows) // 4

    def add(self, sample: Sample) -> None:
        self.captions += sample.caption.encode()
        file = self.files.setdefault(sample.file, len(self.files))
        self.rows.extend((file, sample.offset, sample.size, len(self.captions)))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {name: (ROOT / name).stat().st_size for name in self.files}
        (folder / FILES).write_text(json.dumps(sizes, indent=0) + "\n")
        np.save(folder / "rows.npy", np.asarray(self.rows).reshape(-1, 4))
        np.save(folder / "captions.npy", np.frombuffer(self.captions, np.uint8))


def survey(settings: PictureData, folder: Path) -> None:
    """Look at every sample once, and write where those of use lie: folder/training, folder/held_out and a manifest.

    Of all, the dimensions are read; the first 2 x settings.test_images of `shares` are decoded, so test sets are sound.
    Raises DataError beyond settings.max_broken_share, and if a share is too small.
    """
    tally, count = Tally(settings.max_broken_share), 2 * settings.test_images
    notes, tested = {"training": _Notes(), "held_out": _Notes()}, set(shares(settings).values())
    for sample in tqdm(_everything(settings, tally), "samples", mininterval=2):
        share = "held_out" if is_held_out(sample.key, settings.held_out_share) else "training"
        decoded = share in tested and len(notes[share]) < count
        if opened(sample, int(decoded), settings, tally) is not None:
            notes[share].add(sample)
    wanted = dict.fromkeys(tested, count) | {"training": max(count if "training" in tested else 0, 1)}
    for share, number in wanted.items():
        if len(notes[share]) < number:
            more = "add pictures, lower data.test_images, or change data.held_out_share"
            worst = "".join(f"; {n} {kind} in {file}" for (kind, file), n in tally.faults.most_common(1))
            found = f"{len(notes[share])} images are of share {share} ({tally}{worst})"
            raise DataError(f"{found}, {number} are needed: {more}")
    for share, found in notes.items():
        found.save(folder / share)
    faults = {f"{file}: {kind}": number for (kind, file), number in tally.faults.most_common(SHOWN)}
    facts = {"read": str(tally), **{share: len(found) for share, found in notes.items()}, "faults": faults}
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n")


def _everything(settings: PictureData, tally: Tally) -> Iterator[Sample]:
    """All samples, of use or not. A truncated shard has lost what it lacks to the largest."""
    if settings.kind == "folder":
        yield from read_folder(settings.folder)
        return
    held: Counter[str] = Counter()
    for shard in expand_shards(settings.shards):
        for sample in read_shard(shard, tally):
            held[shard] += 1
            yield sample
    largest = max(held.values(), default=0)
    for kind, shard in list(tally.faults):
        if kind == "truncated shards" and (lost := largest - held[shard]):
            tally.problem("lost samples", shard, f"it has {held[shard]:,} samples, the largest {largest:,}", lost)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the data stage wrote of its survey. Raises FileNotFoundError."""
    return json.loads(built(folder / MANIFEST).read_text(encoding="utf-8"))


class Pictures:
    """A share of the samples, read from where they lie."""

    def __init__(self, settings: PictureData, folder: Path):
        """folder: what survey has written of the share. Raises DataError if a file is gone, or has another size now."""
        self.settings, self.folder, self.tally = settings, folder, Tally(settings.max_broken_share)
        sizes = json.loads(built(folder / FILES).read_text())
        changed = [name for name in sizes if not (file := ROOT / name).is_file() or file.stat().st_size != sizes[name]]
        if changed:
            raise DataError(f"{changed[0]} is gone or has changed ({len(changed):,} such files): {AGAIN}")
        self.files, self.rows = list(sizes), np.load(folder / "rows.npy", mmap_mode="r")
        self.captions = np.load(folder / "captions.npy", mmap_mode="r")

    def __reduce__(self) -> tuple:
        return Pictures, (self.settings, self.folder)  # a worker opens the files itself

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, row: int) -> Sample:
        """Where a picture lies, with its caption."""
        file, offset, size, end = self.rows[row].tolist()
        caption = self.captions[self.rows[row - 1, 3] if row else 0 : end].tobytes().decode()
        return Sample(self.files[file], f"number {row:,}", offset, size, caption)

    def image(self, row: int, size: int, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray | None:
        """A picture, uint8 (size, size, 3); None if it is broken. Raises DataError if too many are."""
        return opened(self.sample(row), size, self.settings, self.tally, place)

    def __getitems__(self, picks: list[tuple[int, str]]) -> tuple[Tensor, list[str]]:
        """Pixels (n, 3, h, w) and captions of rows, each with a seed for its crop.

        For a broken picture the next sound one stands in.
        """
        images, captions = zip(*itertools.starmap(self._sound, picks), strict=True)
        return to_pixels(np.stack(images)), list(captions)

    def _sound(self, row: int, seed: str) -> tuple[np.ndarray, str]:
        source = random.Random(seed)
        place = (0.5, 0.5) if self.settings.crop == "center" else (source.random(), source.random())
        rows = itertools.chain(range(row, len(self)), range(row))
        sound = ((image, at) for at in rows if (image := self.image(at, self.settings.resolution, place)) is not None)
        image, at = next(sound)  # too many broken ones have raised before it is empty
        return image, self.sample(at).caption
