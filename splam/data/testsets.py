"""Test sets behind one interface: what is drawn and what it is measured against, whatever the data.

"unseen" and "seen" are the two datasets of the tables. In the tiny world they are triples of shape, fill and
colour, and the first images of the unseen set are the smaller set of Table 2b. At Stable Diffusion's size unseen is
coco30k, "unseen-small" coco5k with images and captions of its own, and seen the pictures that are held out from
training. Without COCO those are unseen, and seen are some that are trained on: the protocols' names say which.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from splam.config import Params, PictureData, ShapesData
from splam.data import shapes
from splam.data.coco import SIZE, SPLITS, Prompts, coco_images, coco_prompts, load_coco
from splam.data.images import DataError, batched, built, resize
from splam.data.pictures import Pictures, read_manifest, shares, survey
from splam.data.streams import image_stream

PROTOCOLS = {"unseen": "coco30k", "unseen-small": "coco5k"}
Data = ShapesData | PictureData


@dataclass(frozen=True)
class HeldOut:
    """One test set. Batches of images are uint8 (b, size, size, 3).

    protocol: the name that its numbers are quoted with; prompts: what is drawn; size: pixels at which images are
    measured; references(): all `reference_count` reference images; real(size): real images of the prompts, in order;
    independent: whether those are no part of the references, so that their FID is a floor; choices: all captions that
    an image's own is to be told from, where there is such a list.
    """

    protocol: str
    prompts: list[str]
    size: int
    reference_count: int
    references: Callable[[], Iterator[np.ndarray]]
    real: Callable[[int], Iterator[np.ndarray]]
    independent: bool
    choices: Sequence[str] = ()


def dataset_names(data: Data) -> tuple[str, ...]:
    """The datasets that have images and captions of their own."""
    return ("unseen", "seen") if data.kind == "shapes" or not data.coco else ("unseen", "unseen-small", "seen")


def image_count(params: Params, dataset: str) -> int:
    """How many samples a dataset is measured by."""
    if dataset == "unseen":
        return params.evaluation.images
    small = dataset == "unseen-small" or params.data.kind == "shapes"
    return params.evaluation.small_images if small else params.data.test_images


def held_out_set(data: Data, folder: Path, dataset: str, count: int) -> HeldOut:
    """The test set of a dataset with `count` prompts; folder: what the data stage wrote.

    Raises DataError or ValueError if there are not so many.
    """
    if dataset not in dataset_names(data):
        raise ValueError(f"dataset {dataset!r}: data of kind {data.kind} has {', '.join(dataset_names(data))}")
    if data.kind == "shapes":
        held_out = _shapes_set(data, folder, dataset, count)
    elif share := shares(data).get(dataset):
        held_out = _own_set(data, folder, share, count)
    else:
        held_out = _coco_set(data, folder, dataset, count)
    if len(held_out.prompts) < count or not held_out.reference_count:
        raise DataError(
            f"{held_out.protocol} has {len(held_out.prompts):,} prompts and {held_out.reference_count:,} references, "
            f"{count:,} prompts are asked for: lower the images that evaluation draws"
        )
    return held_out


def _shapes_set(data: ShapesData, folder: Path, dataset: str, count: int) -> HeldOut:
    """The first `count` of data.test_images, by their full captions; what comes after those are references."""
    split = shapes.Split.load(folder / dataset)
    drawn, rest = split[: min(count, data.test_images)], split[data.test_images :]

    def real(size: int) -> Iterator[np.ndarray]:
        return (resize(images, size) for images in batched(drawn.images))

    references = partial(batched, rest.images)
    prompts, choices = drawn.captions(), shapes.full_captions()
    return HeldOut(f"shapes-{dataset}", prompts, shapes.SIZE, len(rest), references, real, True, choices)


def _coco_set(data: PictureData, folder: Path, dataset: str, count: int) -> HeldOut:
    """The first `count` captions of coco30k or coco5k against all images of its validation set."""
    name, size = PROTOCOLS[dataset], data.coco.image_size
    coco = load_coco(Path(data.coco.folder), SPLITS[name])
    prompts = Prompts(**json.loads(built(folder / f"{name}.json").read_text()))
    protocol = prompts.protocol + ("" if size == SIZE else f"-at-{size}")  # of another size: another protocol
    references, real = partial(coco_images, coco, size), partial(coco_images, coco, ids=prompts.image_ids[:count])
    return HeldOut(protocol, prompts.captions[:count], size, len(coco.images), references, real, False)


def _own_set(data: PictureData, folder: Path, share: str, count: int) -> HeldOut:
    """The first `count` samples of a share against as many as data.test_images that come after those."""
    pictures, half = Pictures(data, folder, share), data.test_images
    size = data.coco.image_size if data.coco else SIZE

    def images(rows: range, size: int) -> Iterator[np.ndarray]:
        return batched(pictures.image(row, size) for row in rows)

    prompts = [pictures.sample(row).caption for row in range(min(count, half))]
    references, real = partial(images, range(half, 2 * half), size), partial(images, range(count))
    return HeldOut(f"{data.kind}-{share.replace('_', '-')}", prompts, size, half, references, real, True)


def build(data: Data, folder: Path, seed: int) -> None:
    """Make what the other stages read: the images of the tiny world, or of real data what identifies them.

    For shards and folders: what survey writes; for COCO folder/coco30k.json and coco5k.json.
    """
    if data.kind == "shapes":
        test = data.test_images + data.reference_images
        for split, count in (("train", data.train_images), ("seen", test), ("unseen", test)):
            shapes.make(split, seed, count).save(folder / split)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in SPLITS.items() if data.coco else ():
        prompts = coco_prompts(load_coco(Path(data.coco.folder), split), name, data.coco)
        (folder / f"{name}.json").write_text(json.dumps(asdict(prompts), indent=0) + "\n")
    survey(data, folder)


def describe(data: Data, folder: Path) -> list[str]:
    """What the data are, in a few lines; of real data, what was read, what is used, and the most frequent faults."""
    if data.kind == "shapes":
        splits = {name: shapes.Split.load(folder / name) for name in shapes.SPLITS}
        return [f"{n}: {len(s):,} pictures, {len(set(s.captions())):,} full captions" for n, s in splits.items()]
    facts = read_manifest(folder)
    lines = [facts["read"], f"{facts['training']:,} samples to train on, {facts['held_out']:,} held out"]
    return lines + [f"{fault}, {number:,} times" for fault, number in facts["faults"].items()]


def preview(data: Data, folder: Path, count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """The first training images with their captions: uint8 (count, h, w, 3), and count strings."""
    if data.kind == "shapes":
        train = shapes.Split.load(folder / "train")[:count]
        return np.asarray(train.images), train.captions(np.arange(len(train)) % len(shapes.LEVELS))
    pixels, captions = next(image_stream(data.model_copy(update={"workers": 0}), folder, count, seed).batches())
    return np.rint((pixels.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8), captions
