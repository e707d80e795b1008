"""How a report was made: the commit, the machine, and the pipeline's stages as DVC knows them, with their times."""

import json
import os
import platform
import subprocess
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import torch
from dvc.repo import Repo

from splam.config import ROOT


def commit() -> str:
    """The commit of this checkout; empty outside a git repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """'Linux x86_64, 8 cores, NVIDIA H100; torch 2.9.0'."""
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    kind = f"{platform.system()} {platform.machine()}"
    return f"{', '.join([kind, f'{os.cpu_count()} cores', *gpu])}; torch {torch.__version__}"


def stages(times: Path) -> list[dict[str, object]]:
    """The stages in an order in which they can run; those of one `foreach` are one.

    Each has its name, what it does, the number of runs, their seconds (None if one is unknown), and `after`: the places
    in the list of what it waits for, without what these wait for themselves. times: a folder of splam.stage's records.
    """
    with Repo(str(ROOT)) as repo:
        graph = repo.index.graph
    members, before = defaultdict(list), defaultdict(set)
    for stage in graph:
        if ":" not in stage.addressing:  # else of another pipeline
            name = stage.addressing.partition("@")[0]
            members[name].append(stage)
            before[name] |= {other.addressing.partition("@")[0] for other in graph.successors(stage)} - {name}
    order = [*TopologicalSorter({name: sorted(before[name]) for name in sorted(before)}).static_order()]
    earlier: dict[str, set[str]] = {}
    for name in order:
        earlier[name] = before[name].union(*(earlier[other] for other in before[name]))
    found = []
    for name in order:
        nearest = before[name].difference(*(earlier[other] for other in before[name]))
        facts = {"name": name, "text": members[name][0].desc or "", "runs": len(members[name])}
        found.append({**facts, "seconds": _seconds(members[name], times), "after": [order.index(n) for n in nearest]})
    return found


def _seconds(stages: list, times: Path) -> float | None:
    """What the notebooks of some stages took together."""
    notebooks = [Path(out.def_path).stem for stage in stages for out in stage.outs if "executed" in out.def_path]
    files = [times / f"{notebook}.json" for notebook in notebooks]
    if not files or not all(file.is_file() for file in files):
        return None
    return sum(json.loads(file.read_text())["seconds"] for file in files)
