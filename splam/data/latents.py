"""Latents and text embeddings, encoded once and kept: an optional stage that trades disk for time.

Without it every iteration decodes, encodes and embeds its images anew; with it an image takes `bytes_per_image`, at
Stable Diffusion 1.5's sizes in half precision 151 kB (33 kB of latents, 118 kB of embeddings), 1.8 TB for 12 million.
Crops are then fixed. The caller gives the two encoders as callables.
"""

from __future__ import annotations

import json
import math
import os
import shutil
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

from splam.data.laion import DataError

INDEX = "index.json"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def bytes_per_image(latent_shape: Sequence[int], tokens: int, width: int, dtype: torch.dtype = torch.float16) -> int:
    """What one image takes on disk: a latent (c, h, w) and embeddings (tokens, width)."""
    return (math.prod(latent_shape) + tokens * width) * dtype.itemsize


def encode_shards(
    batches: Callable[[int], Iterator[tuple[Tensor, list[str]]]],
    encode: Callable[[Tensor], Tensor],
    embed: Callable[[list[str]], Tensor],
    folder: Path,
    count: int,
    facts: Mapping[str, Any],
    per_shard: int = 64,
    dtype: str = "float16",
) -> None:
    """Encode the first `count` batches into folder/000000.safetensors ..., `per_shard` of them a file.

    batches(n): pixels (b, 3, H, W) and captions from batch n on, as LaionStream gives them; encode: pixels to
    latents (b, c, h, w); embed: captions to (b, tokens, width); facts: what the result depends on, such as the hashes
    of teacher and manifest. A stopped run goes on after its last whole file. Raises DataError where the folder holds
    other latents, the disk is too small, or values are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"batches": count, "per_shard": per_shard, "dtype": dtype, "facts": dict(facts)}
    _claim(folder, plan)
    whole = len(_files(folder))
    first = min(whole * per_shard, count)
    source = batches(first)
    with tqdm(total=count, initial=first, desc="latents", unit="batch", mininterval=2) as bar:
        for shard in range(whole, math.ceil(count / per_shard)):
            parts = []
            for _ in range(min(per_shard, count - shard * per_shard)):
                pixels, captions = next(source)
                parts.append((encode(pixels), embed(captions), captions))
                if len(parts) == 1 and shard == whole:
                    _check_room(folder, *parts[0][:2], count - first, DTYPES[dtype])
                bar.update()
            _write(folder / f"{shard:06d}.safetensors", parts, DTYPES[dtype])


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Write what the folder is going to hold, or see that it holds the same."""
    index = folder / INDEX
    if index.is_file():
        found = json.loads(index.read_text())
        if other := [key for key in plan if found.get(key) != json.loads(json.dumps(plan[key]))]:
            raise DataError(f"{folder} holds latents with other {', '.join(other)}: delete it, or name another folder")
        return
    if _files(folder):
        raise DataError(f"{folder} holds latents but no {INDEX}: delete it, or name another folder")
    part = index.with_suffix(".part")
    part.write_text(json.dumps(plan, indent=1, sort_keys=True) + "\n")
    os.replace(part, index)


def _files(folder: Path) -> list[Path]:
    """The whole shards, in order; one that is missing in between is an error."""
    files = sorted(folder.glob("[0-9]*.safetensors"))
    for number, file in enumerate(files):
        if file.name != f"{number:06d}.safetensors":
            raise DataError(
                f"{folder} lacks {number:06d}.safetensors: delete the files from {file.name} on and run again"
            )
    return files


def _check_room(folder: Path, latents: Tensor, embeddings: Tensor, batches: int, dtype: torch.dtype) -> None:
    each = bytes_per_image(latents.shape[1:], *embeddings.shape[1:], dtype)
    needed, free = each * len(latents) * batches, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {needed / 1e9:,.3f} GB of latents ({each:,} bytes an image) do not fit, {free / 1e9:,.3f} GB "
            "are free: encode fewer batches, or train from the images"
        )


def _write(path: Path, parts: list[tuple[Tensor, Tensor, list[str]]], dtype: torch.dtype) -> None:
    """Write one file, whole or not at all."""
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
    def files(self) -> list[Path]:
        """All files. Raises DataError where some are still to come."""
        index = self.folder / INDEX
        if not index.is_file():
            raise FileNotFoundError(f"there are no latents in {self.folder}: run the latents stage first")
        plan, files = json.loads(index.read_text()), _files(self.folder)
        if len(files) < (asked := math.ceil(plan["batches"] / plan["per_shard"])):
            raise DataError(f"{self.folder} has {len(files)} of {asked} files: run the latents stage again, it goes on")
        return files

    @cached_property
    def sizes(self) -> list[int]:
        """Images in each file."""
        return [len(self.captions(number)) for number in range(len(self.files))]

    def __len__(self) -> int:
        return sum(self.sizes)

    def captions(self, number: int) -> list[str]:
        """The captions of one file."""
        with safe_open(self.files[number], "pt") as file:
            return json.loads(file.metadata()["captions"])

    def rows(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents (n, c, h, w) and embeddings (n, tokens, width) of some images, float32, in the order asked for."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        start = 0
        for file, size in zip(self.files, self.sizes, strict=True):
            if wanted := [row for row in rows if start <= row < start + size]:
                with safe_open(file, "pt") as content:
                    latents, embeddings = (content.get_slice(name) for name in ("latents", "embeddings"))
                    for row in wanted:
                        at = slice(row - start, row - start + 1)
                        found[row] = (latents[at].float(), embeddings[at].float())
            start += size
        if strange := [row for row in rows if row not in found]:
            raise IndexError(f"row {strange[0]} of {start} latents")
        latents, embeddings = (torch.cat(column) for column in zip(*(found[row] for row in rows), strict=True))
        return latents, embeddings
