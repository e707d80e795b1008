"""COCO's validation sets, from the files that cocodataset.org packs: references and captions of the FID protocols.

coco30k is the protocol of GigaGAN and DMD2: 30,000 fixed captions of val2014, images centre-cropped and resized by
Lanczos to 256 pixels, against all 40,504 images of val2014. coco5k is val2017, 5,000 images with a caption each.
The two must not be compared. Which 30,000 captions they are is a file of its own; without it captions are a seeded
draw, which is named as such wherever a number is quoted.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from splam.data.images import batched, square
from splam.data.laion import DataError
from splam.params import CocoData

SPLITS = {"coco30k": "val2014", "coco5k": "val2017"}
ARCHIVES = {"val2014": ("val2014.zip", "annotations_trainval2014.zip")}
ARCHIVES |= {"val2017": ("val2017.zip", "annotations_trainval2017.zip")}
SIZE = 256  # pixels of both protocols


@dataclass(frozen=True)
class Coco:
    """One validation set: the paths of its images by image id, in the order of the ids, and the captions of each."""

    images: dict[int, Path]
    captions: dict[int, list[str]]


@dataclass(frozen=True)
class Prompts:
    """What is drawn of a set: the protocol's name in results, captions, and the ids of the images they describe."""

    protocol: str
    captions: list[str]
    image_ids: list[int]


def load_coco(folder: Path, split: str) -> Coco:
    """Read the annotations of "val2014" or "val2017" and find its images.

    Raises DataError, naming all that is missing and the archives it comes in.
    """
    annotations = folder / "annotations" / f"captions_{split}.json"
    if not annotations.is_file():
        raise DataError(_missing(folder, split, [f"annotations/{annotations.name}"], not (folder / split).is_dir()))
    try:
        content = json.loads(annotations.read_text())
        names = {entry["id"]: entry["file_name"] for entry in content["images"]}
        captions: dict[int, list[str]] = {number: [] for number in sorted(names)}
        for entry in sorted(content["annotations"], key=lambda entry: entry["id"]):
            captions[entry["image_id"]].append(" ".join(entry["caption"].split()))
    except (ValueError, KeyError, TypeError) as error:
        archive = ARCHIVES[split][1]
        raise DataError(f"{annotations} is no caption file of COCO ({error!r}): unpack {archive} again") from None
    present = {path.name for path in (folder / split).glob("*.jpg")}
    if missing := [f"{split}/{name}" for name in sorted(names.values()) if name not in present]:
        raise DataError(_missing(folder, split, missing))
    return Coco({number: folder / split / names[number] for number in captions}, captions)


def _missing(folder: Path, split: str, names: list[str], images_too: bool = False) -> str:
    """The one error of an incomplete folder."""
    names = [*names, *([f"all of {split}/"] if images_too else [])]
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    images, annotations = ARCHIVES[split]
    return (
        f"data.coco.folder = {folder} lacks {listed}. They come in cocodataset.org's {images} ({split}/) and "
        f"{annotations} (annotations/): unpack both there"
    )


def coco_prompts(coco: Coco, name: str, settings: CocoData) -> Prompts:
    """All captions of protocol "coco30k" or "coco5k": the list that settings name, or a draw by seed.

    The draw takes one caption of every image, in a random order. A list without image ids gets them from the captions
    themselves, whatever their case, spaces and last full stop. Raises DataError for captions of another set.
    """
    file = settings.captions_30k if name == "coco30k" else settings.captions_5k
    if file is None:
        source = random.Random(f"{name}/{settings.seed}")
        described = [number for number, texts in coco.captions.items() if texts]
        ids = source.sample(described, len(described))
        return Prompts(f"{name}-seeded-draw", [source.choice(coco.captions[number]) for number in ids], ids)
    captions, ids = read_captions(Path(file))
    if ids is None:
        owners = {_plain(text): number for number, texts in coco.captions.items() for text in texts}
        ids = [owners.get(_plain(caption), -1) for caption in captions]
    if strange := [c for c, number in zip(captions, ids, strict=True) if number not in coco.images]:
        raise DataError(
            f"caption list {file}: {len(strange):,} of {len(captions):,} captions are of no image of {SPLITS[name]}, "
            f"the first is {strange[0]!r}: give {SPLITS[name]}'s list, or its image ids in a column image_id"
        )
    return Prompts(name, captions, ids)


def _plain(caption: str) -> str:
    return " ".join(caption.casefold().split()).rstrip(". ")


def read_captions(path: Path) -> tuple[list[str], list[int] | None]:
    """A caption list: .json (a list of captions), .csv or .tsv with columns caption and, if known, image_id, or text.

    Text holds one caption a line. Returns the captions and the image ids, None where there are none. Raises DataError
    for a file that is missing, not of its form, or has empty captions.
    """
    if not path.is_file():
        raise DataError(f"caption list {path} does not exist: correct data.coco.captions_30k or captions_5k")
    ids = None
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            captions = json.loads(text)
        elif path.suffix in (".csv", ".tsv"):
            rows = list(csv.DictReader(text.splitlines(), delimiter="," if path.suffix == ".csv" else "\t"))
            captions = [row["caption"] for row in rows]
            ids = [int(row["image_id"]) for row in rows] if rows and "image_id" in rows[0] else None
        else:
            captions = text.splitlines()
        captions = [" ".join(caption.split()) for caption in captions]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"caption list {path} is not a list of captions ({error!r})") from None
    if empty := [i + 1 for i, caption in enumerate(captions) if not caption]:
        raise DataError(f"caption list {path} has {len(empty)} empty captions, the first is number {empty[0]}")
    return captions, ids


def coco_images(coco: Coco, size: int, ids: list[int] | None = None, batch_size: int = 250) -> Iterator[np.ndarray]:
    """Images by id, all by default: centre crop, Lanczos to `size`, batches uint8 (b, size, size, 3).

    Raises DataError for a broken file.
    """
    return batched((_image(coco.images[i], size) for i in (coco.images if ids is None else ids)), batch_size)


def _image(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return square(image, size)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} is broken ({error}): unpack it again from COCO's archive") from None
