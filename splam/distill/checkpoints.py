"""Checkpoints that survive a kill at any moment: complete or absent, the last few kept, broken ones skipped."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

KEEP = 2  # checkpoints: the last, and one before it should the last be broken


class CheckpointError(RuntimeError):
    """Checkpoints that a training run cannot resume from; the message says what to do."""


def save(folder: Path, iteration: int, content: dict[str, Any]) -> None:
    """Write folder/checkpoint-<iteration>.pt and remove all but the last KEEP.

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


def last(folder: Path) -> Path | None:
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
            read(path)
            return path
        except Exception as error:  # what a cut or overwritten file raises depends on where it was hit
            message = f"{path} cannot be read ({type(error).__name__}: {error}); trying the checkpoint before it"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    if found:
        raise CheckpointError(f"no checkpoint in {folder} can be read: delete that folder to train from the start")
    return None


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Its tensors are the file's pages, which processes share, until changed."""
    return torch.load(path, weights_only=True, map_location="cpu", mmap=True)


def own_folder(folder: Path, parameters: Mapping[str, Any]) -> Path:
    """Where in a run's folder a training with these parameters has its checkpoints: other parameters, another place."""
    return folder / hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]


def name_others(folder: Path, parameters: Mapping[str, Any]) -> None:
    """Say in a line each what a run's folder keeps of trainings with other parameters; without checkpoints, they go."""
    own = own_folder(folder, parameters)
    own.mkdir(parents=True, exist_ok=True)
    (own / "parameters.json").write_text(json.dumps(parameters))
    for other in sorted(path for path in folder.glob("*/") if path != own):
        if not any(other.glob("checkpoint-*.pt")):
            shutil.rmtree(other)
            continue
        found = json.loads((other / "parameters.json").read_text())
        differing = [key for key in {**parameters, **found} if found.get(key) != parameters.get(key)]
        changes = "; ".join(f"{key} was {found.get(key)}, is {parameters.get(key)}" for key in differing)
        print(f"{other}: set aside ({changes}); it goes on when they are set back, or delete it", file=sys.stderr)


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
