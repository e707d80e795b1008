"""Test sets behind one interface: what is drawn, what it is measured against, whatever the data.

"unseen" and "seen" are the two datasets of the tables. In the tiny world they are combinations of glyph and colour, and
the first images of the unseen set are the smaller set of Table 2b. At Stable Diffusion's size unseen is coco30k,
"unseen-small" coco5k with images and captions of its own, and seen the split of LAION that is never trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from splam.data import emoji
from splam.data.coco import SIZE, SPLITS, Coco, Prompts, coco_images, coco_prompts, load_coco
from splam.data.images import batched, resize
from splam.data.laion import DataError, LaionStream, expand_shards, held_out_captions, held_out_images, write_held_out
from splam.data.manifest import build_manifest, check_manifest, load_manifest, save_manifest
from splam.params import EmojiData, LaionData, Params

PROTOCOLS = {"unseen": "coco30k", "unseen-small": "coco5k"}
BATCH = 250  # images
HASHES = Path("build/scratch/shard-hashes.json")  # a cache: no shard that has not been touched is hashed twice


@dataclass(frozen=True)
class HeldOut:
    """One test set. Batches of images are uint8 (b, size, size, 3).

    protocol: the name that its numbers are quoted with; prompts: what is drawn; size: pixels at which images are
    measured; references(): all `reference_count` reference images; real(size): real images of the prompts, in order;
    independent: whether those are no part of the references, so that their FID is a floor.
    """

    protocol: str
    prompts: list[str]
    size: int
    reference_count: int
    references: Callable[[], Iterator[np.ndarray]]
    real: Callable[[int], Iterator[np.ndarray]]
    independent: bool


def dataset_names(data: EmojiData | LaionData) -> tuple[str, ...]:
    """The datasets that have images and captions of their own."""
    return ("unseen", "seen") if data.kind == "emoji" else ("unseen", "unseen-small", "seen")


def image_count(params: Params, dataset: str) -> int:
    """How many samples a dataset is measured by."""
    if params.data.kind == "emoji" or dataset == "unseen":
        return params.evaluation.images
    return params.evaluation.small_images if dataset == "unseen-small" else params.data.test_images


def held_out_set(data: EmojiData | LaionData, folder: Path, dataset: str, count: int) -> HeldOut:
    """The test set of a dataset with `count` prompts; folder: what the data stage wrote.

    Raises DataError or ValueError where there are not so many.
    """
    if dataset not in dataset_names(data):
        raise ValueError(f"dataset {dataset!r}: data of kind {data.kind} has {', '.join(dataset_names(data))}")
    if data.kind == "emoji":
        return emoji_set(folder, dataset, count)
    if dataset == "seen":
        return laion_set(data, folder / "seen.tar", count)
    return coco_set(data, folder, PROTOCOLS[dataset], count)


def emoji_set(folder: Path, dataset: str, count: int) -> HeldOut:
    """Combinations of glyph and colour, captions of all levels in equal shares; the rest are references."""
    split = emoji.Split.load(folder / dataset)
    if len(split) <= count:
        raise ValueError(f"dataset {dataset!r} has {len(split)} images, evaluation.images asks for {count} beside refs")
    drawn = emoji.Split(*(part[:count] for part in (split.images, split.glyph, split.colour)))

    def real(size: int) -> Iterator[np.ndarray]:
        return (resize(np.asarray(drawn.images[i : i + BATCH]), size) for i in range(0, count, BATCH))

    prompts = drawn.captions(np.arange(count) % len(emoji.LEVELS))
    references = split.images[count:]
    return HeldOut(
        f"emoji-{dataset}", prompts, emoji.SIZE, len(references), lambda: iter([np.asarray(references)]), real, True
    )


def coco_set(data: LaionData, folder: Path, name: str, count: int) -> HeldOut:
    """The first `count` captions of coco30k or coco5k against all images of its validation set."""
    coco, prompts = load_coco(Path(data.coco.folder), SPLITS[name]), _load_prompts(folder, name)
    if len(prompts.captions) < count:
        raise DataError(
            f"{prompts.protocol} has {len(prompts.captions):,} captions, {count:,} are asked for: lower "
            "evaluation.images and evaluation.small_images, or give a longer list"
        )
    size = data.coco.image_size
    protocol = (
        prompts.protocol if size == SIZE else f"{prompts.protocol}-at-{size}"
    )  # of another size: another protocol
    ids = prompts.image_ids[:count]
    references = partial(coco_images, coco, size, None, BATCH)
    real = partial(_coco_real, coco, ids)
    return HeldOut(protocol, prompts.captions[:count], size, len(coco.images), references, real, False)


def _coco_real(coco: Coco, ids: list[int], size: int) -> Iterator[np.ndarray]:
    return coco_images(coco, size, ids, BATCH)


def laion_set(data: LaionData, shard: Path, count: int) -> HeldOut:
    """The first `count` samples of our own held-out split against its second half; measured as COCO is."""
    if not shard.is_file():
        raise FileNotFoundError(f"there is no {shard}: run the data stage (dvc repro data) first")
    if count > data.test_images:
        raise DataError(f"the LAION test split has data.test_images = {data.test_images:,} captions, not {count:,}")
    half, size = data.test_images, data.coco.image_size
    captions = held_out_captions(shard)[:count]

    def images(rows: range, size: int) -> Iterator[np.ndarray]:
        return batched(held_out_images(shard, rows, size), BATCH)

    references = partial(images, range(half, 2 * half), size)
    return HeldOut("laion-held-out", captions, size, half, references, partial(images, range(count)), True)


# The data stage


def build(data: EmojiData | LaionData, folder: Path, seed: int, cache: Path = HASHES) -> None:
    """Make what the other stages read: the images of the tiny world, or of real data what identifies them.

    For LAION and COCO: folder/manifest.json, folder/coco30k.json and coco5k.json (captions), folder/seen.tar.
    """
    if data.kind == "emoji":
        emoji.build(folder, seed, data.train_draws, data.test_draws, data.every)
        return
    captions = {}
    for name, split in SPLITS.items():
        prompts = coco_prompts(load_coco(Path(data.coco.folder), split), name, data.coco)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(asdict(prompts), indent=0) + "\n")
        captions[name] = prompts.captions
    write_held_out(data, 2 * data.test_images, folder / "seen.tar")
    captions["seen"] = held_out_captions(folder / "seen.tar")
    save_manifest(build_manifest(expand_shards(data.shards), captions, cache), folder / "manifest.json")


def _load_prompts(folder: Path, name: str) -> Prompts:
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run the data stage (dvc repro data) first")
    return Prompts(**json.loads(path.read_text()))


def check(data: EmojiData | LaionData, folder: Path, cache: Path = HASHES) -> list[str]:
    """What is wrong with the data, a sentence each: leaks of the tiny world; real data that is not the manifest's."""
    if data.kind == "emoji":
        return emoji.leaks(folder)
    captions = {name: _load_prompts(folder, name).captions for name in SPLITS}
    captions["seen"] = held_out_captions(folder / "seen.tar")
    manifest = load_manifest(folder / "manifest.json")
    return check_manifest(manifest, expand_shards(data.shards), captions, cache)


def describe(data: EmojiData | LaionData, folder: Path) -> list[str]:
    """What the data are, in a few lines."""
    if data.kind == "emoji":
        return emoji.describe(folder)
    manifest = load_manifest(folder / "manifest.json")
    sizes = [entry.get("bytes", 0) for entry in manifest["shards"]]
    lines = [
        f"{len(sizes):,} shards of {sum(sizes) / 1e9:,.3f} GB; {data.held_out_share:.1%} of the samples are held out"
    ]
    for name in SPLITS:
        prompts = _load_prompts(folder, name)
        lines.append(
            f"{prompts.protocol}: {len(prompts.captions):,} captions, {manifest['captions'][name]['sha256'][:16]}"
        )
    return [*lines, f"laion-held-out: {data.test_images:,} captions, and as many reference images"]


def preview(data: EmojiData | LaionData, folder: Path, count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """The first training images with their captions: uint8 (count, h, w, 3), and count strings."""
    if data.kind == "emoji":
        train = emoji.Split.load(folder / "train")
        return np.asarray(train.images[:count]), train.captions(np.arange(len(train)) % len(emoji.LEVELS))[:count]
    alone = data.model_copy(update={"workers": 0})
    pixels, captions = next(LaionStream(alone, count, seed).batches())
    return np.rint((pixels.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8), captions
