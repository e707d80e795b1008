"""Latents and caption embeddings, encoded once and kept: 151 kB an image at Stable Diffusion 1.5's sizes in float16.

A folder holds index.json, what it is of, and a file for each batch. Crops are then fixed, and so is which of the
autoencoder's latents is taken.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from splam.data.images import DataError, built

INDEX = "index.json"


def open_folder(folder: Path, plan: Mapping[str, Any]) -> int:
    """Claim a folder for latents of a plan: images, batch_size, and what else they depend on.

    Returns how many batches of them it holds already. Latents of another plan are removed.
    """
    index, plan = folder / INDEX, json.loads(json.dumps(plan))
    found = json.loads(index.read_text()) if index.is_file() else {}
    if found != plan and any(folder.glob("*.safetensors")):
        other = ", ".join(key for key in plan if found.get(key) != plan[key])
        print(f"{folder} holds latents with other {other}: they are removed", file=sys.stderr)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index.write_text(json.dumps(plan, indent=1, sort_keys=True) + "\n")
    return len(list(folder.glob("*.safetensors")))


def save_batch(folder: Path, number: int, latents: Tensor, embeddings: Tensor, dtype: torch.dtype) -> None:
    """Write latents (b, c, h, w) and embeddings (b, tokens, width), wholly or not at all.

    Raises DataError for values that dtype cannot hold.
    """
    parts = {"latents": latents.to("cpu", dtype), "embeddings": embeddings.to("cpu", dtype)}
    if not all(part.isfinite().all() for part in parts.values()):
        raise DataError(f"{folder}: there are values that {dtype} cannot hold: choose another dtype")
    save_file({name: part.contiguous() for name, part in parts.items()}, folder / "part")
    os.replace(folder / "part", folder / f"{number:08d}.safetensors")


class LatentStore:
    """A folder of latents, read a few rows at a time; plan: as open_folder was given it."""

    def __init__(self, folder: Path):
        """Raises FileNotFoundError or DataError if there is nothing in the folder, or not all of it."""
        self.folder, self.plan = folder, json.loads(built(folder / INDEX, "latents").read_text())
        if len(list(folder.glob("*.safetensors"))) * self.plan["batch_size"] != len(self):
            raise DataError(f"{folder} is not whole: run the latents stage again, it goes on")

    def __len__(self) -> int:
        return self.plan["images"]

    def __getitems__(self, picks: list[tuple[int, str]]) -> tuple[Tensor, Tensor]:
        """Latents (n, c, h, w) and embeddings (n, tokens, width) of rows, float32; seeds are not needed."""
        latents, embeddings = zip(*(self._row(row) for row, _ in picks), strict=True)
        return torch.stack(latents).float(), torch.stack(embeddings).float()

    def _row(self, row: int) -> tuple[Tensor, Tensor]:
        number, place = divmod(row, self.plan["batch_size"])
        with safe_open(self.folder / f"{number:08d}.safetensors", "pt") as file:
            return file.get_slice("latents")[place], file.get_slice("embeddings")[place]
