"""Latents and caption embeddings, encoded once and kept: 151 kB an image at Stable Diffusion 1.5's sizes in float16.

Crops are then fixed, and so is which of the autoencoder's latents is taken.
"""

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from splam.config import LatentsSettings
from splam.data.images import DataError

INDEX, PARTS = "index.json", ("latents", "embeddings")


def encode_store(
    batches: Callable[[int], Iterator[tuple[Tensor, list[str]]]],
    encode: Callable[[Tensor, list[str], int], tuple[Tensor, Tensor]],
    folder: Path,
    settings: LatentsSettings,
    facts: Mapping[str, Any],
) -> None:
    """Encode the first settings.images images, up to whole batches, into folder/latents.bin and embeddings.bin.

    batches(n): pixels (b, 3, H, W) and captions from batch n on; encode(pixels, captions, n): their latents
    (b, c, h, w) and embeddings (b, tokens, width); facts: what the result depends on. A stopped run goes on after its
    last whole batch; latents of another plan are removed. Raises DataError for values that are not finite.
    """
    count, dtype = math.ceil(settings.images / settings.batch_size), getattr(torch, settings.dtype)
    shapes = [list(part.shape[1:]) for part in encode(*next(batches(0)), 0)]
    plan = {"images": count * settings.batch_size, "dtype": settings.dtype, "facts": dict(facts)}
    _claim(folder, plan | dict(zip(PARTS, shapes, strict=True)))
    sizes = [settings.batch_size * math.prod(shape) * dtype.itemsize for shape in shapes]  # bytes of a batch
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context((folder / f"{name}.bin").open("ab")) for name in PARTS]
        first = min(file.tell() // size for file, size in zip(files, sizes, strict=True))
        for file, size in zip(files, sizes, strict=True):
            file.truncate(first * size)
        source = batches(first)
        for number in tqdm(range(first, count), "latents", total=count, initial=first, unit="batch", mininterval=2):
            for file, part in zip(files, encode(*next(source), number), strict=True):
                kept = part.to("cpu", dtype).contiguous()
                if not kept.isfinite().all():
                    raise DataError(f"{file.name}: values that {dtype} cannot hold: choose another dtype")
                file.write(kept.view(torch.uint8).numpy().data)
                file.flush()


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Write what the folder is going to hold; if it holds something else, remove that."""
    index, plan = folder / INDEX, json.loads(json.dumps(plan))
    found = json.loads(index.read_text()) if index.is_file() else None
    if found is None and any(folder.glob("*.bin")):
        raise DataError(f"{folder} holds latents but no {INDEX}: delete it, or name another folder")
    if found is not None and found != plan:
        other = ", ".join(key for key in plan if found.get(key) != plan[key])
        print(f"{folder} holds latents with other {other}: they are removed", file=sys.stderr)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index.write_text(json.dumps(plan, indent=1, sort_keys=True) + "\n")


class LatentStore:
    """What encode_store has written, read a few rows at a time.

    plan: images, dtype, facts, and shapes; parts: all latents (n, c, h, w) and embeddings (n, tokens, width), on disk.
    """

    def __init__(self, folder: Path):
        """Raises FileNotFoundError or DataError if there is nothing in the folder, or not all of it."""
        self.folder, self.parts = folder, []
        if not (index := folder / INDEX).is_file():
            remedy = "run the latents stage first, or set training.source to data"
            raise FileNotFoundError(f"there are no latents in {folder}: {remedy}")
        self.plan = json.loads(index.read_text())
        dtype = getattr(torch, self.plan["dtype"])
        for name in PARTS:
            path, shape = folder / f"{name}.bin", [len(self), *self.plan[name]]
            if not path.is_file() or path.stat().st_size != math.prod(shape) * dtype.itemsize:
                raise DataError(f"{path} is not whole: run the latents stage again, it goes on")
            self.parts.append(torch.from_file(str(path), size=math.prod(shape), dtype=dtype).view(shape))

    def __reduce__(self) -> tuple:
        return LatentStore, (self.folder,)  # a worker opens the files itself

    def __len__(self) -> int:
        return self.plan["images"]

    def __getitems__(self, picks: list[tuple[int, str]]) -> tuple[Tensor, Tensor]:
        """Latents (n, c, h, w) and embeddings (n, tokens, width) of rows, float32; seeds are not needed."""
        rows = [row for row, _ in picks]
        latents, embeddings = (part[rows].float() for part in self.parts)
        return latents, embeddings
