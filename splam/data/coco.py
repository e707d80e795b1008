"""COCO's validation sets, from the files that cocodataset.org packs: references and captions of the FID protocols.

coco30k is the protocol of GigaGAN and DMD2: 30,000 fixed captions of val2014, images centre-cropped and resized by
Lanczos to 256 pixels, against all 40,504 images of val2014. coco5k is val2017, 5,000 images with a caption each.
The two must not be compared. Which 30,000 captions they are is a file of its own; without it captions are a seeded
draw, which is named as such wherever a number is quoted.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from splam.config import ROOT, CocoData
from splam.data.captions import captions, column, read_rows
from splam.data.images import DataError, batched, square

SPLITS = {"coco30k": "val2014", "coco5k": "val2017"}
SIZE = 256  # pixels of both protocols
IMAGE_IDS = ("image_id", "coco_id")  # columns of lists; `id` may be of captions


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

    Raises DataError, naming what is missing and the archives it comes in.
    """
    images, annotations = ROOT / folder / split, ROOT / folder / "annotations" / f"captions_{split}.json"
    archives = [f"zips/{split}.zip", f"annotations/annotations_trainval{split[3:]}.zip"]
    urls = " ".join(f"http://images.cocodataset.org/{name}" for name in archives)
    remedy = f"wget -P {folder} {urls}, and unpack them there"
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        names = {entry["id"]: entry["file_name"] for entry in content["images"]}
        captions = {number: [] for number in sorted(names)}
        for entry in sorted(content["annotations"], key=lambda entry: entry["id"]):
            captions[entry["image_id"]].append(" ".join(entry["caption"].split()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"data.coco: {annotations} cannot be read ({error!r}): {remedy}") from None
    present = {path.name for path in images.glob("*.jpg")}
    if missing := sorted(set(names.values()) - present):
        raise DataError(f"data.coco: {images} lacks {len(missing):,} images, such as {missing[0]}: {remedy}")
    return Coco({number: images / names[number] for number in captions}, captions)


def coco_prompts(coco: Coco, name: str, settings: CocoData) -> Prompts:
    """All captions of protocol "coco30k" or "coco5k": the list that settings name, or a draw by seed.

    The draw takes one caption of every image, in a random order. Raises DataError for a list of another set, or
    without the ids of its images.
    """
    key = f"captions_{name.removeprefix('coco')}"
    if not (file := getattr(settings, key)):
        source = random.Random(f"{name}/0")
        described = [number for number, texts in coco.captions.items() if texts]
        ids = source.sample(described, len(described))
        return Prompts(f"{name}-seeded-draw", [source.choice(coco.captions[number]) for number in ids], ids)
    try:
        texts = captions(rows := read_rows(path := ROOT / file), path)
        ids = [int(str(value)) for value in column(rows, IMAGE_IDS, path) or [None]]
    except ValueError as error:  # a DataError is one
        remedy = "image ids are whole numbers in a column image_id"
        raise DataError(f"data.coco.{key} = {file}: {error}; {remedy}") from None
    if strange := [number for number in ids if number not in coco.images]:
        lost = f"{len(strange):,} of {len(ids):,} captions are of no image of {SPLITS[name]}, such as {strange[0]}"
        raise DataError(f"data.coco.{key} = {file}: {lost}: give {SPLITS[name]}'s list")
    return Prompts(name, texts, ids)


def coco_images(coco: Coco, size: int, ids: list[int] | None = None) -> Iterator[np.ndarray]:
    """Images by id, all by default, `square`: batches uint8 (b, size, size, 3). Raises DataError for a broken file.

    They are not turned by their EXIF data: the protocols' references are not either.
    """
    return batched(_image(coco.images[i], size) for i in (coco.images if ids is None else ids))


def _image(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return square(image, size)
    except (OSError, DataError) as error:
        raise DataError(f"{path} is broken ({error}): unpack it again from COCO's archive") from None
