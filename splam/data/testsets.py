"""Test sets behind one interface: what is drawn and what it is measured against, whatever the data.

"unseen" and "seen" are the two datasets of the tables. In the tiny world they are triples of shape, fill and
colour, and the first images of the unseen set are the smaller set of Table 2b. At Stable Diffusion's size unseen is
coco30k, "unseen-small" coco5k with images and captions of its own, and seen the pictures that are held out from
training. Without COCO those are unseen, and seen are some that are trained on: the protocols' names say which.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from splam.config import Params, PictureData, ShapesData
from splam.data import shapes
from splam.data.coco import SIZE, SPLITS, Coco, coco_image, read_coco
from splam.data.images import DataError, built, resize
from splam.data.pictures import Pictures, survey

Data = ShapesData | PictureData
BATCH = 250  # images that are held at a time


@dataclass(frozen=True)
class HeldOut:
    """One test set.

    protocol: the name that its numbers are quoted with; prompts: what is drawn; size: pixels at which images are
    measured; drawn, compared: the real images of the prompts, in order, and all references, by what `image` knows them;
    choices: all captions that an image's own is to be told from, where there is such a list.
    """

    protocol: str
    prompts: list[str]
    size: int
    drawn: Sequence[Any]
    compared: Sequence[Any]
    image: Callable[[Any, int], np.ndarray]
    choices: Sequence[str] = ()

    @property
    def independent(self) -> bool:
        """Whether the prompts' real images are no references, so that their FID is a floor."""
        return set(self.drawn).isdisjoint(self.compared)

    def real(self, size: int) -> Iterator[np.ndarray]:
        """Batches of the prompts' real images, uint8 (b, size, size, 3)."""
        return self._batches(self.drawn, size)

    def references(self) -> Iterator[np.ndarray]:
        """Batches of the reference images, uint8 (b, size, size, 3)."""
        return self._batches(self.compared, self.size)

    def _batches(self, which: Sequence[Any], size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(which), BATCH):
            yield np.stack([self.image(one, size) for one in which[start : start + BATCH]])


def dataset_sizes(params: Params) -> dict[str, int]:
    """The datasets that have images and captions of their own, and how many samples each is measured by."""
    evaluation, data = params.evaluation, params.data
    if data.kind == "shapes":
        return {"unseen": evaluation.images, "seen": evaluation.small_images}
    small = {"unseen-small": evaluation.small_images} if data.coco else {}
    return {"unseen": evaluation.images, **small, "seen": data.test_images}


def held_out_set(data: Data, folder: Path, dataset: str, count: int) -> HeldOut:
    """The test set of a dataset with `count` prompts; folder: what the data stage wrote.

    Raises DataError if there are not so many.
    """
    if data.kind == "shapes":
        whole = _shapes_set(data, folder, dataset)
    elif data.coco and dataset != "seen":
        whole = _coco_set(data, folder, {"unseen": "coco30k", "unseen-small": "coco5k"}[dataset])
    else:
        whole = _own_set(data, folder, "training" if dataset == "seen" and not data.coco else "held_out")
    if len(whole.prompts) < count:
        raise DataError(
            f"{whole.protocol} has {len(whole.prompts):,} prompts and {len(whole.compared):,} references, "
            f"{count:,} prompts are asked for: lower the images that evaluation draws"
        )
    return replace(whole, prompts=whole.prompts[:count], drawn=whole.drawn[:count])


def _shapes_set(data: ShapesData, folder: Path, name: str) -> HeldOut:
    """The first data.test_images, by their full captions; what comes after those are references."""
    split, count = shapes.Split.load(folder / f"{name}.npy"), data.test_images

    def image(row: int, size: int) -> np.ndarray:
        return resize(split.images[row : row + 1], size)[0]

    rows, choices = range(len(split)), shapes.full_captions()
    prompts = split[:count].captions()
    return HeldOut(f"shapes-{name}", prompts, shapes.SIZE, rows[:count], rows[count:], image, choices)


def _coco_set(data: PictureData, folder: Path, name: str) -> HeldOut:
    """The captions of coco30k or coco5k against all images of its validation set."""
    coco, size = Coco(**json.loads(built(folder / f"{name}.json").read_text())), data.coco.image_size
    protocol = coco.protocol + ("" if size == SIZE else f"-at-{size}")  # of another size: another protocol
    return HeldOut(protocol, coco.captions, size, coco.described, coco.images, coco_image)


def _own_set(data: PictureData, folder: Path, share: str) -> HeldOut:
    """The first data.test_images samples of a share against as many that come after those."""
    pictures, rows, half = Pictures(data, folder, share), range(2 * data.test_images), data.test_images
    protocol, size = f"{data.kind}-{share.replace('_', '-')}", data.coco.image_size if data.coco else SIZE
    prompts = [pictures.sample(row).caption for row in rows[:half]]
    return HeldOut(protocol, prompts, size, rows[:half], rows[half:], pictures.image)


def build(data: Data, folder: Path, seed: int) -> list[str]:
    """Make what the other stages read: the images of the tiny world, or of real data what identifies them.

    For shards and folders: what survey writes; for COCO folder/coco30k.json and coco5k.json. Returns what the data are
    in a few lines; of real data, what was read, what is used, and the most frequent faults.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if data.kind == "shapes":
        lines, test = [], data.test_images + data.reference_images
        for name, count in (("train", data.train_images), ("seen", test), ("unseen", test)):
            split = shapes.make(name, seed, count)
            np.save(folder / f"{name}.npy", split)
            lines.append(f"{name}: {count:,} pictures, {len(set(split.captions())):,} full captions")
        return lines
    for name in SPLITS if data.coco else ():
        (folder / f"{name}.json").write_text(json.dumps(asdict(read_coco(data.coco, name)), indent=0) + "\n")
    facts = survey(data, folder)
    lines = [facts["read"], f"{facts['training']:,} samples to train on, {facts['held_out']:,} held out"]
    return lines + [f"{fault}, {number:,} times" for fault, number in facts["faults"].items()]
