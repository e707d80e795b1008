"""Captioned pictures as they lie on disk, whatever holds them: what is of no use is counted, too much of it stops."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from splam.config import ROOT, PictureData
from splam.data.images import CENTRE, DataError, Place, SizeError, decode

GRACE = 200  # samples by which a share is judged before so many have been read


class Sample(NamedTuple):
    """A caption, and where its encoded picture lies: `size` bytes of a file from `offset` on, none if it has none."""

    file: str
    key: str
    offset: int
    size: int
    caption: str


@dataclass
class Tally:
    """Opens samples, and counts how many were read, and the faults of each kind in each file."""

    settings: PictureData
    samples: int = 0
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)

    def opened(self, sample: Sample, size: int, place: Place = CENTRE) -> np.ndarray | None:
        """The picture, uint8 (size, size, 3), cropped at `place`; None if it is of no use: that is counted.

        Of size 0 it is empty, and only its dimensions are read.
        """
        self.samples += 1
        if not sample.size:
            kind, reason = "broken images", "there is no image (.jpg, .png, .webp) beside it"
        elif not sample.caption:
            kind, reason = "missing captions", "there is no caption in UTF-8 beside it"
        else:
            with (ROOT / sample.file).open("rb") as file:
                file.seek(sample.offset)
                content = file.read(sample.size)
            try:
                return decode(content, size, place, (self.settings.smallest_side, self.settings.largest_ratio))
            except Exception as error:  # PIL's decoders raise whatever a broken file leads them to
                kind = "unfit sizes" if isinstance(error, SizeError) else "broken images"
                reason = f"{type(error).__name__}: {error}"
        self.problem(kind, sample.file, f"{sample.key}: {reason}")
        return None

    def problem(self, kind: str, file: str, reason: str, number: int = 1) -> None:
        """Count a fault. Raises DataError if they are more than data.max_broken_share of the samples."""
        self.faults[kind, file] += number
        allowed = self.settings.max_broken_share
        if self.faults.total() > allowed * max(self.samples, GRACE):
            (most, worst), count = self.faults.most_common(1)[0]
            raise DataError(
                f"more than data.max_broken_share = {allowed:g} of the samples are of no use: {self}; {count} {most} "
                f"in {worst}, the last problem in {file}: {reason}. Replace such files, take them out, or raise "
                "data.max_broken_share"
            )

    def __str__(self) -> str:
        kinds = Counter(samples=self.samples)
        for (kind, _), number in self.faults.items():
            kinds[kind] += number
        return ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())


def is_held_out(key: str, share: float) -> bool:
    """Whether a sample belongs to the test split: by a hash of its key, whatever the order and the other samples."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) < share * 16**8


def caption_text(content: bytes) -> str:
    """A caption file as one line; empty if it is not UTF-8."""
    try:
        return " ".join(content.decode("utf-8-sig").split())
    except UnicodeDecodeError:
        return ""
