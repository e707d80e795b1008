"""Checkpoints that survive a kill at any moment: whole or not there, the last few kept, a broken one passed over."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(folder: Path, iteration: int, content: dict[str, Any], keep: int) -> Path:
    """Write folder/checkpoint-<iteration>.pt and remove all but the last `keep`; returns its path."""
    path = folder / f"checkpoint-{iteration:08d}.pt"
    save_atomically(content, path)
    for old in sorted(folder.glob("checkpoint-*.pt"))[:-keep]:
        old.unlink()
    return path


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write one file under another name, flush it to the disk and rename it: after a power cut, too, the name stands
    for a whole file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _flush_folder(path.parent)


def load_last_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None where there is none.

    A broken one is named in a warning and passed over. Raises RuntimeError where all are broken: to begin again is
    for a person to decide.
    """
    found = sorted(folder.glob("checkpoint-*.pt"), reverse=True)
    for path in found:
        try:
            return _read(path)
        except Exception as error:  # what a cut or overwritten file raises depends on where it was hit
            reason = (str(error).splitlines() or [""])[0]
            message = f"checkpoint {path} cannot be read ({type(error).__name__}: {reason}); trying the one before it"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    if found:
        raise RuntimeError(f"no checkpoint in {folder} can be read: remove that folder to train from the start")
    return None


def _read(path: Path) -> dict[str, Any]:
    """One checkpoint, its checksums compared: torch.load alone takes a flipped bit for a weight."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
    return torch.load(path, weights_only=True, map_location="cpu")


def _flush_folder(folder: Path) -> None:
    """Make a rename last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
