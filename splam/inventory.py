"""Which files outside the repository a profile reads, as a few digits that DVC can compare.

Data of Stable Diffusion's size stay where they are, and DVC does not hash terabytes to learn that nothing has changed:
names, sizes and times of change are enough to say that the data stage has to look again. What it finds is compared by
content, in its manifest, so that a file that was only touched has no consequence beyond that stage.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import braceexpand

NOTHING = "nothing"


def take_stock(patterns: Iterable[str]) -> str:
    """16 hexadecimal digits of the local files and folders that paths, globs and brace patterns name, or "nothing".

    They change where one is added, removed, resized or written anew. What is not there, or is a URL, is left out.
    """
    whole = [one for pattern in patterns for one in braceexpand.braceexpand(pattern)]
    found = sorted({name for one in whole for name in glob.glob(one, recursive=True)})
    entries = [(name, Path(name).stat()) for name in found if Path(name).exists()]  # "x/**" finds x even without it
    if not entries:
        return NOTHING
    facts = [(name, entry.st_size, entry.st_mtime_ns) for name, entry in entries]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
