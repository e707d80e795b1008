"""Captioned pictures in shards or in a folder: the data stage notes where each lies, and training reads it there."""

import itertools
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from splam.config import PictureData
from splam.data.folder import read_folder
from splam.data.images import CENTRE, DataError, Place, built, to_pixels
from splam.data.samples import Sample, Tally, is_held_out
from splam.data.shards import expand_shards, read_shard

MANIFEST, SAMPLES = "manifest.json", "samples.db"
SHOWN = 10  # faults that the manifest lists


def survey(settings: PictureData, folder: Path) -> dict[str, Any]:
    """Look at every sample once, and write where those of use lie (folder/samples.db), and a manifest; returns that.

    Of all, the dimensions are read; as many first ones of a share as are needed are decoded, so test sets are sound.
    Raises DataError beyond settings.max_broken_share, and if a share is too small.
    """
    tally, tested = Tally(settings), 2 * settings.test_images
    needed = {"training": 1 if settings.coco else tested, "held_out": tested}  # with COCO, no test set is of the first
    notes = sqlite3.connect("")  # a temporary file, until all is well
    found = _note(tally, needed, notes)
    for share, number in needed.items():
        if found[share] < number:
            more = "add pictures, lower data.test_images, or change data.held_out_share"
            worst = "".join(f"; {n} {kind} in {file}" for (kind, file), n in tally.faults.most_common(1))
            said = f"{found[share]} images are of share {share} ({tally}{worst})"
            raise DataError(f"{said}, {number} are needed: {more}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SAMPLES).unlink(missing_ok=True)
    notes.execute("VACUUM INTO ?", (str(folder / SAMPLES),))
    faults = {f"{file}: {kind}": number for (kind, file), number in tally.faults.most_common(SHOWN)}
    facts = {"read": str(tally), **found, "faults": faults}
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _note(tally: Tally, decoded: dict[str, int], notes: sqlite3.Connection) -> dict[str, int]:
    """Note the samples of use in a table for each share; returns how many each has.

    decoded: how many of a share's first ones are read as a whole.
    """
    found = dict.fromkeys(decoded, 0)
    for share in found:
        notes.execute(f"CREATE TABLE {share} (file TEXT, key TEXT, offset INTEGER, size INTEGER, caption TEXT)")
    for sample in tqdm(_everything(tally), "samples", mininterval=2):
        share = "held_out" if is_held_out(sample.key, tally.settings.held_out_share) else "training"
        if tally.opened(sample, int(found[share] < decoded[share])) is not None:
            found[share] += 1
            notes.execute(f"INSERT INTO {share} VALUES (?, ?, ?, ?, ?)", sample)
    notes.commit()
    return found


def _everything(tally: Tally) -> Iterator[Sample]:
    """All samples, of use or not. A truncated shard has lost what it lacks to the largest."""
    if tally.settings.kind == "folder":
        yield from read_folder(tally.settings.folder)
        return
    held: Counter[str] = Counter()
    for shard in expand_shards(tally.settings.shards):
        for sample in read_shard(shard, tally):
            held[shard] += 1
            yield sample
    largest = max(held.values(), default=0)
    for kind, shard in list(tally.faults):
        if kind == "truncated shards" and (lost := largest - held[shard]):
            tally.problem("lost samples", shard, f"it has {held[shard]:,} samples, the largest {largest:,}", lost)


class Pictures:
    """A share of the samples, "training" or "held_out", read from where they lie."""

    def __init__(self, settings: PictureData, folder: Path, share: str):
        """folder: what survey has written into. Raises FileNotFoundError if it has not."""
        self.settings, self.folder, self.share, self.tally = settings, folder, share, Tally(settings)
        self.notes = sqlite3.connect(f"{built(folder / SAMPLES).resolve().as_uri()}?immutable=1", uri=True)
        ((self.count,),) = self.notes.execute(f"SELECT COUNT(*) FROM {share}")

    def __reduce__(self) -> tuple:
        return Pictures, (self.settings, self.folder, self.share)  # a worker opens the file itself

    def __len__(self) -> int:
        return self.count

    def sample(self, row: int) -> Sample:
        """Where a picture lies, with its caption."""
        return Sample(*self.notes.execute(f"SELECT * FROM {self.share} WHERE rowid = ?", (row + 1,)).fetchone())

    def image(self, row: int, size: int, place: Place = CENTRE) -> np.ndarray | None:
        """A picture, uint8 (size, size, 3); None if it is broken. Raises DataError if too many are."""
        return self.tally.opened(self.sample(row), size, place)

    def __getitems__(self, picks: list[tuple[int, str]]) -> tuple[Tensor, list[str]]:
        """Pixels (n, 3, h, w) and captions of rows, each with a seed for its crop.

        For a broken picture the next sound one stands in.
        """
        images, captions = zip(*itertools.starmap(self._sound, picks), strict=True)
        return to_pixels(np.stack(images)), list(captions)

    def _sound(self, row: int, seed: str) -> tuple[np.ndarray, str]:
        source = random.Random(seed)
        place = CENTRE if self.settings.crop == "center" else (source.random(), source.random())
        rows = itertools.chain(range(row, len(self)), range(row))
        sound = ((image, at) for at in rows if (image := self.image(at, self.settings.resolution, place)) is not None)
        image, at = next(sound)  # too many broken ones have raised before it is empty
        return image, self.sample(at).caption
