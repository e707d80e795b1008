"""Webdataset shards of captioned images, such as LAION-Aesthetics, in the layout that img2dataset writes.

A shard is a tar file whose members come in groups of one key: 000000000.jpg (or .jpeg, .png, .webp) and 000000000.txt,
the caption. Others are not read. Shards are local files or whatever the webdataset library opens: http(s), s3, `pipe:`.
"""

import contextlib
import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from splam.config import ROOT
from splam.data.images import DataError
from splam.data.samples import Sample, Tally, caption_text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def is_url(shard: str) -> bool:
    """Whether webdataset opens `shard` by a protocol ("https://...", "pipe:...") and not as a local file."""
    return "://" in shard or shard.startswith("pipe:")


def expand_shards(patterns: Iterable[str]) -> list[str]:
    """The shards that paths, globs, brace patterns (00000..00099 in braces) and URLs name, in order, each once.

    Paths are relative to the repository; ** stands for folders of any depth. Raises DataError if a pattern matches
    nothing or a local file is empty.
    """
    import braceexpand

    found: dict[str, None] = {}
    for name in itertools.chain.from_iterable(map(braceexpand.braceexpand, patterns)):
        literal = is_url(name) or (ROOT / name).is_file()  # a folder's name may look like a pattern
        matches = [name] if literal else sorted(glob.glob(name, root_dir=ROOT, recursive=True))
        if not matches:
            raise DataError(f"data.shards: {name!r} matches no file: correct the pattern, or download the shards")
        found |= dict.fromkeys(matches)
    if empty := [shard for shard in found if not is_url(shard) and not (ROOT / shard).stat().st_size]:
        raise DataError(f"shard {empty[0]} is an empty file: download it again, or take it out of data.shards")
    return list(found)


def read_shard(shard: str, tally: Tally) -> Iterator[Sample]:
    """The samples of a shard in their order; image or caption are empty if it has none.

    A shard that cannot be read to its end counts as truncated. Raises DataError for one that holds no samples.
    """
    import webdataset
    from webdataset.tariterators import tar_file_expander

    key, errors = None, []

    def note(error: Exception) -> bool:
        errors.append(f"{type(error).__name__}: {error}")
        return True

    try:
        with contextlib.closing(webdataset.gopen(shard if is_url(shard) else str(ROOT / shard))) as stream:
            opened = [{"url": shard, "stream": stream}]
            members = tar_file_expander(opened, handler=note, select_files=_is_read, eof_value=None)
            for key, files in _grouped(members, shard, tally):
                image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), b"")
                yield Sample(shard, key, image, caption_text(files.get(".txt", b"")))
            if not is_url(shard) and _is_cut(stream):
                errors.append("the archive stops before its end")
    except OSError as error:  # no such file, or a pipe's command failed
        note(error)
    if errors:
        tally.problem("truncated shards", shard, errors[0])
    elif key is None:
        raise DataError(f"shard {shard} holds no samples: download it again, or take it out of data.shards")


def _is_read(name: str) -> bool:
    """Whether a member is an image or a caption, and no hidden file (macOS adds one beside each)."""
    return name.lower().endswith((*IMAGE_SUFFIXES, ".txt")) and not os.path.basename(name).startswith(".")


def _grouped(members: Iterable[dict[str, Any]], shard: str, tally: Tally) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The files of each key by suffix, where they follow each other. A key is a name up to its last dot.

    webdataset's own ends at the first: all of photo.000001.jpg, photo.000002.jpg, ... would be one sample.
    """
    key, files, seen = "", {}, set()
    for member in members:
        stem, suffix = os.path.splitext(member["fname"])
        if files and suffix != ".txt" and stem.startswith(f"{key}."):
            continue  # another picture of the same sample, such as 0001.mask.png
        if (name := (stem, suffix.lower())) in seen:
            tally.problem("repeated files", shard, f"{member['fname']} is in it twice: the first is taken")
            continue
        seen.add(name)
        if stem != key and files:
            if ".txt" in files or not key.startswith(f"{stem}."):  # else such a picture came first
                yield key, files
            files = {}
        key = stem
        files[suffix.lower()] = member["data"]
    if files:
        yield key, files


def _is_cut(file: BinaryIO) -> bool:
    """Whether a tar file lacks the zeros at its end: tarfile takes a cut between two members for the end."""
    file.seek(257)
    plain = file.read(5) == b"ustar"  # compressed ones have checks of their own
    file.seek(-512, os.SEEK_END)
    return plain and any(file.read())
