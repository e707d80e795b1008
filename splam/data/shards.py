"""Webdataset shards of captioned images, such as LAION-Aesthetics, in the layout that img2dataset writes.

A shard is a plain tar file whose members come in groups of one key: 000000000.jpg (or .jpeg, .png, .webp) and
000000000.txt, the caption. Others are not read. Shards are local files: where a picture lies in them is noted once, and
training reads it from there, in any order.
"""

import glob
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from splam.config import ROOT
from splam.data.images import DataError
from splam.data.samples import Sample, Tally, caption_text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def expand_shards(patterns: Iterable[str]) -> list[str]:
    """The shards that paths, globs and brace patterns (00000..00099 in braces) name, in order, each once.

    Paths are relative to the repository; ** stands for folders of any depth. Raises DataError if a pattern matches
    nothing, and for a URL.
    """
    import braceexpand

    found: dict[Path, str] = {}  # a link, or another spelling, is the same file
    lost = []
    for name in itertools.chain.from_iterable(map(braceexpand.braceexpand, patterns)):
        if "://" in name or name.startswith("pipe:"):
            raise DataError(f"data.shards: {name!r} is no local file: download the shards, or mount where they are")
        literal = (ROOT / name).is_file()  # a folder's name may look like a pattern
        matches = [name] if literal else sorted(glob.glob(name, root_dir=ROOT, recursive=True))
        lost += [] if matches else [name]
        for match in matches:
            found.setdefault((ROOT / match).resolve(), match)
    if lost:
        more = f"; so with {len(lost) - 1:,} more" * (len(lost) > 1)
        raise DataError(f"data.shards: {lost[0]!r} matches no file: correct the pattern, or download the shards{more}")
    return list(found.values())


def read_shard(shard: str, tally: Tally) -> Iterator[Sample]:
    """The samples of a shard in their order, with an empty caption or no picture if they lack it.

    A shard that cannot be read to its end counts as truncated. Raises DataError for one that holds no samples.
    """
    sample = fault = None
    try:
        with tarfile.open(ROOT / shard, "r:") as tar:
            for key, files in _grouped(filter(_is_read, tar), shard, tally):
                image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), tarfile.TarInfo())
                text = files.get(".txt", tarfile.TarInfo())
                note = tar.extractfile(text).read() if text.size else b""  # a link holds nothing itself
                sample = Sample(shard, key, image.offset_data, image.size, caption_text(note))
                yield sample
            _check_end(tar)
    except (tarfile.TarError, OSError) as error:
        fault = f"{type(error).__name__}: {error}"
    if sample is None:
        raise DataError(f"shard {shard} holds no samples: download it again, or take it out of data.shards")
    if fault:
        tally.problem("truncated shards", shard, fault)


def _is_read(member: tarfile.TarInfo) -> bool:
    """Whether a member is an image or a caption, and no hidden file (macOS adds one beside each)."""
    return member.name.lower().endswith((*IMAGE_SUFFIXES, ".txt")) and not os.path.basename(member.name).startswith(".")


def _grouped(
    members: Iterable[tarfile.TarInfo], shard: str, tally: Tally
) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The files of each key by suffix, where they follow each other. A key is a name up to its last dot.

    The webdataset library's ends at the first: all of photo.000001.jpg, photo.000002.jpg, ... would be one sample.
    """
    seen = set()
    for key, group in itertools.groupby(members, lambda member: os.path.splitext(member.name)[0]):
        files = {os.path.splitext(member.name)[1].lower(): member for member in group}
        if key in seen:
            tally.problem("repeated samples", shard, f"{key} is in it twice: the first is taken")
            continue
        seen.add(key)
        yield key, files


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError where tarfile takes a cut between two members, or damage, for the end."""
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(2**20)
    if len(rest) < 512:  # a header's
        raise tarfile.ReadError("the archive stops before its end")
    if any(rest):
        raise tarfile.ReadError("more follows its end (damage, or a second archive)")
