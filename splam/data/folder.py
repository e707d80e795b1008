"""A folder of captioned pictures of one's own, with folders in it or without.

Captions are in metadata.jsonl or metadata.csv, with columns file_name and one of captions.COLUMNS (the imagefolder
layout of Hugging Face; each folder may have its own), or in a .txt beside each picture.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from splam.config import ROOT
from splam.data.captions import read_captions
from splam.data.images import DataError
from splam.data.samples import Sample, caption_text

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def read_folder(name: str) -> Iterator[Sample]:
    """The pictures of data.folder, in an order by hash of their paths; their names are their keys.

    What has a caption and no picture, or the reverse, is a sample too, to be counted. Raises DataError for a folder
    that is not there, is empty, or whose captions could be read in two ways.
    """
    folder = ROOT / name
    found = sorted(folder.rglob("*"))
    if links := [path for path in found if path.is_symlink() and path.is_dir()]:
        raise DataError(f"data.folder: {links[0]} is a link, which is not followed: put the pictures themselves there")
    visible = [path.relative_to(folder) for path in found if path.is_file()]
    visible = [path for path in visible if not any(part.startswith(".") for part in path.parts)]
    tables = [path for path in visible if path.name in TABLES]
    notes = {path for path in visible if path.suffix.lower() == ".txt"}
    listed = _listed(folder, tables)
    suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
    pictures = {path for path in visible if path.suffix.lower() in suffixes} | set(listed)
    if not pictures:
        raise DataError(f"data.folder = {name} holds no pictures: correct it, or put your pictures there")
    if tables and (twice := [path for path in sorted(pictures) if path.with_suffix(".txt") in notes]):
        raise DataError(f"{folder / twice[0]} has a .txt, and {tables[0]} is there too: keep one kind of captions")
    strays = set() if tables else notes - {path.with_suffix(".txt") for path in pictures}
    for path in sorted(pictures | strays, key=lambda path: hashlib.sha256(str(path).encode()).digest()):
        place, note = folder / path, (folder / path).with_suffix(".txt")
        size = place.stat().st_size if path not in strays and place.is_file() else 0
        caption = listed.get(path) or caption_text(note.read_bytes() if note.is_file() else b"")
        yield Sample(f"{name}/{path}", path.name, 0, size, caption)


def _listed(folder: Path, tables: list[PurePosixPath]) -> dict[PurePosixPath, str]:
    """The captions that tables give to pictures. Raises DataError for a picture that is listed twice."""
    listed = {}
    for table in tables:
        for name, caption in read_captions(path := folder / table, ("file_name",), empty=True):
            if not isinstance(name, str):
                raise DataError(f"{path} has rows without file_name: name the picture that each caption is of")
            if (picture := table.parent / name) in listed:
                raise DataError(f"{path} lists {name} twice: keep one of its captions")
            listed[picture] = caption
    return listed
