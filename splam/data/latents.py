"""Latents and text embeddings, encoded once and kept: an optional stage that trades disk for time.

Without it every iteration decodes, encodes and embeds its images anew; with it an image takes `bytes_per_image`, at
Stable Diffusion 1.5's sizes in half precision 151 kB (33 kB of latents, 118 kB of embeddings), 1.8 TB for 12 million.
Crops are then fixed, and so is which of the autoencoder's latents is taken. The caller gives the two encoders as
callables; splam.latents is the caller that the pipeline runs.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import os
import shutil
import sys
from collections import defaultdict
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
    encode: Callable[[Tensor, int], Tensor],
    embed: Callable[[list[str]], Tensor],
    folder: Path,
    count: int,
    facts: Mapping[str, Any],
    per_shard: int = 64,
    dtype: str = "float16",
    replace: bool = False,
) -> None:
    """Encode the first `count` batches into folder/000000.safetensors ..., `per_shard` of them a file.

    batches(n): pixels (b, 3, H, W) and captions from batch n on, as LaionStream gives them; encode: pixels of batch n
    to latents (b, c, h, w); embed: captions to (b, tokens, width); facts: what the result depends on, such as the
    hashes of teacher and manifest. A stopped run goes on after its last whole file. Where the folder holds other
    latents they are removed if `replace`. Raises DataError if not, where the disk is too small, or where values are
    not finite.
    """
    plan = {"batches": count, "per_shard": per_shard, "dtype": dtype, "facts": dict(facts)}
    _claim(folder, plan, replace)
    whole = len(_files(folder))
    first = min(whole * per_shard, count)
    source = batches(first)
    with tqdm(total=count, initial=first, desc="latents", unit="batch", mininterval=2) as bar:
        for shard in range(whole, math.ceil(count / per_shard)):
            parts = []
            for number in range(shard * per_shard, min((shard + 1) * per_shard, count)):
                pixels, captions = next(source)
                parts.append((encode(pixels, number), embed(captions), captions))
                if len(parts) == 1 and shard == whole:
                    _check_room(folder, *parts[0][:2], count - first, DTYPES[dtype])
                bar.update()
            _write(folder / f"{shard:06d}.safetensors", parts, DTYPES[dtype])


def _claim(folder: Path, plan: dict[str, Any], replace: bool) -> None:
    """Write what the folder is going to hold, or see that it holds the same."""
    index = folder / INDEX
    if index.is_file():
        found = json.loads(index.read_text())
        other = ", ".join(key for key in plan if found.get(key) != json.loads(json.dumps(plan[key])))
        if not other:
            return
        if not replace:
            raise DataError(f"{folder} holds latents with other {other}: delete it, or name another folder")
        print(f"{folder} holds latents with other {other}: they are removed", file=sys.stderr)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
    def plan(self) -> dict[str, Any]:
        """What the folder holds or is going to hold: batches, per_shard, dtype and facts."""
        index = self.folder / INDEX
        if not index.is_file():
            raise FileNotFoundError(
                f"there are no latents in {self.folder}: run the latents stage first (dvc repro -fs latents), "
                "or set training.source to online"
            )
        return json.loads(index.read_text())

    @cached_property
    def files(self) -> list[Path]:
        """All files. Raises DataError where some are still to come."""
        plan, files = self.plan, _files(self.folder)
        if len(files) < (asked := math.ceil(plan["batches"] / plan["per_shard"])):
            raise DataError(f"{self.folder} has {len(files)} of {asked} files: run the latents stage again, it goes on")
        return files

    @cached_property
    def sizes(self) -> list[int]:
        """Images in each file."""
        found = []
        for path in self.files:
            with safe_open(path, "pt") as file:
                found.append(file.get_slice("latents").get_shape()[0])
        return found

    @cached_property
    def starts(self) -> list[int]:
        """The row at which each file begins, and after them the number of all rows."""
        return list(itertools.accumulate(self.sizes, initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def captions(self, number: int) -> list[str]:
        """The captions of one file."""
        with safe_open(self.files[number], "pt") as file:
            return json.loads(file.metadata()["captions"])

    def rows(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents (n, c, h, w) and embeddings (n, tokens, width) of some images, float32, in the order asked for."""
        wanted: dict[int, set[int]] = defaultdict(set)
        for row in rows:
            if not 0 <= row < len(self):
                raise IndexError(f"row {row} of {len(self)} latents")
            wanted[bisect.bisect_right(self.starts, row) - 1].add(row)
        found = {row: pair for number, some in wanted.items() for row, pair in self._read(number, some).items()}
        latents, embeddings = (torch.cat(column) for column in zip(*(found[row] for row in rows), strict=True))
        return latents, embeddings

    def _read(self, number: int, rows: set[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """Latents (1, c, h, w) and embeddings (1, tokens, width) of some rows of one file."""
        found = {}
        with safe_open(self.files[number], "pt") as file:
            latents, embeddings = (file.get_slice(name) for name in ("latents", "embeddings"))
            for row in rows:
                at = slice(row - self.starts[number], row - self.starts[number] + 1)
                found[row] = (latents[at].float(), embeddings[at].float())
        return found
