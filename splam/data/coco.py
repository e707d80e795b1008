"""COCO's validation sets, from the files that cocodataset.org packs: references and captions of the FID protocols.

coco30k is the protocol of GigaGAN and DMD2: 30,000 fixed captions of val2014, images centre-cropped and resized by
Lanczos to 256 pixels, against all 40,504 images of val2014. coco5k is val2017, 5,000 images with a caption each.
The two must not be compared. Which 30,000 captions they are is a file of its own; without it captions are a seeded
draw, which is named as such wherever a number is quoted.
"""

import json
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from splam.config import ROOT, CocoData
from splam.data.captions import read_captions
from splam.data.images import DataError, square

SPLITS = {"coco30k": "val2014", "coco5k": "val2017"}
SIZE = 256  # pixels of both protocols
IMAGE_IDS = ("image_id", "coco_id")  # columns of lists; `id` may be of captions


@dataclass(frozen=True)
class Coco:
    """What is drawn of a validation set, and all of it.

    protocol: the name in results; captions, and `described`, the image of each; images: all, in the order of their ids.
    Images are paths, relative to the repository.
    """

    protocol: str
    captions: list[str]
    described: list[str]
    images: list[str]


def read_coco(settings: CocoData, name: str) -> Coco:
    """All images of protocol "coco30k" or "coco5k", and captions: the list that settings name, or a draw by seed.

    The draw takes one caption of every image, in a random order. Raises DataError for files that are missing, naming
    the archives that they come in, and for a list of another set, or without the ids of its images.
    """
    images, captions = _annotated(settings.folder, SPLITS[name])
    key = f"captions_{name.removeprefix('coco')}"
    if not (file := getattr(settings, key)):
        source = random.Random(f"{name}/0")
        described = [number for number, texts in captions.items() if texts]
        ids = source.sample(described, len(described))
        texts, protocol = [source.choice(captions[number]) for number in ids], f"{name}-seeded-draw"
        return Coco(protocol, texts, [images[number] for number in ids], [*images.values()])
    try:
        listed = [(int(str(value)), text) for value, text in read_captions(ROOT / file, IMAGE_IDS)]
    except ValueError as error:  # a DataError is one
        remedy = "image ids are whole numbers in a column image_id"
        raise DataError(f"data.coco.{key} = {file}: {error}; {remedy}") from None
    if strange := [number for number, _ in listed if number not in images]:
        lost = f"{len(strange):,} of {len(listed):,} captions are of no image of {SPLITS[name]}, such as {strange[0]}"
        raise DataError(f"data.coco.{key} = {file}: {lost}: give {SPLITS[name]}'s list")
    return Coco(name, [text for _, text in listed], [images[number] for number, _ in listed], [*images.values()])


def _annotated(folder: str, split: str) -> tuple[dict[int, str], dict[int, list[str]]]:
    """The images of "val2014" or "val2017" and the captions of each, by image id, in the order of the ids."""
    annotations = ROOT / folder / "annotations" / f"captions_{split}.json"
    archives = [f"zips/{split}.zip", f"annotations/annotations_trainval{split[3:]}.zip"]
    urls = " ".join(f"http://images.cocodataset.org/{name}" for name in archives)
    remedy = f"wget -P {folder} {urls}, and unpack them there"
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        names = {entry["id"]: entry["file_name"] for entry in content["images"]}
        images = {number: f"{folder}/{split}/{names[number]}" for number in sorted(names)}
        captions = {number: [] for number in images}
        for entry in sorted(content["annotations"], key=lambda entry: entry["id"]):
            captions[entry["image_id"]].append(" ".join(entry["caption"].split()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"data.coco: {annotations} cannot be read ({error!r}): {remedy}") from None
    if missing := [path for path in images.values() if not (ROOT / path).is_file()]:
        raise DataError(f"data.coco: {split} lacks {len(missing):,} images, such as {missing[0]}: {remedy}")
    return images, captions


def coco_image(path: str, size: int) -> np.ndarray:
    """One of a set's images, `square`: uint8 (size, size, 3). Raises DataError for a broken file.

    It is not turned by its EXIF data: the protocols' references are not either.
    """
    try:
        with Image.open(ROOT / path) as image:
            return square(image, size)
    except (OSError, DataError) as error:
        raise DataError(f"{path} is broken ({error}): unpack it again from COCO's archive") from None
