"""Latents and caption embeddings, encoded once and kept: 151 kB an image at Stable Diffusion 1.5's sizes in float16.

Crops are then fixed, and so is which of the autoencoder's latents is taken.
"""

import bisect
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from splam.config import LatentsSettings
from splam.data.images import DataError

INDEX = "index.json"


def encode_shards(
    batches: Callable[[int], Iterator[tuple[Tensor, list[str]]]],
    encode: Callable[[Tensor, list[str], int], tuple[Tensor, Tensor]],
    folder: Path,
    settings: LatentsSettings,
    facts: Mapping[str, Any],
) -> None:
    """Encode the first settings.images images, up to whole batches, into folder/000000.safetensors and so on.

    batches(n): pixels (b, 3, H, W) and captions from batch n on; encode(pixels, captions, n): their latents
    (b, c, h, w) and embeddings (b, tokens, width); facts: what the result depends on. A stopped run goes on after its
    last whole file; latents of another plan are removed.
    """
    count, each = math.ceil(settings.images / settings.batch_size), settings.batches_per_file
    _claim(folder, {"batches": count, "batches_per_file": each, "dtype": settings.dtype, "facts": dict(facts)})
    files = LatentShards(folder).files
    first = next((number * each for number, file in enumerate(files) if not file.is_file()), count)
    source = batches(first)
    with tqdm(total=count, initial=first, desc="latents", unit="batch", mininterval=2) as bar:
        for start in range(first, count, each):
            parts = []
            for number in range(start, min(start + each, count)):
                pixels, captions = next(source)
                parts.append((*encode(pixels, captions, number), captions))
                bar.update()
            _write(files[start // each], parts, getattr(torch, settings.dtype))


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Write what the folder is going to hold; if it holds something else, remove that."""
    index = folder / INDEX
    if index.is_file():
        found = json.loads(index.read_text())
        other = ", ".join(key for key in plan if found.get(key) != json.loads(json.dumps(plan[key])))
        if not other:
            return
        print(f"{folder} holds latents with other {other}: they are removed", file=sys.stderr)
        shutil.rmtree(folder)
    elif any(folder.glob("*.safetensors")):
        raise DataError(f"{folder} holds latents but no {INDEX}: delete it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    part = index.with_suffix(".part")
    part.write_text(json.dumps(plan, indent=1, sort_keys=True) + "\n")
    os.replace(part, index)


def _write(path: Path, parts: list[tuple[Tensor, Tensor, list[str]]], dtype: torch.dtype) -> None:
    """Write one file, whole or not at all. Raises DataError for values that are not finite."""
    latents, embeddings = (torch.cat([part[i] for part in parts]).to("cpu", dtype).contiguous() for i in (0, 1))
    if not (latents.isfinite().all() and embeddings.isfinite().all()):
        raise DataError(f"{path.name}: values that {dtype} cannot hold: choose another dtype")
    captions = [caption for *_, texts in parts for caption in texts]
    part = path.with_suffix(".part")
    save_file({"latents": latents, "embeddings": embeddings}, part, {"captions": json.dumps(captions)})
    os.replace(part, path)


@dataclass(frozen=True)
class LatentShards:
    """What encode_shards has written, read a few rows at a time."""

    folder: Path

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What the folder holds: batches, batches_per_file, dtype and facts. Raises FileNotFoundError."""
        if not (index := self.folder / INDEX).is_file():
            remedy = "run the latents stage first, or set training.source to data"
            raise FileNotFoundError(f"there are no latents in {self.folder}: {remedy}")
        return json.loads(index.read_text())

    @cached_property
    def files(self) -> list[Path]:
        """All files that there are, or are going to be."""
        count = math.ceil(self.plan["batches"] / self.plan["batches_per_file"])
        return [self.folder / f"{number:06d}.safetensors" for number in range(count)]

    @cached_property
    def starts(self) -> list[int]:
        """The row at which each file begins, and after them the number of all rows. Raises DataError."""
        sizes = []
        for path in self.files:
            if not path.is_file():
                raise DataError(f"there is no {path}: run the latents stage again, it goes on")
            with safe_open(path, "pt") as file:
                sizes.append(file.get_slice("latents").get_shape()[0])
        return list(itertools.accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def captions(self, number: int) -> list[str]:
        """The captions of one file."""
        with safe_open(self.files[number], "pt") as file:
            return json.loads(file.metadata()["captions"])

    def rows(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents (n, c, h, w) and embeddings (n, tokens, width) of some images, float32, in the order asked for."""
        latents, embeddings = (torch.cat(column).float() for column in zip(*map(self._row, rows), strict=True))
        return latents, embeddings

    def _row(self, row: int) -> tuple[Tensor, Tensor]:
        """One image's latent (1, c, h, w) and embeddings (1, tokens, width)."""
        number = bisect.bisect_right(self.starts, row) - 1
        at = slice(row - self.starts[number], row - self.starts[number] + 1)
        with safe_open(self.files[number], "pt") as file:
            return file.get_slice("latents")[at], file.get_slice("embeddings")[at]
