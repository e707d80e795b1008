"""Checkpoints that survive a kill at any moment: complete or absent, the last few kept, each with its parameters."""

import contextlib
import fcntl
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

KEEP = 2  # checkpoints: the last, and one before it should the last be broken


class CheckpointError(RuntimeError):
    """Checkpoints that a training run cannot resume from; the message says what to do."""


def save(folder: Path, iteration: int, content: dict[str, Any]) -> None:
    """Write folder/checkpoint-<iteration>.pt and remove all but the last KEEP; content has its `parameters`.

    It is written under another name, flushed, then renamed: even after a power cut, the name means a complete file.
    """
    path = folder / f"checkpoint-{iteration:08d}.pt"
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in sorted(folder.glob("checkpoint-*.pt"))[:-KEEP]:
        old.unlink()


def last(folder: Path, parameters: Mapping[str, Any]) -> Path | None:
    """The newest checkpoint; None if there is none. All of it is read, to compare its checksums.

    Raises CheckpointError for one that is broken, or of a training with other parameters: a person decides.
    """
    path = max(folder.glob("checkpoint-*.pt"), default=None)
    if path is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load takes a flipped bit for a weight
        found = read(path)["parameters"]
    except Exception as error:  # what a cut or overwritten file raises depends on where it was hit
        damaged = repr(error)
    if damaged:
        raise CheckpointError(f"{path} is broken ({damaged}): delete it, to go on from the one before it")
    changes = [key for key in {**parameters, **found} if found.get(key) != parameters.get(key)]
    if changes:
        said = "; ".join(f"{key} was {found.get(key)}, is {parameters.get(key)}" for key in changes)
        raise CheckpointError(f"{folder} is of another training ({said}): set them back to finish it, or delete it")
    return path


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Its tensors are the file's pages, which processes share, until changed."""
    return torch.load(path, weights_only=True, map_location="cpu", mmap=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder, so that two trainings of one run cannot write over each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{folder.name} is being trained by another process: wait, or end it") from None
        yield
