"""Checkpoints that survive a kill at any moment: complete or absent, the last few kept, broken ones skipped."""

import contextlib
import fcntl
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """Checkpoints that a training run cannot resume from; the message says what to do."""


def save_checkpoint(folder: Path, iteration: int, content: dict[str, Any], keep: int) -> None:
    """Write folder/checkpoint-<iteration>.pt and remove all but the last `keep`.

    It is written under another name, flushed, then renamed: even after a power cut, the name means a complete file.
    """
    path = folder / f"checkpoint-{iteration:08d}.pt"
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in sorted(folder.glob("checkpoint-*.pt"))[:-keep]:
        old.unlink()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; None if there is none. All of it is read, to compare its checksums.

    Broken ones are skipped with a warning. Raises CheckpointError if all are broken: whether to start over is for a
    person to decide.
    """
    found = sorted(folder.glob("checkpoint-*.pt"), reverse=True)
    for path in found:
        try:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch.load takes a flipped bit for a weight
                    raise zipfile.BadZipFile(f"bad checksum of {damaged}")
            read_checkpoint(path)
            return path
        except Exception as error:  # what a cut or overwritten file raises depends on where it was hit
            message = f"{path} cannot be read ({type(error).__name__}: {error}); trying the checkpoint before it"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    if found:
        raise CheckpointError(f"no checkpoint in {folder} can be read: delete that folder to train from the start")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Its tensors are the file's pages, which processes share, until changed."""
    return torch.load(path, weights_only=True, map_location="cpu", mmap=True)


def check_parameters(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a checkpoint's parameters are not those of the training, naming each that differs."""
    differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {found.get(key)}, is {wanted.get(key)}" for key in differing)
        remedy = "set them back to go on from there, or delete that folder to train from the start"
        raise CheckpointError(f"{folder} holds a training with other parameters ({changes}): {remedy}")


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
