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
import pandas as pd
from PIL import Image

from splam.config import ROOT, CocoData
from splam.data.images import DataError, batched, square

SPLITS = {"coco30k": "val2014", "coco5k": "val2017"}
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

    Raises DataError, naming what is missing and the archives it comes in.
    """
    images, annotations = ROOT / folder / split, ROOT / folder / "annotations" / f"captions_{split}.json"
    archives = f"{split}.zip and annotations_trainval{split[3:]}.zip"
    missing, names, captions = [f"annotations/{annotations.name}"], {}, {}
    if annotations.is_file():
        try:
            content = json.loads(annotations.read_text())
            names = {entry["id"]: entry["file_name"] for entry in content["images"]}
            captions = {number: [] for number in sorted(names)}
            for entry in sorted(content["annotations"], key=lambda entry: entry["id"]):
                captions[entry["image_id"]].append(" ".join(entry["caption"].split()))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{annotations} is no caption file of COCO ({error!r}): unpack {archives} again") from None
        present = {path.name for path in images.glob("*.jpg")}
        missing = [f"{split}/{name}" for name in sorted(names.values()) if name not in present]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5:,} more" if len(missing) > 5 else "")
        raise DataError(f"data.coco.folder = {folder} lacks {listed}: unpack cocodataset.org's {archives} there")
    return Coco({number: images / names[number] for number in captions}, captions)


def coco_prompts(coco: Coco, name: str, settings: CocoData) -> Prompts:
    """All captions of protocol "coco30k" or "coco5k": the list that settings name, or a draw by seed.

    The draw takes one caption of every image, in a random order. A list without image ids gets them from the captions
    themselves, whatever their case, spaces and last full stop. Raises DataError for captions of another set.
    """
    file = settings.captions_30k if name == "coco30k" else settings.captions_5k
    if file is None:
        source = random.Random(f"{name}/0")
        described = [number for number, texts in coco.captions.items() if texts]
        ids = source.sample(described, len(described))
        return Prompts(f"{name}-seeded-draw", [source.choice(coco.captions[number]) for number in ids], ids)
    captions, ids = read_captions(ROOT / file)
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
    """The captions of a list, and the ids of their images, None where it has none.

    A list is .json (of captions), .csv or .tsv with columns caption and perhaps image_id, or text, a caption a line.
    Raises DataError for a file that is missing, not of its form, or has empty captions.
    """
    if not path.is_file():
        raise DataError(f"caption list {path} does not exist: correct data.coco.captions_30k or captions_5k")
    try:
        if separator := {".csv": ",", ".tsv": "\t"}.get(path.suffix):
            table = pd.read_csv(path, sep=separator, keep_default_na=False)
        else:
            text = path.read_text(encoding="utf-8")
            table = pd.DataFrame({"caption": json.loads(text) if path.suffix == ".json" else text.splitlines()})
        captions = [" ".join(caption.split()) for caption in table["caption"]]
        ids = table["image_id"].astype(int).tolist() if "image_id" in table else None
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f"caption list {path} is not a list of captions ({error!r})") from None
    if "" in captions:
        raise DataError(f"caption list {path} has empty captions, the first is number {captions.index('') + 1}")
    return captions, ids


def coco_images(coco: Coco, size: int, ids: list[int] | None = None) -> Iterator[np.ndarray]:
    """Images by id, all by default, `square`: batches uint8 (b, size, size, 3). Raises DataError for a broken file.

    They are not turned by their EXIF data: the protocols' references are not either.
    """
    return batched(_image(coco.images[i], size) for i in (coco.images if ids is None else ids))


def _image(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return square(image, size)
    except OSError as error:
        raise DataError(f"{path} is broken ({error}): unpack it again from COCO's archive") from None
